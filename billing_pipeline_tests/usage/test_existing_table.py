"""A team's own table is billed as it is: mapped by a setting, through whatever kind of relation, and never written."""

from __future__ import annotations

import os
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg.errors import InsufficientPrivilege
from psycopg.sql import SQL, Identifier

from billing_pipeline.database.connection import connect
from billing_pipeline.errors import ContractBlocked, ImportRefused
from billing_pipeline.reconciliation.invariants import violations
from billing_pipeline.reconciliation.reconcile import reconcile
from billing_pipeline.settings import load_settings
from billing_pipeline.usage.aggregate import Scope
from billing_pipeline.usage.flow import UsageFlow
from billing_pipeline.usage.flush import flush
from billing_pipeline.usage.import_events import own_source
from billing_pipeline_tests.fix_flow import counted_by_stripe
from billing_pipeline_tests.fix_postgres import require_superuser

COLUMNS = "event_id=id, organization_id=account_id, event_type=kind, quantity=amount, occurred_at=at, recorded_at=at"
CLOSED = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=5)

TABLE = """
    CREATE TYPE public.kind AS ENUM ('prompt_tokens', 'generated_tokens', 'session_started');
    CREATE TABLE public.events (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), account_id bigint NOT NULL,
                                kind public.kind NOT NULL, amount integer, at timestamptz NOT NULL, note text);
    CREATE INDEX ON public.events (at)"""


def settings_of(flow, **changes):
    return load_settings(**flow.settings.model_dump() | changes)


@pytest.fixture
def existing(flow, bill):
    """A flow over a table with other names and types, with customers for organizations 1 and 2."""
    flow.connection.execute(TABLE)
    flow.settings = settings_of(flow, billing_source_relation="public.events", billing_source_columns=COLUMNS)
    flow.customers = bill("1", "2")
    return flow


def record(flow, *rows, table="events"):
    with flow.connection.cursor() as cursor:
        cursor.executemany(f"INSERT INTO public.{table} (account_id, kind, amount, at) VALUES (%s, %s, %s, %s)", rows)


def require_reconciled(flow):
    report = reconcile(flow.connection, settings=flow.settings, now=flow.clock())
    assert [(side.source_units, side.stated) for side in report.sides if side.source_units != side.stated] == []
    assert report.faults == ()
    mark = flow.mark.read()
    assert violations(flow.connection, settings=flow.settings, mark=mark.attempt_id, now=flow.clock()) == []


def test_a_table_of_other_names_and_types_is_billed_through_a_mapping(existing, simulator):
    record(
        existing, (1, "prompt_tokens", 7, CLOSED), (1, "prompt_tokens", 5, CLOSED), (2, "session_started", 1, CLOSED)
    )
    record(existing, (2, "generated_tokens", None, CLOSED))
    report = flush(existing)

    assert [(fault.reason, fault.count) for fault in report.contract.faults] == [("quantity_missing", 1)]
    key = (existing.customers["1"], "prompt_tokens", CLOSED)
    assert counted_by_stripe(simulator) == {key: 12}

    # Only that it left quarantine tells of this row: its time is the old one.
    existing.connection.execute("UPDATE public.events SET amount = 9 WHERE amount IS NULL")
    assert flush(existing).aggregation.scope is Scope.TOUCHED
    existing.connection.execute("UPDATE public.events SET amount = 3 WHERE amount = 7")
    flush(existing, scope=Scope.FULL)

    assert counted_by_stripe(simulator) == {key: 8, (existing.customers["2"], "generated_tokens", CLOSED): 9}
    require_reconciled(existing)


