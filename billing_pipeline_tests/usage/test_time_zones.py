"""An hour is an hour in UTC, whatever zone the session, the database or the machine lives in; an amount is exact."""

from __future__ import annotations

import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from psycopg.sql import SQL, Identifier, Literal

from billing_pipeline.usage.contract import rows_in_quarantine
from billing_pipeline.usage.row_contract import FUTURE_MAX, PAST_MAX
from billing_pipeline_tests.builders import NOON, billable_event, insert_events
from billing_pipeline_tests.usage.test_contract import validate

ZONES = [
    "UTC",
    "Asia/Kolkata",
    "Asia/Kathmandu",
    "Australia/Lord_Howe",
    "America/St_Johns",
    "Pacific/Apia",
    "Pacific/Chatham",
    "Europe/Berlin",
]
CHANGES = [
    datetime(2026, 3, 8, 5, 30, tzinfo=UTC),  # St. John's goes forward
    datetime(2026, 3, 29, 1, tzinfo=UTC),  # Berlin goes forward
    datetime(2026, 3, 31, 18, 15, tzinfo=UTC),  # midnight and a new month in Kathmandu, not in UTC
    datetime(2026, 4, 1, tzinfo=UTC),  # a new month in UTC
    datetime(2026, 4, 4, 14, 0, tzinfo=UTC),  # Apia and Chatham go back
    datetime(2026, 4, 4, 15, 0, tzinfo=UTC),  # Lord Howe goes back, by half an hour
]
AFTER = datetime(2026, 4, 10, 9, 20, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


@pytest.fixture(params=ZONES)
def zone(request, connection, monkeypatch):
    """The database's default, this session's and the operating system's time zone."""
    name = SQL("ALTER DATABASE {} SET TimeZone = {}").format(Identifier(connection.info.dbname), Literal(request.param))
    connection.execute(name)
    connection.execute(SQL("SET TimeZone = {}").format(Literal(request.param)))
    monkeypatch.setenv("TZ", request.param)
    time.tzset()
    yield request.param
    monkeypatch.undo()
    time.tzset()


def clock_hour(instant):
    """The judge's: whole hours since 1970 in UTC, by counting microseconds."""
    return (instant - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(hours=1)


def test_windows_are_the_same_in_every_zone(aggregator, zone):
    aggregator.now = AFTER
    instants = [
        change + timedelta(minutes=minutes) - before
        for change in CHANGES
        for minutes in range(-180, 195, 15)
        for before in (timedelta(0), MICROSECOND)
    ]
    rows = [billable_event(event_type="tokens", quantity=Decimal("0.7"), occurred_at=instant) for instant in instants]
    insert_events(aggregator.connection, *rows)

    aggregator()

    expected = Counter(clock_hour(instant) for instant in instants)
    windows = aggregator.connection.execute(
        "SELECT starts_at, ends_at, event_count, units FROM usage_windows"
    ).fetchall()
    assert {clock_hour(starts_at): count for starts_at, _, count, _ in windows} == expected
    # Not by a difference: Python's, within one zone, is the wall clock's.
    assert all(clock_hour(ends_at) == clock_hour(starts_at) + 1 for starts_at, ends_at, _, _ in windows)
    assert all(units == count * Decimal("0.7") for _, _, count, units in windows)
    # Fractions are carried within the month of UTC.
    per_month = Counter(instant.month for instant in instants)
    targets = aggregator.connection.execute(
        "SELECT extract(month FROM starts_at AT TIME ZONE 'UTC'), sum(target) FROM usage_windows GROUP BY 1"
    ).fetchall()
    assert dict(targets) == {month: events * 7 // 10 for month, events in per_month.items()}


def test_the_limits_of_35_days_and_5_minutes_are_the_same_in_every_zone(connection, database_url, zone):
    """To the microsecond, also where a day of the zone between the two times has 23 or 25 hours."""
    edges = {
        "old": (PAST_MAX, None),
        "too old": (PAST_MAX + MICROSECOND, "occurred_at_too_old"),
        "ahead": (-FUTURE_MAX, None),
        "too far ahead": (-FUTURE_MAX - MICROSECOND, "occurred_at_in_future"),
    }
    insert_events(
        connection,
        *(
            billable_event(
                event_id=f"{name} {change}", event_type="tokens", occurred_at=change, recorded_at=change + lag
            )
            for change in CHANGES
            for name, (lag, _) in edges.items()
        ),
    )

    validate(connection, database_url, since=CHANGES[0] - timedelta(days=1), now=AFTER)

    found = {waiting.reason: waiting.count for waiting in rows_in_quarantine(connection)}
    assert found == dict.fromkeys((reason for _, reason in edges.values() if reason), len(CHANGES))
    in_sql = connection.execute(
        "SELECT count(*) FROM public.billable_events WHERE "
        "contract_fault(event_id, organization_id, event_type, quantity, occurred_at, recorded_at) IS NULL"
    ).fetchone()
    assert in_sql == (2 * len(CHANGES),)


@pytest.mark.parametrize(
    ("text", "hour"),
    [
        ("2026-03-09 23:59:60+00", NOON.replace(hour=0)),
        ("2026-03-09 22:59:60+00", NOON.replace(day=9, hour=23)),
        ("2026-03-10 05:29:60+05:30", NOON.replace(hour=0)),
        ("2026-03-10 24:00:00+14:00", NOON.replace(hour=10)),
    ],
)
def test_a_leap_second_belongs_to_the_hour_it_begins(aggregator, text, hour):
    insert_events(aggregator.connection, billable_event(event_type="tokens", occurred_at=text))

    aggregator()

    assert aggregator.targets() == {("tokens", hour): 1}


@pytest.mark.parametrize(
    ("quantities", "target"),
    [
        (["999999999999999.999999999999", "0.000000000001"], 10**15),
        (["999999999999999.999999999999"], 10**15 - 1),
        (["1e-12"] * 3, 0),
        (["0.999999999999", "1e-12"], 1),
        (["0.1"] * 10, 1),
        (["999999999999999"] * 1000, 999_999_999_999_999_000),
        (["9007199254740993", "1"], 1),
        (["1.0000000000001", "NaN", "Infinity", "1"], 1),
    ],
)
def test_no_digit_of_a_sum_is_lost(aggregator, quantities, target):
    insert_events(aggregator.connection, *(billable_event(event_type="tokens", quantity=text) for text in quantities))

    aggregator()

    assert aggregator.targets() == ({("tokens", NOON): target} if target else {})
