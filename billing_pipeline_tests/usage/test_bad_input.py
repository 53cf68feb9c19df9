"""A hundred thousand rows of every kind: nothing crashes, no unit is lost, each bad row waits once under its reason.

The judge is plain Python over the rows as they were written: text, decimals and whole microseconds.  It shares no
line with the package.
"""

from __future__ import annotations

import random
from collections import Counter, defaultdict
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from fractions import Fraction
from functools import cached_property
from math import floor

import pytest

from billing_pipeline.domain.catalogue import parse_catalogue
from billing_pipeline.usage.aggregate import Scope
from billing_pipeline.usage.contract import validate_contract
from billing_pipeline_tests.builders import copy_events, source_of

ROWS = 100_000
NOW = datetime(2026, 3, 31, 15, 20, tzinfo=UTC)
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
SECOND, HOUR, DAY = 10**6, 3_600 * 10**6, 86_400 * 10**6
FOREVER = 10**30
CATALOGUE = parse_catalogue(
    """
    ignored_event_types = ["login"]
    [meters.tokens]
    event_types = ["tokens", "call"]
    aggregation = "sum"
    [meters.scaled]
    event_types = ["tokens"]
    aggregation = "sum"
    unit_scale = "0.037"
    [meters.requests]
    event_types = ["request", "call"]
    aggregation = "count"
    """,
    origin="test",
)
SUMMED, COUNTED, KNOWN = {"tokens", "call"}, {"request", "call"}, {"tokens", "call", "request", "login"}


def microseconds(instant):
    return (instant - EPOCH) // timedelta(microseconds=1)