@pytest.mark.parametrize(
    "made_by",
    [
        "CREATE VIEW public.source AS SELECT * FROM public.events",
        "CREATE MATERIALIZED VIEW public.source AS TABLE public.events; CREATE UNIQUE INDEX ON public.source (id)",
        "CREATE TABLE public.source (LIKE public.events, PRIMARY KEY (id)) PARTITION BY HASH (id);"
        "CREATE TABLE public.half PARTITION OF public.source FOR VALUES WITH (MODULUS 2, REMAINDER 0);"
        "CREATE TABLE public.rest PARTITION OF public.source FOR VALUES WITH (MODULUS 2, REMAINDER 1);"
        "INSERT INTO public.source TABLE public.events",
    ],
    ids=["view", "materialized view", "partitioned table"],
)
def test_every_kind_of_relation_is_billed_through_a_mapping(existing, simulator, made_by):
    record(existing, (1, "prompt_tokens", 7, CLOSED), (1, "prompt_tokens", 5, CLOSED))
    existing.connection.execute(made_by)
    existing.settings = settings_of(existing, billing_source_relation="public.source")

    flush(existing)

    assert sum(counted_by_stripe(simulator).values()) == 12
    require_reconciled(existing)


MONTHLY = """
    CREATE TABLE public.monthly (id text, account_id bigint, kind text, amount numeric, at timestamptz,
                                 PRIMARY KEY (id, at)) PARTITION BY RANGE (at);
    CREATE TABLE public.ancient PARTITION OF public.monthly FOR VALUES FROM (MINVALUE) TO ('{ancient}');
    CREATE TABLE public.before PARTITION OF public.monthly FOR VALUES FROM ('{ancient}') TO ('{edge}');
    CREATE TABLE public.after PARTITION OF public.monthly FOR VALUES FROM ('{edge}') TO (MAXVALUE);
    CREATE INDEX ON public.monthly (at);
    CREATE VIEW public.once AS
    SELECT DISTINCT ON (id) * FROM public.monthly WHERE at >= now() - interval '70 days' ORDER BY id, at"""


@pytest.fixture
def monthly(existing):
    """The same usage in a table that is partitioned by time, whose key must hold the time."""
    edge = CLOSED - timedelta(days=2)
    existing.connection.execute(MONTHLY.format(edge=edge, ancient=CLOSED - timedelta(days=90)))
    for an_id, at in (("a", CLOSED), ("b", edge - timedelta(hours=1)), ("b", edge + timedelta(hours=1))):
        existing.connection.execute("INSERT INTO public.monthly VALUES (%s, 1, 'prompt_tokens', 10, %s)", (an_id, at))
    return existing


def test_a_table_partitioned_by_time_is_refused_because_it_may_hold_an_event_twice(monthly, simulator):
    monthly.settings = settings_of(monthly, billing_source_relation="public.monthly")

    with pytest.raises(ContractBlocked, match=r"event_id_not_unique.*DISTINCT ON"):
        flush(monthly)
    assert counted_by_stripe(simulator) == {}


def test_a_view_that_takes_each_event_of_a_partitioned_table_once_is_billed_once(monthly, simulator):
    monthly.settings = settings_of(monthly, billing_source_relation="public.once")

    flush(monthly)

    earlier = CLOSED - timedelta(days=2, hours=1)
    customer = monthly.customers["1"]
    assert counted_by_stripe(simulator) == {
        (customer, "prompt_tokens", CLOSED): 10,
        (customer, "prompt_tokens", earlier): 10,
    }
    require_reconciled(monthly)


def test_a_view_with_a_bound_reads_no_partition_before_it(monthly):
    monthly.settings = settings_of(monthly, billing_source_relation="public.once")
    plan = SQL("EXPLAIN (ANALYZE, COSTS OFF, FORMAT TEXT) SELECT FROM {source} s WHERE s.recorded_at >= now()")
    lines = "\n".join(row[0] for row in monthly.connection.execute(plan.format(**monthly.read_source().parts)))

    assert "on before" in lines
    assert "on after" in lines
    assert "ancient" not in lines


