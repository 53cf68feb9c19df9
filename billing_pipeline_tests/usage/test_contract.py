"""Bad rows neither vanish nor stop the good ones, and both statements of the contract agree on every row."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from psycopg.sql import SQL

from billing_pipeline.domain.catalogue import parse_catalogue
from billing_pipeline.domain.reach import FUTURE_MAX
from billing_pipeline.errors import ContractBlocked
from billing_pipeline.usage.contract import (
    latest_report,
    require_contract,
    rows_in_quarantine,
    validate_contract,
)
from billing_pipeline.usage.counting import verdicts
from billing_pipeline.usage.meter_versions import keep_meter_versions
from billing_pipeline.usage.row_contract import PAST_MAX, ROW_RULES
from billing_pipeline.usage.source_contract import require_countable
from billing_pipeline_tests.builders import NOON, billable_event, copy_events, insert_events, source_of

CATALOGUE = parse_catalogue(
    """
    ignored_event_types = ["login"]
    [meters.tokens]
    event_types = ["tokens", "call"]
    aggregation = "sum"
    [meters.requests]
    event_types = ["request", "call"]
    aggregation = "count"
    [meters.members]
    event_types = ["member"]
    aggregation = "unique"
    property = "user"
    """,
    origin="test",
)
NOW = NOON + timedelta(days=1)
FRESH = timedelta(minutes=55)
MICROSECOND = timedelta(microseconds=1)


def validate(connection, database_url, **overrides):
    options = {
        "source": source_of(connection),
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


@pytest.fixture
def unrecorded(connection):
    """A source that, as a view's may, lets recorded_at be missing."""
    connection.execute("ALTER TABLE public.billable_events ALTER recorded_at DROP NOT NULL")


UNHOLDABLE = [
    "infinity",
    "-infinity",
    "58165-03-10 12:00+00",
    "294276-12-31 23:59:59.999999+00",
    "4713-01-01 00:00+00 BC",
    "0001-12-31 23:59:59.999999+00 BC",
    "10000-01-01 00:00+00",
    "9999-12-31 00:00+00",
]
"""Times that PostgreSQL knows and Python cannot hold, or whose window would end at one."""

HOLDABLE = ["0001-01-01 00:00+00", "9999-12-30 23:59:59.999999+00"]


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        ({"organization_id": None}, "organization_id_missing"),
        ({"organization_id": ""}, "organization_id_missing"),
        ({"event_type": None}, "event_type_missing"),
        ({"event_type": "espresso"}, "event_type_unknown"),
        ({"quantity": None}, "quantity_missing"),
        ({"quantity": None, "event_type": "call"}, "quantity_missing"),
        ({"quantity": Decimal(-1), "event_type": "request"}, "quantity_negative"),
        ({"quantity": None, "event_type": "espresso"}, "event_type_unknown"),
        ({"quantity": Decimal("NaN")}, "quantity_not_finite"),
        ({"quantity": Decimal("Infinity")}, "quantity_not_finite"),
        ({"quantity": Decimal("-0.000000000001")}, "quantity_negative"),
        ({"quantity": Decimal(10**15)}, "quantity_too_many_digits"),
        ({"quantity": Decimal("0.0000000000001")}, "quantity_too_many_digits"),
        ({"occurred_at": None}, "occurred_at_missing"),
        ({"recorded_at": None}, "recorded_at_missing"),
        ({"occurred_at": "infinity"}, "time_out_of_range"),
        ({"recorded_at": "infinity"}, "time_out_of_range"),
        ({"recorded_at": NOON - FUTURE_MAX - MICROSECOND}, "occurred_at_in_future"),
        ({"recorded_at": NOON + PAST_MAX + MICROSECOND}, "occurred_at_too_old"),
    ],
)
@pytest.mark.usefixtures("unrecorded")
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
        {"event_type": "login", "quantity": None},
        {"event_type": "request", "quantity": None},
        {"occurred_at": HOLDABLE[0], "recorded_at": HOLDABLE[0]},
        {"occurred_at": HOLDABLE[1], "recorded_at": HOLDABLE[1]},
    ],
)
def test_a_row_on_the_edge_is_good(connection, database_url, edge):
    insert_events(connection, event(**edge))

    report = validate(connection, database_url, since=datetime.min.replace(tzinfo=UTC))

    assert (report.rows_read, report.quarantined) == (1, 0)


def test_a_time_that_python_cannot_hold_is_a_fault_of_its_row(connection, database_url):
    every = [NOON, *UNHOLDABLE]
    pairs = {f"{occurred} {recorded}": (occurred, recorded) for occurred in every for recorded in every}
    copy_events(
        connection,
        (event(event_id=name, occurred_at=pair[0], recorded_at=pair[1]) for name, pair in pairs.items()),
    )

    validate(connection, database_url, since=NOON)
    validate(connection, database_url)

    assert set(quarantine(connection).values()) == {"time_out_of_range"}
    assert f"{NOON} {NOON}" not in quarantine(connection)


