"""A source that changes between two flushes is noticed before a row is read: told, or refused where it must be."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from psycopg.errors import LockNotAvailable

from billing_pipeline.database.connection import connect
from billing_pipeline.database.source import read_again
from billing_pipeline.domain.contract_rules import RULES, Part
from billing_pipeline.errors import ContractBlocked
from billing_pipeline.settings import load_settings
from billing_pipeline.usage import source_contract
from billing_pipeline.usage.aggregate import Scope
from billing_pipeline.usage.contract import Severity, latest_report
from billing_pipeline.usage.flush import flush
from billing_pipeline_tests.fix_flow import counted_by_stripe

CLOSED = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=5)

TABLE = """
    CREATE TYPE public.kind AS ENUM ('prompt_tokens', 'generated_tokens', 'trial');
    CREATE TABLE public.events (event_id text PRIMARY KEY, organization_id text, event_type public.kind,
                                amount integer, occurred_at timestamptz, recorded_at timestamptz DEFAULT now(),
                                properties jsonb);
    CREATE INDEX ON public.events (occurred_at);
    CREATE INDEX ON public.events (recorded_at)"""


@pytest.fixture
def counted(flow, bill):
    """A flow that has billed one row of a table; no meter counts its label `trial`."""
    flow.connection.execute(TABLE)
    changes = {"billing_source_relation": "public.events", "billing_source_columns": "quantity=amount"}
    flow.settings = load_settings(**flow.settings.model_dump() | changes)
    bill("acme")
    record(flow, "a", 7)
    flush(flow)
    return flow


def record(flow, event_id, amount, kind="prompt_tokens"):
    flow.connection.execute(
        "INSERT INTO public.events VALUES (%s, 'acme', %s, %s, %s)", (event_id, kind, amount, CLOSED)
    )


def source_faults_of(report):
    return [(f.reason, f.severity, f.samples) for f in report.faults if f.reason.startswith("source_")]


def units(simulator):
    return sum(counted_by_stripe(simulator).values())


BLOCKING = [
    (
        "ALTER TABLE public.events RENAME amount TO total",
        "ALTER TABLE public.events RENAME total TO amount",
        "source_column_missing",
        "quantity (amount): integer → absent",
    ),
    (
        "ALTER TABLE public.events ALTER amount TYPE float8",
        "ALTER TABLE public.events ALTER amount TYPE integer",
        "source_column_type_changed",
        "quantity (amount): integer → double precision (double precision, expected numeric; a float is not exact, so "
        "give numeric in a view: round(amount::numeric, 6) AS quantity)",
    ),
    (
        "ALTER TABLE public.events ALTER occurred_at TYPE timestamp",
        "ALTER TABLE public.events ALTER occurred_at TYPE timestamptz",
        "source_column_type_changed",
        "occurred_at: timestamp with time zone → timestamp without time zone (timestamp without time zone, expected "
        "timestamp with time zone; say in a view which zone it is in: occurred_at AT TIME ZONE 'UTC' AS occurred_at)",
    ),
    (
        "ALTER TYPE public.kind RENAME VALUE 'prompt_tokens' TO 'input_tokens'",
        "ALTER TYPE public.kind RENAME VALUE 'input_tokens' TO 'prompt_tokens'",
        "source_enum_narrowed",
        "event_type: prompt_tokens, generated_tokens, trial → input_tokens, generated_tokens, trial "
        "(without prompt_tokens; meters count prompt_tokens)",
    ),
]


@pytest.mark.parametrize(("drift", "mended", "reason", "detail"), BLOCKING)
@pytest.mark.parametrize("validates", [True, False])
def test_what_cannot_be_counted_any_more_bills_and_takes_back_nothing_until_it_is_mended(
    counted, simulator, drift, mended, reason, detail, validates
):
    changes = {"stripe_billing_validate_contract_before_flush": validates}
    counted.settings = load_settings(**counted.settings.model_dump() | changes)
    record(counted, "b", 5)
    counted.connection.execute(drift)

    for _ in range(2):
        with pytest.raises(ContractBlocked) as refusal:
            flush(counted, scope=Scope.FULL)
        assert f"{reason}: {detail}" in str(refusal.value)
    assert units(simulator) == 7

    counted.connection.execute(mended)
    flush(counted, scope=Scope.FULL)
    assert units(simulator) == 12


@pytest.mark.parametrize(("drift", "reason", "detail"), [(drift, *told) for drift, _, *told in BLOCKING])
def test_a_blocking_drift_is_a_fault_of_the_table_and_no_row_is_read(counted, drift, reason, detail):
    counted.connection.execute(drift)

    report = counted.validate_contract(Scope.FULL)

    assert (report.rows_read, report.passed) == (0, False)
    assert (reason, Severity.TABLE, (detail,)) in source_faults_of(report)
    assert RULES[reason].part is Part.SOURCE


NOTICED = [
    (
        "ALTER TYPE public.kind ADD VALUE 'espresso'",
        "source_enum_widened",
        "event_type: prompt_tokens, generated_tokens, trial → prompt_tokens, generated_tokens, trial, espresso "
        "(with espresso; not in the catalogue, so its rows would wait in quarantine: espresso)",
    ),
    (
        "ALTER TYPE public.kind RENAME TO old_kind;"
        "CREATE TYPE public.kind AS ENUM ('prompt_tokens', 'generated_tokens');"
        "ALTER TABLE public.events ALTER event_type TYPE public.kind USING event_type::text::public.kind",
        "source_enum_narrowed",
        "event_type: prompt_tokens, generated_tokens, trial → prompt_tokens, generated_tokens (without trial)",
    ),
    (
        "ALTER TABLE public.events ALTER amount TYPE numeric(20, 3)",
        "source_column_type_changed",
        "quantity (amount): integer → numeric(20,3)",
    ),
    (
        "ALTER TABLE public.events ALTER event_type TYPE text",
        "source_column_type_changed",
        "event_type: kind → text",
    ),
    (
        "ALTER TABLE public.events DROP COLUMN properties",
        "source_column_missing",
        "properties: jsonb → absent",
    ),
    (
        "ALTER TABLE public.events RENAME TO kept; CREATE VIEW public.events AS TABLE public.kept",
        "source_kind_changed",
        "table → view",
    ),
]


@pytest.mark.parametrize(("drift", "reason", "detail"), NOTICED)
def test_what_can_still_be_counted_is_told_once_and_billed(counted, simulator, drift, reason, detail):
    counted.connection.execute(drift)
    record(counted, "b", 5)

    first, second = flush(counted).contract, flush(counted).contract

    assert source_faults_of(first) == [(reason, Severity.NOTICE, (detail,))]
    assert source_faults_of(second) == []
    assert first.passed
    assert units(simulator) == 12


def test_drift_between_validation_and_aggregation_of_one_flush_is_refused_too(counted, simulator):
    record(counted, "b", 5)
    assert counted.validate_contract().passed
    counted.connection.execute("ALTER TABLE public.events ALTER amount TYPE float8")

    with pytest.raises(ContractBlocked, match="source_column_type_changed"):
        counted.aggregate()
    assert units(simulator) == 7


def test_drift_after_the_source_was_looked_at_is_refused_behind_the_lock(counted, simulator):
    looked_at = counted.read_source()
    counted.connection.execute("ALTER TABLE public.events ALTER amount TYPE float8")
    counted.read_source = lambda: looked_at

    with pytest.raises(ContractBlocked, match="source_column_type_changed"):
        counted.aggregate()


def test_nobody_changes_the_source_between_the_last_look_and_the_count(counted, database_url, monkeypatch):
    refused = []

    def meanwhile(*args):
        with connect(database_url) as other, pytest.raises(LockNotAvailable):
            other.execute("SET lock_timeout = '100ms'; ALTER TABLE public.events ALTER amount TYPE float8")
        refused.append(True)
        return read_again(*args)

    monkeypatch.setattr(source_contract, "read_again", meanwhile)
    counted.aggregate()

    assert refused == [True]


def test_a_mapping_that_names_another_column_is_told_with_both(counted, simulator):
    counted.connection.execute("ALTER TABLE public.events ADD total integer; UPDATE public.events SET total = 9")
    changes = {"billing_source_columns": "quantity=total"}
    counted.settings = load_settings(**counted.settings.model_dump() | changes)

    report = flush(counted, scope=Scope.FULL).contract

    assert source_faults_of(report) == [("source_column_remapped", Severity.NOTICE, ("quantity: amount → total",))]
    assert units(simulator) == 9


def test_a_mapping_to_a_column_that_is_not_there_is_named_as_set(counted):
    changes = {"billing_source_columns": "quantity=totl"}
    counted.settings = load_settings(**counted.settings.model_dump() | changes)

    with pytest.raises(ContractBlocked, match=r"source_column_missing: quantity \(totl\): integer → absent"):
        flush(counted)


def test_a_removed_label_that_the_catalogue_no_longer_counts_is_only_told(counted, simulator):
    counted.connection.execute("ALTER TYPE public.kind RENAME VALUE 'generated_tokens' TO 'output_tokens'")
    with pytest.raises(ContractBlocked, match="source_enum_narrowed"):
        flush(counted)

    meters = tuple(meter for meter in counted.catalogue.meters if "generated_tokens" not in meter.event_types)
    counted.catalogue = type(counted.catalogue)(meters, counted.catalogue.ignored_event_types, "next")
    flush(counted)

    assert {fault.reason for fault in latest_report(counted.connection).faults} == {
        "source_enum_narrowed",
        "source_enum_widened",
    }
    assert units(simulator) == 7


def test_each_relation_has_a_memory_of_its_own(counted, simulator):
    counted.connection.execute(
        "CREATE VIEW public.other AS SELECT event_id, organization_id, event_type, amount::numeric"
        " AS amount, occurred_at, recorded_at FROM public.events"
    )
    counted.settings = load_settings(**counted.settings.model_dump() | {"billing_source_relation": "public.other"})

    assert source_faults_of(flush(counted).contract) == []
    assert counted.connection.execute("SELECT relation, kind FROM source_shapes ORDER BY 1").fetchall() == [
        ("public.events", "table"),
        ("public.other", "view"),
    ]


def test_a_shape_that_stays_is_written_once(counted):
    def seen():
        return counted.connection.execute("SELECT xmin::text, changed_at FROM source_shapes").fetchall()

    before = seen()
    flush(counted)

    assert seen() == before
