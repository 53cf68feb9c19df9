"""What is not settled stays in sight, and what Stripe shows too much of is found, on a real ledger."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest

from billing_pipeline.reconciliation.invariants import violations
from billing_pipeline.reconciliation.reconcile import reconcile
from billing_pipeline.usage.aggregate import Scope
from billing_pipeline.usage.flush import flush
from billing_pipeline_tests.builders import billable_event, insert_events
from billing_pipeline_tests.fix_aggregation import catalogue_of

HOUR = timedelta(hours=1)


@pytest.fixture
def closed(flow):
    """An hour that closed long enough ago to be cut."""
    return flow.clock().replace(minute=0, second=0, microsecond=0) - 5 * HOUR


def found(flow):
    report = reconcile(flow.connection, settings=flow.settings, now=flow.clock())
    return [(str(difference.kind), difference.units) for difference in report.differences]


def test_a_billed_and_confirmed_hour_has_no_difference(flow, bill, closed):
    bill("acme")
    insert_events(flow.connection, billable_event(quantity=Decimal(10), occurred_at=closed))

    flush(flow)

    assert found(flow) == []


def test_rows_since_the_last_aggregation_are_named(flow, bill, closed):
    bill("acme")
    flush(flow)
    insert_events(flow.connection, billable_event(quantity=Decimal(10), occurred_at=closed))

    assert found(flow) == [("not_aggregated", 10)]


def test_a_rest_of_less_than_a_unit_is_a_fraction_and_no_fault(flow, bill, closed):
    bill("acme")
    insert_events(
        flow.connection,
        *(billable_event(quantity=Decimal("0.7"), occurred_at=closed - hours * HOUR) for hours in range(2)),
    )
    flush(flow)

    report = reconcile(flow.connection, settings=flow.settings, now=flow.clock())

    months = {(closed - hours * HOUR).month for hours in range(2)}
    assert found(flow) == [("fraction", Decimal("0.4") if len(months) == 1 else Decimal("1.4"))]
    assert report.faults == ()


def test_a_lost_unit_is_a_fault(flow, bill, closed):
    bill("acme")
    insert_events(flow.connection, billable_event(quantity=Decimal(10), occurred_at=closed))
    flow.aggregate()
    flow.connection.execute("UPDATE usage_windows SET target = target - 1")

    report = reconcile(flow.connection, settings=flow.settings, now=flow.clock())

    assert [(str(fault.kind), fault.units) for fault in report.faults] == [("miscarried", 1)]


def test_foreign_usage_in_one_hour_is_a_fault_whatever_is_on_its_way_in_another(flow, bill, closed):
    customers = bill("acme")
    insert_events(flow.connection, billable_event(quantity=Decimal(10), occurred_at=closed))
    flush(flow)
    insert_events(flow.connection, billable_event(quantity=Decimal(5), occurred_at=closed - HOUR))
    flow.aggregate(Scope.FULL)
    flow.cut()
    flow.connection.execute(
        "UPDATE meter_summaries SET observed = 15, observed_at = %s WHERE stripe_customer_id = %s",
        (flow.clock(), customers["acme"]),
    )

    assert found(flow) == [("in_flight", 5), ("unexplained", -5)]


def test_usage_that_stripe_shows_where_the_ledger_has_none_is_a_fault(flow, bill, closed):
    customers = bill("acme")
    flush(flow)
    flow.connection.execute(
        "INSERT INTO meter_summaries VALUES (%s, 'prompt_tokens', %s, 5, %s)", (customers["acme"], closed, flow.clock())
    )

    assert found(flow) == [("unexplained", -5)]


def test_a_summary_read_before_the_confirmation_is_no_fault(flow, bill, closed):
    bill("acme")
    insert_events(flow.connection, billable_event(quantity=Decimal(10), occurred_at=closed))
    flush(flow)
    flow.connection.execute("UPDATE meter_summaries SET observed = 0, observed_at = observed_at - interval '1 hour'")

    assert found(flow) == []


def test_a_summary_that_drops_after_the_confirmation_is_a_fault(flow, bill, closed):
    bill("acme")
    insert_events(flow.connection, billable_event(quantity=Decimal(10), occurred_at=closed))
    flush(flow)
    flow.connection.execute("UPDATE meter_summaries SET observed = 4, observed_at = %s", (flow.clock(),))

    assert found(flow) == [("unexplained", 6)]


@pytest.mark.parametrize("stage", ["aggregated", "cut"])
def test_what_was_never_settled_stays_in_sight_after_months(flow, bill, closed, stage):
    bill("acme")
    insert_events(flow.connection, billable_event(quantity=Decimal(10), occurred_at=closed))
    flow.aggregate()
    if stage == "cut":
        flow.cut()
    later = flow.clock() + timedelta(days=100)
    flow.clock = lambda: later

    assert found(flow) == [("in_flight" if stage == "cut" else "not_cut", 10)]


def test_a_changed_catalogue_makes_no_difference_for_the_hours_before_it(flow, bill, closed):
    bill("acme")
    insert_events(flow.connection, billable_event(quantity=Decimal(10), occurred_at=closed))
    flush(flow)
    flow.catalogue = catalogue_of('[meters.other]\nevent_types = ["prompt_tokens"]\naggregation = "count"')
    flow.aggregate(Scope.FULL)

    assert found(flow) == []
    assert (
        violations(flow.connection, settings=flow.settings, mark=0, now=flow.clock(), invariants=("v13_completeness",))
        == []
    )
