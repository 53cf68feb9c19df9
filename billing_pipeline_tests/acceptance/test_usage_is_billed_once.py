"""The promises of the usage flow, kept against a real database and a stateful Stripe.

The judge is the simulator's own journal, compared with sums that these tests make from the rows they wrote.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import dagster as dg
import pytest

from billing_pipeline.definitions import defs
from billing_pipeline.domain.contract_rules import RULES
from billing_pipeline.reconciliation.reconcile import reconcile
from billing_pipeline.settings import Settings
from billing_pipeline.stripe_simulator.faults import Fault, FaultKind, Faults
from billing_pipeline.stripe_simulator.wire import Request
from billing_pipeline.usage import resubmit
from billing_pipeline.usage.aggregate import Scope
from billing_pipeline.usage.flush import flush
from billing_pipeline.usage.gate import durability_faults
from billing_pipeline_tests.builders import billable_event, insert_events
from billing_pipeline_tests.fix_flow import counted_by_stripe

HOUR = timedelta(hours=1)
THIS_HOUR = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
CLOSED = THIS_HOUR - 3 * HOUR
"""An hour that closed long enough ago to be cut."""


def test_usage_reaches_stripe_once_and_is_confirmed(flow, bill, simulator):
    customers = bill("acme", "globex")
    insert_events(
        flow.connection,
        billable_event(quantity=Decimal(40), occurred_at=CLOSED),
        billable_event(quantity=Decimal(2), occurred_at=CLOSED + timedelta(minutes=59)),
        billable_event(quantity=Decimal(5), occurred_at=CLOSED, organization_id="globex"),
        billable_event(quantity=None, occurred_at=CLOSED, event_type="prompt_tokens"),
    )

    report = flush(flow)

    assert (report.submit.accepted, report.confirm.confirmed) == (2, 2)
    assert counted_by_stripe(simulator) == {
        (customers["acme"], "prompt_tokens", CLOSED): 42,
        (customers["globex"], "prompt_tokens", CLOSED): 5,
    }


def test_a_second_flush_sends_nothing(flow, bill, simulator):
    bill("acme")
    insert_events(flow.connection, billable_event(quantity=Decimal(3), occurred_at=CLOSED))
    flush(flow)
    before = counted_by_stripe(simulator)

    report = flush(flow)

    assert report.submit.attempts == 0
    assert counted_by_stripe(simulator) == before


def test_late_usage_becomes_a_second_entry_not_an_edit(flow, bill, simulator):
    customers = bill("acme")
    insert_events(flow.connection, billable_event(quantity=Decimal(10), occurred_at=CLOSED))
    flush(flow)
    insert_events(
        flow.connection, billable_event(quantity=Decimal(7), occurred_at=CLOSED, recorded_at=datetime.now(UTC))
    )

    flush(flow)

    values = [row[0] for row in flow.connection.execute("SELECT value FROM ledger_entries ORDER BY entry_id")]
    assert values == [10, 7]
    assert counted_by_stripe(simulator) == {(customers["acme"], "prompt_tokens", CLOSED): 17}


@pytest.mark.parametrize(
    ("change", "left"),
    [
        ("UPDATE public.billable_events SET quantity = 4 WHERE event_id = 'x'", 5),
        ("DELETE FROM public.billable_events WHERE event_id = 'x'", 1),
        ("UPDATE public.billable_events SET event_type = 'session_started' WHERE event_id = 'x'", 1),
        ("DELETE FROM public.billable_events", 0),
    ],
)
def test_a_row_changed_or_deleted_upstream_becomes_a_negative_entry(flow, bill, simulator, change, left):
    customers = bill("acme")
    insert_events(
        flow.connection,
        billable_event(event_id="x", quantity=Decimal(10), occurred_at=CLOSED),
        billable_event(quantity=Decimal(1), occurred_at=CLOSED),
    )
    flush(flow)

    flow.connection.execute(change)
    # Nothing tells of a deleted row; the daily full scope finds it.
    flow.aggregate(Scope.FULL)
    flush(flow)

    assert counted_by_stripe(simulator) == {(customers["acme"], "prompt_tokens", CLOSED): left}


def test_an_open_window_waits_for_its_end_and_grace(flow, bill, simulator):
    bill("acme")
    insert_events(flow.connection, billable_event(occurred_at=datetime.now(UTC) - timedelta(seconds=1)))

    report = flush(flow)

    assert report.aggregation.windows_changed == 1
    assert report.cut.entries == 0
    assert counted_by_stripe(simulator) == {}


def test_usage_of_an_unmapped_organization_is_owed_and_flows_once_it_is_mapped(flow, bill, simulator):
    insert_events(flow.connection, billable_event(quantity=Decimal(9), occurred_at=CLOSED))
    flush(flow)
    assert counted_by_stripe(simulator) == {}
    owed = reconcile(flow.connection, settings=flow.settings, now=flow.clock())
    assert [(d.kind, d.units) for d in owed.differences] == [("unmapped", 9)]

    customers = bill("acme")
    flush(flow)

    assert counted_by_stripe(simulator) == {(customers["acme"], "prompt_tokens", CLOSED): 9}


def test_a_quarantined_row_that_is_mended_upstream_is_billed_by_the_next_flush(flow, bill, simulator):
    customers = bill("acme")
    insert_events(flow.connection, billable_event(event_id="bad", quantity=Decimal("NaN"), occurred_at=CLOSED))
    assert flush(flow).contract.quarantined == 1
    assert counted_by_stripe(simulator) == {}

    flow.connection.execute("UPDATE public.billable_events SET quantity = 6 WHERE event_id = 'bad'")
    flush(flow)

    assert counted_by_stripe(simulator) == {(customers["acme"], "prompt_tokens", CLOSED): 6}


def test_an_hour_that_changes_customer_bills_each_side(flow, simulator, bill):
    customers = bill("old-acme", "new-acme")
    flow.connection.execute("DELETE FROM customer_mappings")
    change = CLOSED + timedelta(minutes=30, seconds=12)
    for customer, during in ((customers["old-acme"], f"(,{change})"), (customers["new-acme"], f"[{change},)")):
        flow.connection.execute(
            "INSERT INTO customer_mappings (organization_id, stripe_customer_id, valid_during) VALUES ('acme', %s, %s)",
            (customer, during),
        )
    insert_events(
        flow.connection,
        billable_event(quantity=Decimal(1), occurred_at=change - timedelta(microseconds=1)),
        billable_event(quantity=Decimal(2), occurred_at=change),
    )

    flush(flow)

    assert counted_by_stripe(simulator) == {
        (customers["old-acme"], "prompt_tokens", CLOSED): 1,
        (customers["new-acme"], "prompt_tokens", CLOSED): 2,
    }


def test_the_dagster_job_bills_and_reconciles(flow, bill, simulator, settings, monkeypatch):
    customers = bill("acme")
    insert_events(flow.connection, billable_event(quantity=Decimal(8), occurred_at=CLOSED))
    use_environment(monkeypatch, settings)

    with dg.DagsterInstance.ephemeral() as instance:
        result = defs.resolve_job_def("usage_flush").execute_in_process(instance=instance)

    assert result.success
    assert counted_by_stripe(simulator) == {(customers["acme"], "prompt_tokens", CLOSED): 8}
    assert {check.check_name: check.passed for check in result.get_asset_check_evaluations()} == {
        **dict.fromkeys(RULES, True),
        "nothing_is_on_hold": True,
        "database_keeps_what_it_commits": not durability_faults(flow.connection),
        "ledger_invariants_hold": True,
        "source_ledger_and_stripe_agree": True,
        "usage_is_sent_in_time": True,
        "meter_events_get_through": True,
        "doubt_is_settled_in_time": True,
    }


@pytest.mark.slow
def test_d07_a_stripe_that_never_answers_sees_each_entry_three_times_in_a_run(
    flow, bill, simulator, settings, monkeypatch
):
    bill("acme")
    insert_events(flow.connection, billable_event(quantity=Decimal(8), occurred_at=CLOSED))
    use_environment(monkeypatch, settings)
    # Just longer than an entry waits: 5 s, then 10.
    monkeypatch.setattr(resubmit, "PAUSES_SECONDS", (6, 11))
    monkeypatch.setattr(resubmit, "JITTER_PART", 100)
    sent: list[str] = []

    def fails(number: int, request: Request) -> Fault | None:
        if identifier := request.path == "/v1/billing/meter_events" and request.params.get("identifier"):
            sent.append(identifier)
            return Fault(FaultKind.ERROR_500_BEFORE)
        return None

    monkeypatch.setattr(simulator.core, "_faults", Faults(fails))
    with dg.DagsterInstance.ephemeral() as instance:
        result = defs.resolve_job_def("usage_flush").execute_in_process(instance=instance, raise_on_error=False)

    [(identifier,)] = flow.connection.execute("SELECT identifier FROM ledger_entries").fetchall()
    [(attempts,)] = flow.connection.execute("SELECT count(*) FROM attempts").fetchall()
    assert result.success  # so the run is not tried again: what is owed goes out in the next one
    assert (sent.count(identifier), attempts) == (3, 3)
    assert counted_by_stripe(simulator) == {}


def test_a_failed_contract_blocks_the_run_and_the_stage_behind_it(flow, bill, simulator, settings, monkeypatch):
    bill("acme")
    insert_events(flow.connection, billable_event(occurred_at=CLOSED))
    flow.connection.execute("ALTER TABLE public.billable_events RENAME COLUMN quantity TO amount")
    use_environment(monkeypatch, settings)
    monkeypatch.setenv("STRIPE_BILLING_CONTRACT_FAIL_CLOSED", "1")

    whole = defs.resolve_job_def("usage_flush").execute_in_process(raise_on_error=False)
    alone = dg.materialize(
        list(defs.assets or []),
        selection=["ledger_entries"],
        resources=dict(defs.resources or {}),
        raise_on_error=False,
    )

    assert not whole.success
    assert not alone.success
    assert "source_columns_wrong" in str(alone.failure_data_for_node("ledger_entries").error)
    assert counted_by_stripe(simulator) == {}


def use_environment(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    """A run reads its settings from the environment, as a worker of its own would."""
    monkeypatch.setenv("BILLING_STATE_DIR", str(settings.billing_state_dir))
    monkeypatch.setenv("DATABASE_URL", settings.database_url.get_secret_value())
    monkeypatch.setenv("STRIPE_SECRET_KEY", settings.stripe_key)
    monkeypatch.setenv("STRIPE_API_BASE", settings.stripe_api_base)
    monkeypatch.setenv("ENABLE_BILLING", "1")
    monkeypatch.setenv("BILLING_MODE", "live")