def test_a_time_that_python_cannot_hold_is_kept_as_null(connection, database_url):
    insert_events(
        connection, event(event_id="far", occurred_at=UNHOLDABLE[2]), event(event_id="negative", quantity=Decimal(-1))
    )
    validate(connection, database_url)

    kept = dict(connection.execute("SELECT event_id, occurred_at FROM quarantined_events").fetchall())
    assert kept == {"far": None, "negative": NOON}


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
texts = st.sampled_from(
    [
        None,
        "",
        "acme",
        "tokens",
        "call",
        "request",
        "member",
        "member",
        "login",
        "espresso",
        " ",
        "ω",
        "'; DROP TABLE x; --",
    ]
)
strange_times = st.sampled_from([None, *UNHOLDABLE, *HOLDABLE])
times = st.datetimes(NOON.replace(tzinfo=None) - timedelta(days=60), NOON.replace(tzinfo=None), timezones=st.just(UTC))
lagging = st.builds(lambda occurred_at, lag: (occurred_at, occurred_at + lag), times, lags)
rows = st.builds(
    lambda organization_id, event_type, quantity, both, properties: {
        "organization_id": organization_id,
        "event_type": event_type,
        "quantity": quantity,
        "occurred_at": both[0],
        "recorded_at": both[1],
        "properties": properties,
    },
    texts,
    texts,
    quantities,
    st.one_of(lagging, lagging, st.tuples(st.one_of(strange_times, times), st.one_of(strange_times, times))),
    st.sampled_from([None, {}, {"user": None}, {"user": ""}, {"user": "ann"}, {"user": 7}, {"user": {"id": 7}}]),
)


FIELDS = (("organization_id",), ("event_type", "properties"), ("quantity",), ("occurred_at", "recorded_at"))
GOOD = {"organization_id": "acme", "event_type": "tokens", "quantity": Decimal(1), "occurred_at": NOON}
nearly_good = st.builds(
    lambda row, fields: GOOD | {"recorded_at": NOON, "properties": None} | {name: row[name] for name in fields},
    rows,
    st.sampled_from(FIELDS),
)
"""One thing may be wrong with it; of rows made up of chance alone nearly every one has two faults."""
AT_THE_EDGES = [
    GOOD | {"properties": None, "recorded_at": NOON, "quantity": quantity}
    for quantity in map(Decimal, ("0", "1e15", "999999999999999.999999999999", "0.0000000000001", "0.1000000000000"))
] + [
    GOOD | {"properties": None, "recorded_at": NOON + lag}
    for lag in (-FUTURE_MAX, -FUTURE_MAX - MICROSECOND, PAST_MAX, PAST_MAX + MICROSECOND)
]


@pytest.mark.usefixtures("unrecorded")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=st.lists(rows, min_size=1, max_size=80))
def test_the_contract_in_pandera_and_in_sql_agree_on_every_row(connection, database_url, batch):
    connection.execute("DELETE FROM public.billable_events")
    connection.execute("DELETE FROM quarantined_events")
    copy_events(connection, (event(event_id=f"e{number}", **row) for number, row in enumerate(batch)))

    validate(connection, database_url, lookback=timedelta(days=200))

    # What lies wholly before the lookback is neither counted nor read.
    in_sql = dict(
        connection.execute(
            "SELECT event_id, coalesce(contract_fault(event_id, organization_id, event_type, quantity, occurred_at, "
            "recorded_at, event_type = ANY (%s), event_type = 'member' AND coalesce(properties ->> 'user', '') = ''), "
            "CASE WHEN event_type <> ALL (%s) THEN 'event_type_unknown' END) "
            "FROM public.billable_events WHERE recorded_at IS NULL OR greatest(occurred_at, recorded_at) >= %s",
            (sorted(CATALOGUE.summed_event_types), sorted(CATALOGUE.known_event_types), NOW - timedelta(days=200)),
        ).fetchall()
    )
    assert quarantine(connection) == {event_id: reason for event_id, reason in in_sql.items() if reason}
    assert {reason for reason in in_sql.values() if reason} <= set(ROW_RULES)