NOW_AT = microseconds(NOW)
REACH = ((NOW_AT - 35 * DAY) // HOUR * HOUR, NOW_AT // HOUR * HOUR + 2 * HOUR)
YEAR_1, DEC_31_9999 = microseconds(datetime(1, 1, 1, tzinfo=UTC)), microseconds(datetime(9999, 12, 31, tzinfo=UTC))
FAR = {
    FOREVER: "infinity",
    -FOREVER: "-infinity",
    DEC_31_9999: "9999-12-31 00:00:00+00",
    DEC_31_9999 - 1: "9999-12-30 23:59:59.999999+00",
    DEC_31_9999 + DAY: "10000-01-01 00:00:00+00",
    YEAR_1: "0001-01-01 00:00:00+00",
    YEAR_1 - 1: "0001-12-31 23:59:59.999999+00 BC",
    9_223_371_331_200 * SECOND - 1: "294276-12-31 23:59:59.999999+00",
}
"""Microseconds since 1970, and how PostgreSQL writes them."""


@dataclass(frozen=True)
class Row:
    """One row as it was written; times as microseconds since 1970."""

    event_id: str | None
    organization_id: str | None
    event_type: str | None
    quantity: str | None
    occurred_at: int | None
    recorded_at: int | None

    @cached_property
    def reason(self) -> str | None:
        """The judge's: what is wrong with the row, the first thing only."""
        if not self.event_id:
            return "event_id_missing"
        if not self.organization_id:
            return "organization_id_missing"
        if not self.event_type:
            return "event_type_missing"
        return self._wrong_quantity or self._wrong_time or (None if self.event_type in KNOWN else "event_type_unknown")

    @property
    def reason_once_counted(self) -> str | None:
        """The same when meters have been defined: where none is, no quantity is needed."""
        undefined = self.occurred_at is None or self.occurred_at < REACH[0]
        return self._wrong_time if self.reason == "quantity_missing" and undefined else self.reason

    @property
    def _wrong_quantity(self) -> str | None:
        if self.quantity is None:
            return "quantity_missing" if self.event_type in SUMMED else None
        if self.quantity in ("NaN", "Infinity", "-Infinity"):
            return "quantity_not_finite"
        _, digits, exponent = Decimal(self.quantity).as_tuple()
        shown = "".join(map(str, digits)).rstrip("0") if exponent < 0 else ""
        decimals = max(len(shown) - len(digits) - exponent, 0) if shown else 0
        if Decimal(self.quantity) < 0:
            return "quantity_negative"
        return "quantity_too_many_digits" if Decimal(self.quantity) >= 10**15 or decimals > 12 else None

    @property
    def _wrong_time(self) -> str | None:
        if self.occurred_at is None:
            return "occurred_at_missing"
        if self.recorded_at is None:
            return "recorded_at_missing"
        if not all(YEAR_1 <= at < DEC_31_9999 for at in (self.occurred_at, self.recorded_at)):
            return "time_out_of_range"
        if self.occurred_at - self.recorded_at > 300 * SECOND:
            return "occurred_at_in_future"
        return "occurred_at_too_old" if self.recorded_at - self.occurred_at > 35 * DAY else None

    @property
    def is_read(self) -> bool:
        """Whether a validation of everything within reach has to look at it."""
        if self.recorded_at is None or self.recorded_at >= REACH[0] - 300 * SECOND:
            return True
        return self.occurred_at is not None and self.occurred_at >= REACH[0]


def rows_of_every_kind(dice):
    """Half of the rows are good; of the others most have one fault, some have many."""
    for number in range(ROWS):
        row = good_row(dice, f"e{number}")
        if dice.random() < 0.5:
            for spoil in dice.sample(SPOILERS, dice.choice([1, 1, 1, 2, 4])):
                row = replace(row, **spoil(dice, row))
        yield row


def good_row(dice, event_id):
    occurred_at = NOW_AT - dice.randrange(34 * DAY)
    return Row(
        event_id,
        dice.choice(["acme", "globex", "Ωmega", "o'hara; --", "a\tb\n\\N", " "]),
        dice.choice(["tokens", "tokens", "call", "request", "login"]),
        dice.choice([str(dice.randrange(10**6)), f"{dice.randrange(10**6)}.{dice.randrange(10**12):012d}", "1e-12"]),
        occurred_at,
        min(occurred_at + dice.randrange(DAY), NOW_AT),
    )


def near(at):
    """A time to calculate with, where there is none or one beyond all calendars."""
    return NOW_AT if at is None or at in FAR else at


SPOILERS = [
    lambda dice, row: {"event_id": dice.choice([None, None, row.event_id])},
    lambda dice, row: {"organization_id": dice.choice([None, ""])},
    lambda dice, row: {"event_type": dice.choice([None, "", "espresso", "TOKENS", "tokens ", "NaN"])},
    lambda dice, row: {"quantity": None},
    lambda dice, row: {"quantity": dice.choice(["NaN", "Infinity", "-Infinity"])},
    lambda dice, row: {"quantity": dice.choice(["-1", "-1e-12", "-0", "-0.000", f"-{10**20}"])},
    lambda dice, row: {
        "quantity": dice.choice(
            [
                *("999999999999999", "999999999999999.999999999999", "1000000000000000", "1e15", "1e308", "1e-1000"),
                *("0.000000000001", "0.0000000000001", "1.0000000000010", "1.00000000000000", "10e-13", "0e-20"),
            ]
        )
    },
    lambda dice, row: {"occurred_at": None},
    lambda dice, row: {"recorded_at": None},
    lambda dice, row: {dice.choice(["occurred_at", "recorded_at"]): dice.choice(list(FAR))},
    lambda dice, row: {"occurred_at": dice.choice(list(FAR)), "recorded_at": dice.choice(list(FAR))},
    lambda dice, row: {
        "recorded_at": near(row.occurred_at) + dice.choice([-300 * SECOND, 35 * DAY]) + dice.choice([-1, 0, 1])
    },
    lambda dice, row: {
        "occurred_at": dice.choice([REACH[0], REACH[0] - 1, REACH[1] - 1, REACH[1], NOW_AT - 80 * DAY]),
        "recorded_at": dice.choice([REACH[0], NOW_AT, NOW_AT - 60 * DAY]),
    },
    lambda dice, row: {"occurred_at": near(row.occurred_at) // HOUR * HOUR - dice.choice([0, 1])},
]


def written(dice, at):
    """The same instant in some zone's words; a full minute sometimes as the 61st second of the one before."""
    if at is None or at in FAR:
        return FAR.get(at)
    instant = EPOCH + timedelta(microseconds=at)
    if at % (60 * SECOND) == 0 and dice.random() < 0.5:
        return f"{instant - timedelta(minutes=1):%Y-%m-%d %H:%M}:60+00"
    return instant.astimezone(timezone(timedelta(minutes=dice.choice([0, 330, 345, -210, 630, 840])))).isoformat()


def as_written(dice, row):
    return {
        "event_id": row.event_id,
        "organization_id": row.organization_id,
        "event_type": row.event_type,
        "quantity": row.quantity,
        "occurred_at": written(dice, row.occurred_at),
        "recorded_at": written(dice, row.recorded_at),
    }


def judged_windows(rows):
    """Organization, meter and hour -> exact units and events, of the good rows within reach."""
    found = defaultdict(lambda: [Fraction(0), 0])
    for row in rows:
        if row.reason is not None or not REACH[0] <= row.occurred_at < REACH[1]:
            continue
        quantity = Fraction(row.quantity or 0)
        units = {
            "tokens": quantity if row.event_type in SUMMED else None,
            "scaled": quantity * Fraction("0.037") if row.event_type == "tokens" else None,
            "requests": Fraction(1) if row.event_type in COUNTED else None,
        }
        for meter, worth in units.items():
            if worth is not None:
                window = found[(row.organization_id, meter, row.occurred_at // HOUR)]
                window[0] += worth
                window[1] += 1
    return {key: tuple(window) for key, window in found.items()}


def judged_months(windows):
    """Organization, meter and month -> whole units."""
    exact = defaultdict(Fraction)
    for (organization, meter, hour), (units, _) in windows.items():
        exact[(organization, meter, (EPOCH + timedelta(hours=hour)).month)] += units
    return {key: floor(units) for key, units in exact.items() if units >= 1}


def counted_windows(connection):
    rows = connection.execute(
        "SELECT organization_id, meter, starts_at, units, event_count FROM usage_windows WHERE event_count > 0"
    )
    return {
        (organization, meter, microseconds(starts_at) // HOUR): (Fraction(units), events)
        for organization, meter, starts_at, units, events in rows
    }


def counted_months(connection):
    rows = connection.execute(
        "SELECT organization_id, meter, extract(month FROM starts_at)::int, sum(target) FROM usage_windows "
        "GROUP BY 1, 2, 3 HAVING sum(target) > 0"
    )
    return {(organization, meter, month): int(target) for organization, meter, month, target in rows}


def quarantined(connection):
    return dict(connection.execute("SELECT event_id, reason FROM quarantined_events WHERE mended_at IS NULL"))


def mended(dice, row):
    """The row as upstream puts it right, a moment ago."""
    occurred_at = NOW_AT - dice.randrange(30 * DAY)
    good = good_row(dice, row.event_id)
    return replace(good, occurred_at=occurred_at, recorded_at=NOW_AT)


@pytest.fixture
def open_source(connection):
    """A source that refuses as little as one can that still holds an event at most once."""
    connection.execute("ALTER TABLE public.billable_events DROP CONSTRAINT billable_events_pkey")
    connection.execute("ALTER TABLE public.billable_events ALTER event_id DROP NOT NULL, ADD UNIQUE (event_id)")
    connection.execute("ALTER TABLE public.billable_events ALTER recorded_at DROP NOT NULL")


@pytest.mark.usefixtures("open_source")
def test_a_hundred_thousand_rows_of_every_kind(aggregator, database_url):
    connection, dice = aggregator.connection, random.Random("every kind")
    aggregator.catalogue, aggregator.now = CATALOGUE, NOW
    rows = list(rows_of_every_kind(dice))
    copy_events(connection, (as_written(dice, row) for row in rows))

    def validate(since):
        return validate_contract(
            connection,
            database_url,
            source=source_of(connection),
            catalogue=CATALOGUE,
            since=since,
            lookback=timedelta(days=30),
            now=aggregator.now,
        )

    report = validate(None)
    aggregator()

    bad = {row.event_id: row.reason for row in rows if row.event_id and row.reason and row.is_read}
    assert quarantined(connection) == bad
    told = Counter(row.reason for row in rows if row.reason and row.is_read)
    assert {fault.reason: fault.count for fault in report.faults if fault.severity == "row"} == told
    assert min(told.values()) > 500
    assert len(told) == 13
    windows = judged_windows(rows)
    assert counted_windows(connection) == windows
    assert counted_months(connection) == judged_months(windows)

    # A third of what waits is put right upstream, and nothing else is looked at again.
    by_id = {row.event_id: row for row in rows if row.event_id}
    aggregator.now += timedelta(minutes=1)
    put_right = [mended(dice, by_id[event_id]) for event_id in sorted(bad) if dice.random() < 1 / 3]
    connection.execute(
        "DELETE FROM public.billable_events WHERE event_id = ANY (%s)", ([r.event_id for r in put_right],)
    )
    copy_events(connection, (as_written(dice, row) for row in put_right))
    by_id.update((row.event_id, row) for row in put_right)

    validate(NOW - timedelta(minutes=15))
    aggregator(Scope.TOUCHED)

    for row in put_right:
        assert row.reason is None
        del bad[row.event_id]
    # Rows without recorded_at are judged every time, as are those recorded lately.
    again = [row for row in rows if row.recorded_at is None or row.recorded_at >= NOW_AT - 900 * SECOND]
    bad |= {row.event_id: row.reason_once_counted for row in again if row.event_id in bad}
    # What no meter needs any more leaves quarantine, whenever it was recorded.
    not_needed = [row.event_id for row in rows if row.event_id in bad and row.reason_once_counted is None]
    for event_id in not_needed:
        del bad[event_id]
    assert quarantined(connection) == bad
    assert connection.execute("SELECT count(*) FROM quarantined_events WHERE mended_at IS NOT NULL").fetchone() == (
        len(put_right) + len(not_needed),
    )
    windows = judged_windows(by_id.values())
    assert counted_windows(connection) == windows
    assert counted_months(connection) == judged_months(windows)