@pytest.mark.parametrize("relation", ["events", "seen"])
def test_the_source_needs_no_right_but_select(existing, simulator, relation):
    existing.connection.execute("CREATE VIEW public.seen AS TABLE public.events")
    existing.settings = settings_of(existing, billing_source_relation=f"public.{relation}")
    admin, role = existing.connection, f"billing_reader_{os.getpid()}"
    require_superuser(admin)
    name = Identifier(role)
    admin.execute(SQL("CREATE ROLE {} LOGIN PASSWORD 'reader'").format(name))
    try:
        admin.execute(SQL("GRANT ALL ON SCHEMA billing_pipeline TO {}").format(name))
        for kind in ("TABLES", "SEQUENCES"):
            admin.execute(SQL("GRANT ALL ON ALL {} IN SCHEMA billing_pipeline TO {}").format(SQL(kind), name))
        admin.execute(SQL("GRANT SELECT ON {} TO {}").format(Identifier("public", relation), name))
        record(existing, (1, "prompt_tokens", 7, CLOSED), (2, "generated_tokens", None, CLOSED))
        user = conninfo_to_dict(existing.settings.database_url.get_secret_value())["user"]
        url = existing.settings.database_url.get_secret_value().replace(f"//{user}", f"//{role}:reader", 1)
        with connect(url) as connection:
            poor = UsageFlow(connection, url, existing.settings, holder="test")
            with pytest.raises(InsufficientPrivilege), connection.transaction():
                connection.execute(SQL("UPDATE {} SET amount = 1").format(Identifier("public", relation)))
            flush(poor)
            admin.execute("UPDATE public.events SET amount = 2 WHERE amount IS NULL")
            flush(poor, scope=Scope.FULL)
            require_reconciled(poor)
        assert sum(counted_by_stripe(simulator).values()) == 9
    finally:
        admin.execute(SQL("DROP OWNED BY {}").format(name))
        admin.execute(SQL("DROP ROLE {}").format(name))


@pytest.mark.parametrize(
    ("declared", "named"),
    [
        ("amount double precision", "quantity (amount): double precision, expected numeric; a float is not exact"),
        ("amount real", "quantity (amount): real, expected numeric; a float is not exact"),
        ("at timestamp", "AT TIME ZONE 'UTC' AS occurred_at"),
    ],
)
def test_a_type_that_is_not_exact_is_refused_with_what_to_do(existing, simulator, declared, named):
    column, found = declared.split(" ", 1)
    record(existing, (1, "prompt_tokens", 7, CLOSED))
    existing.connection.execute(f"ALTER TABLE public.events ALTER {column} TYPE {found}")

    with pytest.raises(ContractBlocked) as refusal:
        flush(existing)

    assert "source_columns_wrong" in str(refusal.value)
    assert named in str(refusal.value)
    assert counted_by_stripe(simulator) == {}


def test_a_column_that_is_mapped_and_absent_is_named_as_both(existing):
    existing.settings = settings_of(existing, billing_source_columns=COLUMNS + ", properties=payload")

    with pytest.raises(ContractBlocked, match=r"properties \(payload\): absent, expected jsonb"):
        flush(existing)


def test_a_foreign_table_needs_what_proves_its_events_unique(existing):
    existing.connection.execute(
        "CREATE FOREIGN DATA WRAPPER elsewhere; CREATE SERVER elsewhere FOREIGN DATA WRAPPER elsewhere;"
        "CREATE FOREIGN TABLE public.remote (id uuid, account_id bigint, kind text, amount numeric, at timestamptz)"
        " SERVER elsewhere"
    )
    existing.settings = settings_of(existing, billing_source_relation="public.remote")

    with pytest.raises(ContractBlocked, match=r"event_id_not_unique: .*DISTINCT ON"):
        flush(existing)


def test_files_are_imported_only_into_the_source_that_this_project_makes(flow):
    assert own_source(flow.settings) == "public.billable_events"

    with pytest.raises(
        ImportRefused, match=r"BILLING_SOURCE_RELATION names public\.events and BILLING_SOURCE_COLUMNS maps"
    ):
        own_source(settings_of(flow, billing_source_relation="public.events", billing_source_columns="event_id=id"))
    assert own_source(settings_of(flow, billing_source_columns="event_id=event_id"))


def test_quantities_keep_every_digit_through_the_mapping(existing, simulator):
    existing.connection.execute("ALTER TABLE public.events ALTER amount TYPE numeric(20, 4)")
    record(existing, (1, "prompt_tokens", Decimal("123456789012345.0001"), CLOSED))

    flush(existing)

    found = existing.connection.execute("SELECT quantity FROM usage_windows").fetchall()
    assert found == [(Decimal("123456789012345.0001"),)]