@pytest.mark.usefixtures("unrecorded")
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batch=st.lists(rows | nearly_good, min_size=1, max_size=80))
@example(batch=AT_THE_EDGES)
def test_what_is_plainly_good_is_what_the_contract_finds_no_fault_in(connection, batch):
    keep_meter_versions(connection, CATALOGUE, start_at=NOW - timedelta(days=20), now=NOW)
    connection.execute("DELETE FROM public.billable_events")
    copy_events(connection, (event(event_id=f"e{number}", **row) for number, row in enumerate(batch)))
    for missing in (SQL("false"), SQL("coalesce(s.properties ->> 'user', '') = ''")):
        verdict = verdicts(connection, {"property_missing": missing})
        differing = SQL("SELECT s FROM public.billable_events s WHERE {is_good} IS DISTINCT FROM ({fault} IS NULL)")

        assert connection.execute(differing.format(**verdict)).fetchall() == []


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
            "quantity: double precision, expected numeric; a float is not exact, so give numeric in a view: "
            "round(quantity::numeric, 6) AS quantity",
        ),
        (
            "ALTER TABLE public.billable_events ALTER occurred_at TYPE timestamp",
            "occurred_at: timestamp without time zone, expected timestamp with time zone; say in a view which zone it "
            "is in: occurred_at AT TIME ZONE 'UTC' AS occurred_at",
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
    validate(connection, database_url, source=source_of(connection, "public.nothing_here"))

    require_contract(connection, fail_closed=False, now=NOW, age_max=FRESH)
    with pytest.raises(ContractBlocked, match=r"source_missing.*Mend the source"):
        require_contract(connection, fail_closed=True, now=NOW, age_max=FRESH)


def test_failing_closed_wants_a_recent_validation(connection, database_url):
    require_contract(connection, fail_closed=False, now=NOW, age_max=FRESH)
    with pytest.raises(ContractBlocked, match=r"there was none yet.*Run the whole flush"):
        require_contract(connection, fail_closed=True, now=NOW, age_max=FRESH)

    insert_events(connection, event())
    assert validate(connection, database_url).passed

    require_contract(connection, fail_closed=True, now=NOW + FRESH, age_max=FRESH)
    require_contract(connection, fail_closed=False, now=NOW + FRESH + MICROSECOND, age_max=FRESH)
    with pytest.raises(ContractBlocked, match=r"the last was at 2026-03-11 12:00 UTC; at most 0:55:00 old"):
        require_contract(connection, fail_closed=True, now=NOW + FRESH + MICROSECOND, age_max=FRESH)


SOURCES_THAT_HOLD_AN_EVENT_ONCE = [
    'CREATE VIEW public."its source" AS SELECT * FROM public.billable_events',
    'CREATE VIEW public."its source" AS SELECT * FROM public.billable_events WHERE quantity > 0',
    'CREATE VIEW public."its source" AS SELECT DISTINCT ON (event_id) * FROM public.billable_events'
    " ORDER BY event_id, recorded_at",
    'CREATE TABLE public."its source" (LIKE public.billable_events);'
    'CREATE UNIQUE INDEX ON public."its source" (event_id)',
    'CREATE MATERIALIZED VIEW public."its source" AS SELECT * FROM public.billable_events;'
    'CREATE UNIQUE INDEX ON public."its source" (event_id)',
    'CREATE TABLE public."its source" (LIKE public.billable_events, PRIMARY KEY (event_id))'
    " PARTITION BY HASH (event_id);"
    'CREATE TABLE public.one PARTITION OF public."its source" FOR VALUES WITH (MODULUS 1, REMAINDER 0)',
]

SOURCES_THAT_MAY_HOLD_ONE_TWICE = [
    'CREATE TABLE public."its source" (LIKE public.billable_events)',
    'CREATE TABLE public."its source" (LIKE public.billable_events); CREATE INDEX ON public."its source" (event_id)',
    'CREATE TABLE public."its source" (LIKE public.billable_events);'
    'CREATE UNIQUE INDEX ON public."its source" (event_id, occurred_at)',
    'CREATE TABLE public."its source" (LIKE public.billable_events);'
    'CREATE UNIQUE INDEX ON public."its source" (event_id) WHERE quantity > 0',
    'CREATE TABLE public."its source" (LIKE public.billable_events);'
    'CREATE UNIQUE INDEX ON public."its source" (lower(event_id))',
    'CREATE TABLE public."its source" (LIKE public.billable_events, UNIQUE (event_id) DEFERRABLE INITIALLY DEFERRED)',
    'CREATE VIEW public."its source" AS TABLE public.billable_events UNION ALL TABLE public.billable_events',
    'CREATE VIEW public."its source" AS SELECT s.* FROM public.billable_events s, generate_series(1, 2)',
    'CREATE MATERIALIZED VIEW public."its source" AS SELECT * FROM public.billable_events',
    'CREATE TABLE public."its source" (LIKE public.billable_events, PRIMARY KEY (event_id, occurred_at))'
    " PARTITION BY RANGE (occurred_at)",
    'CREATE TABLE public."its source" (LIKE public.billable_events, PRIMARY KEY (event_id));'
    'CREATE TABLE public.more () INHERITS (public."its source")',
]


@pytest.mark.parametrize("made_by", SOURCES_THAT_HOLD_AN_EVENT_ONCE)
def test_a_source_that_provably_holds_an_event_once_is_counted(connection, database_url, made_by):
    insert_events(connection, event())
    connection.execute(made_by)

    require_countable(connection, source_of(connection, "public.its source"), CATALOGUE)
    assert "event_id_not_unique" not in {
        f.reason for f in validate(connection, database_url, source=source_of(connection, "public.its source")).faults
    }


@pytest.mark.parametrize("made_by", SOURCES_THAT_MAY_HOLD_ONE_TWICE)
def test_a_source_that_may_hold_an_event_twice_is_never_counted(connection, database_url, made_by):
    insert_events(connection, event())
    connection.execute(made_by)

    report = validate(connection, database_url, source=source_of(connection, "public.its source"))

    assert ([fault.reason for fault in report.faults], report.rows_read) == (["event_id_not_unique"], 0)
    with pytest.raises(ContractBlocked, match=r"event_id_not_unique: make a unique index on event_id.*flush again"):
        require_countable(connection, source_of(connection, "public.its source"), CATALOGUE)


def test_the_source_may_be_a_view_under_another_name(connection, database_url):
    insert_events(connection, event(event_id="bad", quantity=None))
    connection.execute('CREATE VIEW public."Usage of today" AS SELECT * FROM public.billable_events')

    assert validate(connection, database_url, source=source_of(connection, "public.Usage of today")).quarantined == 1


@pytest.mark.usefixtures("unrecorded")
@pytest.mark.parametrize("recorded_at", [None, "-infinity", NOON - timedelta(days=90)])
def test_the_whole_lookback_finds_a_row_that_was_broken_without_being_recorded_again(
    connection, database_url, recorded_at
):
    insert_events(connection, event(event_id="x"))
    validate(connection, database_url)

    connection.execute("UPDATE public.billable_events SET quantity = NULL, recorded_at = %s", (recorded_at,))
    validate(connection, database_url)

    assert quarantine(connection) == {"x": "quantity_missing"}


def test_a_row_that_waits_in_quarantine_is_told_until_it_is_mended(connection, database_url):
    insert_events(connection, event(event_id="bad", quantity=None), event())
    validate(connection, database_url)

    validate(connection, database_url, since=NOW)

    assert latest_report(connection).quarantined == 0
    assert [(fault.reason, fault.count, fault.samples) for fault in rows_in_quarantine(connection)] == [
        ("quantity_missing", 1, ("bad",))
    ]
    connection.execute("UPDATE public.billable_events SET quantity = 1")
    validate(connection, database_url, since=NOW)
    assert rows_in_quarantine(connection) == []


@pytest.mark.slow
def test_a_hundred_thousand_bad_rows_are_quarantined_at_once(connection, database_url):
    copy_events(connection, (event(event_id=f"e{number}", quantity=None) for number in range(100_000)))

    assert validate(connection, database_url).quarantined == 100_000
    assert connection.execute("SELECT count(*) FROM quarantined_events").fetchone() == (100_000,)


def test_properties_must_be_there_only_where_a_meter_reads_them(connection, database_url):
    connection.execute("ALTER TABLE public.billable_events DROP COLUMN properties")
    plain = parse_catalogue('[meters.tokens]\nevent_types = ["tokens"]\naggregation = "sum"', origin="test")

    needed = validate(connection, database_url)
    assert [(fault.reason, fault.samples) for fault in needed.faults] == [
        ("source_columns_wrong", ("properties: absent, expected jsonb",))
    ]
    assert not needed.source_was_read
    assert validate(connection, database_url, catalogue=plain).source_was_read


def test_properties_that_hours_were_counted_by_must_stay(aggregator, database_url):
    aggregator.catalogue = parse_catalogue(
        '[meters.tokens]\nevent_types = ["tokens"]\naggregation = "sum"\nfilter = { tier = "pro" }', origin="test"
    )
    insert_events(aggregator.connection, event(properties={"tier": "pro"}))
    aggregator()
    aggregator.catalogue = parse_catalogue(
        '[meters.tokens]\nevent_types = ["tokens"]\naggregation = "sum"', origin="test"
    )
    aggregator.connection.execute("ALTER TABLE public.billable_events DROP COLUMN properties")

    with pytest.raises(ContractBlocked, match="properties: absent"):
        aggregator()


def test_an_event_type_may_have_a_percent_sign(connection, database_url):
    percent = parse_catalogue(
        '[meters.users]\nevent_types = ["50% off"]\naggregation = "unique"\nproperty = "100%"', origin="test"
    )
    insert_events(
        connection,
        event(event_id="without", event_type="50% off", properties={}),
        event(event_id="with", event_type="50% off", properties={"100%": "ann"}),
    )

    validate(connection, database_url, catalogue=percent)

    assert quarantine(connection) == {"without": "property_missing"}
