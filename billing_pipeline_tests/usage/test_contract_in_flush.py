"""The contract inside a flush: what breaks a row, or a whole source, never bills wrongly and never stops the others."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from billing_pipeline.errors import ContractBlocked
from billing_pipeline.usage.aggregate import Scope
from billing_pipeline.usage.flush import flush
from billing_pipeline_tests.builders import billable_event, insert_events
from billing_pipeline_tests.fix_flow import counted_by_stripe

CLOSED = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=5)


def units(simulator):
    return sum(counted_by_stripe(simulator).values())


def quarantine(flow):
    return dict(
        flow.connection.execute("SELECT event_id, reason FROM quarantined_events WHERE mended_at IS NULL").fetchall()
    )


def with_settings(flow, **changes):
    flow.settings = flow.settings.model_copy(update=changes)


def test_times_that_python_cannot_hold_stop_nobody_else(flow, bill, simulator):
    bill("acme")
    strange = ["infinity", "-infinity", "58165-03-10 12:00+00", "294276-12-31 23:59:59+00", "0044-03-15 12:00+00 BC"]
    insert_events(
        flow.connection,
        *(billable_event(event_id=at, occurred_at=at, recorded_at=datetime.now(UTC)) for at in strange),
        *(billable_event(event_id=f"recorded {at}", occurred_at=CLOSED, recorded_at=at) for at in strange),
        billable_event(occurred_at=CLOSED),
    )

    flush(flow)
    flush(flow, scope=Scope.FULL)

    assert units(simulator) == 1
    assert quarantine(flow) == dict.fromkeys([*strange, *(f"recorded {at}" for at in strange)], "time_out_of_range")


def test_a_full_flush_finds_rows_that_were_broken_after_they_were_counted(flow, bill, simulator):
    bill("acme")
    flow.connection.execute("ALTER TABLE public.billable_events ALTER recorded_at DROP NOT NULL")
    insert_events(
        flow.connection,
        billable_event(event_id="no quantity", occurred_at=CLOSED, quantity=Decimal(7)),
        billable_event(event_id="no recorded_at", occurred_at=CLOSED, quantity=Decimal(5)),
        billable_event(occurred_at=CLOSED),
    )
    flush(flow)
    flow.connection.execute("UPDATE public.billable_events SET quantity = NULL WHERE event_id = 'no quantity'")
    flow.connection.execute("UPDATE public.billable_events SET recorded_at = NULL WHERE event_id = 'no recorded_at'")

    assert flush(flow, scope=Scope.FULL).contract.rows_read == 3

    assert quarantine(flow) == {"no quantity": "quantity_missing", "no recorded_at": "recorded_at_missing"}


def test_validation_and_aggregation_of_a_flush_look_equally_far(flow, bill, simulator):
    bill("acme")
    long_recorded = datetime.now(UTC) - timedelta(hours=2)
    insert_events(flow.connection, billable_event(occurred_at=CLOSED, recorded_at=long_recorded))
    start = flow.clock()

    first, second = flush(flow), flush(flow)
    # The aggregation asks later than the validation: what falls due in between is validated whole.
    flow.clock = lambda: start + timedelta(hours=23, minutes=30)
    nearly_due = flow.validate_contract()

    assert (first.aggregation.scope, first.contract.rows_read) == (Scope.FULL, 1)
    assert (second.aggregation.scope, second.contract.rows_read) == (Scope.TOUCHED, 0)
    assert nearly_due.rows_read == 1


def test_events_are_counted_without_a_quantity_that_no_meter_sums(flow, bill, simulator):
    customers = bill("acme")
    insert_events(
        flow.connection,
        billable_event(event_type="api_request", quantity=None, occurred_at=CLOSED),
        billable_event(event_type="api_request", quantity=Decimal(3), occurred_at=CLOSED),
        billable_event(event_type="session_started", quantity=None, occurred_at=CLOSED),
    )

    flush(flow)

    assert counted_by_stripe(simulator) == {(customers["acme"], "api_requests", CLOSED): 2}
    assert quarantine(flow) == {}


@pytest.mark.parametrize("validates", [True, False])
def test_a_source_that_may_hold_an_event_twice_bills_nothing(flow, bill, simulator, validates):
    bill("acme")
    insert_events(flow.connection, billable_event(occurred_at=CLOSED))
    flow.connection.execute(
        "CREATE VIEW public.twice AS TABLE public.billable_events UNION ALL TABLE public.billable_events"
    )
    with_settings(flow, billing_source_relation="public.twice", stripe_billing_validate_contract_before_flush=validates)

    with pytest.raises(ContractBlocked, match=r"public\.twice cannot be counted \(event_id_not_unique"):
        flush(flow)

    assert counted_by_stripe(simulator) == {}


def test_a_missing_source_is_told_in_one_sentence(flow):
    with_settings(flow, billing_source_relation="public.nothing_here")

    with pytest.raises(ContractBlocked, match=r"cannot be counted \(source_missing: public\.nothing_here\)"):
        flush(flow)


def test_a_stage_run_by_hand_can_do_no_more_than_the_flush_when_failing_closed(flow, bill, simulator):
    bill("acme")
    insert_events(flow.connection, billable_event(occurred_at=CLOSED))
    with_settings(flow, stripe_billing_contract_fail_closed=True)
    flow.aggregate()

    for stage in (flow.cut, flow.submit):
        with pytest.raises(ContractBlocked, match=r"there was none yet"):
            stage()
    assert flow.connection.execute("SELECT count(*) FROM ledger_entries").fetchone() == (0,)

    flush(flow)
    assert units(simulator) == 1


def test_a_source_is_counted_through_a_plain_view(flow, bill, simulator):
    bill("acme")
    insert_events(flow.connection, billable_event(occurred_at=CLOSED))
    flow.connection.execute("CREATE VIEW public.usage AS SELECT * FROM public.billable_events WHERE quantity > 0")
    with_settings(flow, billing_source_relation="public.usage")

    flush(flow)

    assert units(simulator) == 1
