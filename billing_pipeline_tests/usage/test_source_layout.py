"""What indexes a source lacks is told as sentences to run, and running them is all it takes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from billing_pipeline.domain.catalogue import parse_catalogue
from billing_pipeline.usage.contract import Fault, Severity, validate_contract
from billing_pipeline.usage.source_layout import LARGE_ROWS, missing_indexes
from billing_pipeline_tests.builders import source_of

SINCE = datetime.now(UTC) - timedelta(days=35)
COLUMNS = """event_id=ID of it, organization_id=account, event_type=kind, quantity=amount,
             occurred_at=at, recorded_at=written"""
DEFINITION = """("ID of it" uuid, account integer, kind text, amount bigint, at timestamptz, written timestamptz)"""


def advice(connection, relation="public.events", columns=COLUMNS):
    return missing_indexes(connection, source_of(connection, relation, columns), since=SINCE)


def run(connection, missing):
    for one in missing:
        for statement in one.statements:
            connection.execute(statement)


def test_the_embedded_source_lacks_nothing(connection):
    assert advice(connection, "public.billable_events", "") == []


def test_a_table_without_indexes_is_told_what_to_run_and_that_is_all_it_takes(connection):
    connection.execute(f"CREATE TABLE public.events {DEFINITION}")

    missing = advice(connection)

    assert [str(one) for one in missing] == [
        'event_id: CREATE UNIQUE INDEX CONCURRENTLY ON "public"."events" ("ID of it")',
        'occurred_at: CREATE INDEX CONCURRENTLY ON "public"."events" ("at")',
        'recorded_at: CREATE INDEX CONCURRENTLY ON "public"."events" ("written")',
    ]
    run(connection, missing)
    assert advice(connection) == []


def test_one_column_that_is_two_of_ours_needs_one_index(connection):
    connection.execute(f"CREATE TABLE public.events {DEFINITION}")
    columns = COLUMNS.replace("recorded_at=written", "recorded_at=at")

    missing = advice(connection, columns=columns)
    assert [one.statements[0].partition('"events" ')[2] for one in missing] == ['("ID of it")', '("at")']
    run(connection, missing)
    assert advice(connection, columns=columns) == []


@pytest.mark.parametrize(
    "made_by", ["CREATE INDEX ON public.events (amount, at)", "CREATE INDEX ON public.events (at) WHERE amount > 5"]
)
def test_an_index_that_cannot_serve_is_none(connection, made_by):
    connection.execute(f"CREATE TABLE public.events {DEFINITION}")
    connection.execute(made_by)

    assert "occurred_at" in {one.column for one in advice(connection)}


def test_a_brin_index_serves_too(connection):
    connection.execute(f"CREATE TABLE public.events {DEFINITION}")
    connection.execute(
        "CREATE INDEX ON public.events USING brin (at); CREATE INDEX ON public.events USING brin (written)"
    )

    assert [one.column for one in advice(connection)] == ["event_id"]


def test_a_large_table_in_the_order_of_its_times_is_advised_brin(connection):
    connection.execute(f"CREATE TABLE public.events {DEFINITION}")
    connection.execute(
        "INSERT INTO public.events SELECT gen_random_uuid(), 1, 'a', 1, now() + g * interval '1 second', "
        "now() + random() * interval '1 day' FROM generate_series(1, 1000) g"
    )
    connection.execute("ANALYZE public.events")
    told = "UPDATE pg_class SET reltuples = %s WHERE oid = 'public.events'::regclass"
    sentence = 'occurred_at: CREATE INDEX CONCURRENTLY ON "public"."events" USING brin ("at")'

    connection.execute(told, (LARGE_ROWS - 1,))
    assert sentence not in [str(one) for one in advice(connection)]

    connection.execute(told, (LARGE_ROWS,))
    assert [str(one) for one in advice(connection) if one.column != "event_id"] == [
        sentence,
        # These times lie in no order.
        'recorded_at: CREATE INDEX CONCURRENTLY ON "public"."events" ("written")',
    ]
    run(connection, advice(connection))
    assert advice(connection) == []


def test_a_partitioned_table_gets_its_indexes_partition_by_partition(connection):
    connection.execute(
        f"""CREATE TABLE public.events {DEFINITION} PARTITION BY HASH ("ID of it");
        CREATE TABLE public.p0 PARTITION OF public.events FOR VALUES WITH (MODULUS 2, REMAINDER 0);
        CREATE TABLE public.p1 PARTITION OF public.events FOR VALUES WITH (MODULUS 2, REMAINDER 1);
        CREATE INDEX ON public.p1 (at)"""
    )
    missing = {one.column: one for one in advice(connection)}

    assert missing["occurred_at"].statements == (
        'CREATE INDEX CONCURRENTLY ON "public"."p0" ("at")',
        'CREATE INDEX ON "public"."events" ("at")',
    )
    assert "a partitioned table" in missing["event_id"].otherwise
    run(connection, missing.values())
    connection.execute('ALTER TABLE public.events ADD PRIMARY KEY ("ID of it")')
    assert advice(connection) == []
    indexes = connection.execute("SELECT count(*) FROM pg_indexes WHERE tablename = 'p1' AND indexdef LIKE '%(at)'")
    assert indexes.fetchone() == (1,)


def test_a_view_is_told_what_the_tables_behind_it_lack(connection):
    connection.execute(
        f"""CREATE TABLE public.raw {DEFINITION};
        ALTER TABLE public.raw ADD PRIMARY KEY ("ID of it");
        ALTER TABLE public.raw RENAME at TO "happened at";
        CREATE VIEW public.events AS
        SELECT "ID of it", account, kind, amount, "happened at" AS at, written FROM public.raw r WHERE amount > 0"""
    )
    missing = advice(connection)

    assert [(one.table, str(one)) for one in missing] == [
        ("public.raw", 'occurred_at: CREATE INDEX CONCURRENTLY ON "public"."raw" ("happened at")'),
        ("public.raw", 'recorded_at: CREATE INDEX CONCURRENTLY ON "public"."raw" ("written")'),
    ]
    run(connection, missing)
    assert advice(connection) == []


@pytest.mark.parametrize(
    "view",
    [
        """SELECT "ID of it", account, kind, amount, (at AT TIME ZONE 'UTC') AT TIME ZONE 'UTC' AS at, written
             FROM public.raw""",
        """SELECT DISTINCT ON ("ID of it") * FROM public.raw ORDER BY "ID of it", written""",
    ],
    ids=["computed", "distinct"],
)
def test_what_cannot_be_told_through_a_view_says_so(connection, view):
    connection.execute(
        f"""CREATE TABLE public.raw {DEFINITION};
        ALTER TABLE public.raw ADD PRIMARY KEY ("ID of it");
        CREATE INDEX ON public.raw (at); CREATE INDEX ON public.raw (written);
        CREATE VIEW public.events AS {view}"""
    )
    missing = {one.column: one for one in advice(connection)}

    assert missing["occurred_at"].statements == ()
    assert missing["occurred_at"].otherwise.startswith(
        "cannot tell: the view public.events asks public.raw for no plain"
    )


def test_an_index_on_what_a_view_computes_serves_it(connection):
    connection.execute(
        f"""CREATE TABLE public.raw {DEFINITION};
        ALTER TABLE public.raw ADD PRIMARY KEY ("ID of it"), ALTER at TYPE timestamp;
        CREATE INDEX ON public.raw (written); CREATE INDEX ON public.raw ((at AT TIME ZONE 'UTC'));
        CREATE VIEW public.events AS
        SELECT "ID of it", account, kind, amount, at AT TIME ZONE 'UTC' AS at, written FROM public.raw"""
    )
    assert advice(connection) == []


def test_a_missing_index_is_a_notice_of_the_contract(connection, database_url):
    connection.execute(f"CREATE TABLE public.events {DEFINITION}")
    connection.execute('ALTER TABLE public.events ADD PRIMARY KEY ("ID of it")')

    report = validate_contract(
        connection,
        database_url,
        source=source_of(connection, "public.events", COLUMNS),
        catalogue=parse_catalogue('[meters.a]\nevent_types = ["a"]\naggregation = "sum"\n', origin="test"),
        since=None,
        lookback=timedelta(days=30),
        now=datetime.now(UTC),
    )

    assert report.faults[-1] == Fault(
        "source_index_missing",
        Severity.NOTICE,
        2,
        (
            'occurred_at: CREATE INDEX CONCURRENTLY ON "public"."events" ("at")',
            'recorded_at: CREATE INDEX CONCURRENTLY ON "public"."events" ("written")',
        ),
    )
