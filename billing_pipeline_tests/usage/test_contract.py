"""Bad rows neither vanish nor stop the good ones, and both statements of the contract agree on every row."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing_pipeline.domain.catalogue import parse_catalogue
from billing_pipeline.errors import ContractBlocked
from billing_pipeline.usage.contract import (
    FUTURE_MAX,
    PAST_MAX,
    ROW_RULES,
    require_contract,
    validate_contract,
)
from billing_pipeline_tests.builders import NOON, billable_event, copy_events, insert_events

CATALOGUE = parse_catalogue(
    'ignored_event_types = ["login"]\n[meters.tokens]\nevent_types = ["tokens"]\naggregation = "sum"', origin="test"
)
NOW = NOON + timedelta(days=1)
MICROSECOND = timedelta(microseconds=1)


def validate(connection, database_url, **overrides):
    options = {
        "source": "public.billable_events",
        "catalogue": CATALOGUE,
        "since": None,
        "lookback": timedelta(days=30),
        "now": NOW,
    }
    return validate_contract(connection, database_url, **(options | overrides))


def quarantine(connection):
    return dict(
        connection.execute("SELECT event_id, reason FROM quarantined_events WHERE mended_at IS NULL").fetchall()
    )


def event(**overrides):
    return billable_event(**({"event_type": "tokens"} | overrides))


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"organization_id": None}, "organization_id_missing"),
        ({"organization_id": ""}, "organization_id_missing"),
        ({"event_type": None}, "event_type_missing"),
        ({"event_type": "espresso"}, "event_type_unknown"),
        ({"quantity": None}, "quantity_missing"),
        ({"quantity": Decimal("NaN")}, "quantity_not_finite"),
        ({"quantity": Decimal("Infinity")}, "quantity_not_finite"),
        ({"quantity": Decimal("-0.000000000001")}, "quantity_negative"),
        ({"quantity": Decimal(10**15)}, "quantity_too_many_digits"),
        ({"quantity": Decimal("0.0000000000001")}, "quantity_too_many_digits"),
        ({"occurred_at": None}, "occurred_at_missing"),
        ({"occurred_at": "infinity"}, "occurred_at_missing"),
        ({"recorded_at": NOON - FUTURE_MAX - MICROSECOND}, "occurred_at_in_future"),
        ({"recorded_at": NOON + PAST_MAX + MICROSECOND}, "occurred_at_too_old"),
    ],
)
def test_a_bad_row_is_quarantined_under_its_reason_and_a_good_one_goes_on(connection, database_url, fault, reason):
    insert_events(connection, event(event_id="bad", **fault), event(event_id="good"))

    report = validate(connection, database_url)

    assert quarantine(connection) == {"bad": reason}
    assert [(fault.reason, fault.count, fault.samples) for fault in report.faults] == [(reason, 1, ("bad",))]
    assert report.passed


@pytest.mark.parametrize(
    "edge",
    [
        {"quantity": Decimal(0)},
        {"quantity": Decimal(10**15 - 1)},
        {"quantity": Decimal("0.000000000001")},
        {"quantity": Decimal("1.500000000000000000")},
        {"recorded_at": NOON - FUTURE_MAX},
        {"recorded_at": NOON + PAST_MAX},
        {"event_type": "login"},
    ],
)
def test_a_row_on_the_edge_is_good(connection, database_url, edge):
    insert_events(connection, event(**edge))

    assert validate(connection, database_url).quarantined == 0


quantities = st.one_of(
    st.none(),
    st.sampled_from([Decimal("NaN"), Decimal("Infinity"), Decimal("-Infinity")]),
    st.decimals(min_value=-(10**30), max_value=10**30, allow_nan=False),
    st.decimals(min_value=-5, max_value=10**16, places=13),
    st.integers(-3, 10**16).map(Decimal),
    st.integers(1, 40).map(lambda digits: Decimal(10**digits - 1)),
)
lags = st.one_of(
    st.sampled_from([-FUTURE_MAX, -FUTURE_MAX - MICROSECOND, PAST_MAX, PAST_MAX + MICROSECOND]),
    st.timedeltas(-timedelta(days=2), timedelta(days=40)),
)
texts = st.sampled_from([None, "", "acme", "tokens", "login", "espresso", " ", "ω", "'; DROP TABLE x; --"])
rows = st.builds(
    lambda organization_id, event_type, quantity, occurred_at, lag: {
        "organization_id": organization_id,
        "event_type": event_type,
        "quantity": quantity,
        "occurred_at": occurred_at,
        "recorded_at": (occurred_at if isinstance(occurred_at, datetime) else NOON) + lag,
    },
    texts,
    texts,
    quantities,
    st.one_of(
        st.none(),
        st.sampled_from(["infinity", "-infinity"]),
        st.datetimes(NOON.replace(tzinfo=None) - timedelta(days=60), NOON.replace(tzinfo=None), timezones=st.just(UTC)),
    ),
    lags,
)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=st.lists(rows, min_size=1, max_size=80))
def test_the_contract_in_pandera_and_in_sql_agree_on_every_row(connection, database_url, batch):
    connection.execute("DELETE FROM public.billable_events")
    connection.execute("DELETE FROM quarantined_events")
    copy_events(connection, (event(event_id=f"e{number}", **row) for number, row in enumerate(batch)))

    validate(connection, database_url, since=NOON - timedelta(days=200))

    in_sql = dict(
        connection.execute(
            "SELECT event_id, coalesce(contract_fault(event_id, organization_id, event_type, quantity, occurred_at, "
            "recorded_at), CASE WHEN event_type <> ALL (%s) THEN 'event_type_unknown' END) FROM public.billable_events",
            (sorted(CATALOGUE.known_event_types),),
        ).fetchall()
    )
    assert quarantine(connection) == {event_id: reason for event_id, reason in in_sql.items() if reason}
    assert {reason for reason in in_sql.values() if reason} <= set(ROW_RULES)


def test_a_mended_row_leaves_quarantine_by_itself(connection, database_url):
    insert_events(connection, event(event_id="bad", quantity=None))
    validate(connection, database_url)

    connection.execute("UPDATE public.billable_events SET quantity = 1")
    validate(connection, database_url, since=NOW)

    assert quarantine(connection) == {}
    first_seen_at, mended_at = connection.execute("SELECT first_seen_at, mended_at FROM quarantined_events").fetchone()
    assert (first_seen_at, mended_at) == (NOW, NOW)


def test_an_empty_lookback_is_not_a_pass(connection, database_url):
    report = validate(connection, database_url)

    assert [fault.reason for fault in report.faults] == ["lookback_empty"]
    assert not report.passed


@pytest.mark.parametrize(
    ("drift", "named"),
    [
        ("ALTER TABLE public.billable_events RENAME quantity TO amount", "quantity: absent, expected numeric"),
        (
            "ALTER TABLE public.billable_events ALTER quantity TYPE float8",
            "quantity: double precision, expected numeric",
        ),
        (
            "ALTER TABLE public.billable_events ALTER occurred_at TYPE timestamp",
            "occurred_at: timestamp without time zone, expected timestamp with time zone",
        ),
    ],
)
def test_drift_of_the_source_is_reported_before_anything_is_read(connection, database_url, drift, named):
    insert_events(connection, event())
    connection.execute(drift)

    report = validate(connection, database_url)

    assert (report.rows_read, report.passed) == (0, False)
    assert report.faults[0].samples == (named,)


def test_a_failed_contract_closes_the_gate_only_when_failing_closed(connection, database_url):
    validate(connection, database_url, source="public.nothing_here")

    require_contract(connection, fail_closed=False)
    with pytest.raises(ContractBlocked, match=r"source_missing.*Mend the source"):
        require_contract(connection, fail_closed=True)


def test_the_source_may_be_a_view_under_another_name(connection, database_url):
    insert_events(connection, event(event_id="bad", quantity=None))
    connection.execute('CREATE VIEW public."Usage of today" AS SELECT * FROM public.billable_events')

    assert validate(connection, database_url, source="public.Usage of today").quarantined == 1
