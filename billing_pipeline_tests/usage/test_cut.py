"""One hour corrected again and again: its minutes last, a person is asked in time, and no unit goes astray.

The judge is the simulator's journal; the clock of ledger and simulator is moved by hand.
"""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest

from billing_pipeline.domain.catalogue import parse_catalogue
from billing_pipeline.domain.cuts import COALESCE_FROM, HOLD_FROM
from billing_pipeline.errors import UserError
from billing_pipeline.reconciliation.invariants import violations
from billing_pipeline.reconciliation.reconcile import reconcile
from billing_pipeline.usage.aggregate import Scope
from billing_pipeline.usage.flush import flush
from billing_pipeline.usage.hold import held_windows, release_windows
from billing_pipeline_tests.builders import billable_event, insert_events, map_customer
from billing_pipeline_tests.fix_flow import counted_by_stripe

HOUR = timedelta(hours=1)
MINUTE = timedelta(minutes=1)


@pytest.fixture
def closed(flow):
    """An hour that closed long enough ago to be cut."""
    return flow.clock().replace(minute=0, second=0, microsecond=0) - 5 * HOUR


@pytest.fixture
def wait(flow, simulator):
    """Let time pass for the ledger and for Stripe."""
    clock, passed = flow.clock, timedelta(0)
    flow.clock = lambda: clock() + passed

    def wait(**duration):
        nonlocal passed
        passed += timedelta(**duration)
        simulator.core.clock.advance(**duration)

    return wait


def use(flow, at, quantity=1, **overrides):
    """Usage of the hour `at` that is recorded only now, and a flush."""
    row = {"quantity": Decimal(quantity), "occurred_at": at, "recorded_at": flow.clock()}
    insert_events(flow.connection, billable_event(**row | overrides))
    return flush(flow)


def found(flow):
    report = reconcile(flow.connection, settings=flow.settings, now=flow.clock())
    return [(str(difference.kind), difference.units) for difference in report.differences]


def broken(flow):
    return violations(flow.connection, settings=flow.settings, mark=flow.mark.read().attempt_id, now=flow.clock())


def test_e06_more_corrections_than_an_hour_has_minutes_wait_for_a_person(flow, bill, closed, simulator, wait):
    customers = bill("acme")
    lane = (customers["acme"], "prompt_tokens", closed)
    for _ in range(COALESCE_FROM):
        assert use(flow, closed).cut.entries == 1
    assert counted_by_stripe(simulator) == {lane: COALESCE_FROM}

    # The next corrections of the day wait together; they stay owed, in sight, and break no invariant.
    for _ in range(3):
        use(flow, closed)
    assert counted_by_stripe(simulator) == {lane: COALESCE_FROM}
    assert found(flow) == [("coalesced", 3)]
    wait(hours=23)
    assert use(flow, closed).cut.entries == 0
    assert broken(flow) == []
    wait(hours=1)
    assert flush(flow).cut.entries == 1
    assert counted_by_stripe(simulator) == {lane: COALESCE_FROM + 4}
    assert found(flow) == []

    # One a day from here on, until the last minutes; for them a person is asked.
    for _ in range(HOLD_FROM - COALESCE_FROM - 1):
        wait(days=1)
        assert use(flow, closed).cut.entries == 1
    wait(days=1)
    report = use(flow, closed, quantity=7)
    assert (report.cut.entries, report.cut.windows_held) == (0, 1)
    assert counted_by_stripe(simulator) == {lane: HOLD_FROM + 3}
    assert found(flow) == [("held", 7)]
    (held,) = held_windows(flow.connection, limit=5)
    assert (held.units, held.reason) == (7, "last_minutes_of_window_are_reserved")

    release_windows(flow.connection, [held.window_id], actor="Ann", reason="the importer is mended", now=flow.clock())
    assert flush(flow).cut.entries == 1
    assert counted_by_stripe(simulator) == {lane: HOLD_FROM + 10}
    assert found(flow) == []
    assert broken(flow) == []
    assert operations(flow) == [("release_hold", "Ann", "the importer is mended")]


def operations(flow):
    rows = flow.connection.execute("SELECT action, actor, reason FROM ledger_operations ORDER BY operation_id")
    return rows.fetchall()


def test_e06_windows_that_share_a_customer_share_its_minutes_and_borrow_one_beside_them(
    flow, bill, closed, simulator, wait
):
    """A window of three minutes, and its hour given to another organization of the same customer afterwards."""
    (customer,) = bill("acme").values()
    during = f"[{closed},{closed + 3 * MINUTE})"
    flow.connection.execute("UPDATE customer_mappings SET valid_during = %s", (during,))
    use(flow, closed, 10)
    wait(minutes=1)
    use(flow, closed, 5)
    flow.connection.execute("DELETE FROM customer_mappings")
    map_customer(flow.connection, "globex", customer, during)
    flow.connection.execute("UPDATE public.billable_events SET organization_id = 'globex'")
    flow.aggregate(Scope.FULL)

    # The last minute goes to the first of the two; the other has none left.
    wait(days=1, hours=1)
    report = flush(flow)

    assert (report.cut.entries, report.cut.windows_held) == (2, 0)
    assert broken(flow) == []
    assert sum(counted_by_stripe(simulator).values()) == 15
    slots = [row[0] for row in flow.connection.execute("SELECT slot_at FROM ledger_entries")]
    assert len(set(slots)) == len(slots) == 4


def test_e06_minutes_before_an_adopted_one_are_used(flow, bill, closed, simulator):
    bill("acme")
    use(flow, closed, 10)
    flow.connection.execute("ALTER TABLE ledger_entries DISABLE TRIGGER guard_statement")
    flow.connection.execute("UPDATE ledger_entries SET slot_at = %s", (closed + 59 * MINUTE,))
    flow.connection.execute("ALTER TABLE ledger_entries ENABLE TRIGGER guard_statement")

    assert use(flow, closed, 5).submit.accepted == 1

    slots = [row[0] for row in flow.connection.execute("SELECT slot_at FROM ledger_entries ORDER BY entry_id")]
    assert slots == [closed + 59 * MINUTE, closed]
    assert sum(counted_by_stripe(simulator).values()) == 15


def test_e06_the_minute_of_a_replaced_entry_is_not_used_again(flow, bill, closed, simulator):
    bill("acme")
    use(flow, closed, 10)
    flow.connection.execute("ALTER TABLE ledger_entries DISABLE TRIGGER guard_state")
    flow.connection.execute("UPDATE ledger_entries SET state = 'replaced'")
    flow.connection.execute("UPDATE usage_windows SET cut_due = true")

    flow.validate_contract()
    assert flow.cut().entries == 1

    slots = [row[0] for row in flow.connection.execute("SELECT slot_at FROM ledger_entries ORDER BY entry_id")]
    assert slots == [closed, closed + MINUTE]


def test_e07_a_correction_waits_for_the_proof_of_what_it_corrects(flow, bill, closed, simulator):
    """Refused after all, the first would leave Stripe with less than nothing."""
    bill("acme")
    insert_events(flow.connection, billable_event(event_id="x", quantity=Decimal(10), occurred_at=closed))
    flow.validate_contract()
    flow.aggregate()
    flow.cut()
    flow.submit()
    flow.connection.execute("DELETE FROM public.billable_events")
    flow.aggregate(Scope.FULL)

    report = flow.cut()

    assert (report.entries, report.windows_waiting) == (0, 1)
    assert ("waiting", -10) in found(flow)
    flow.confirm()
    assert flow.cut().units_taken_back == 10
    flow.submit()
    assert sum(counted_by_stripe(simulator).values()) == 0


def test_e07_an_entry_below_zero_is_found(flow, bill, closed):
    bill("acme")
    use(flow, closed, 10)
    flow.connection.execute(
        "INSERT INTO ledger_entries (window_id, sequence, epoch, stripe_customer_id, event_name, value, slot_at,"
        " identifier) SELECT window_id, 1, 0, stripe_customer_id, event_name, -11, slot_at + interval '1 minute', 'x'"
        " FROM ledger_entries"
    )

    assert [(row.invariant, row.detail) for row in broken(flow)] == [("v17_no_window_below_zero", "may come to -1")]


def test_a_refused_entry_is_stated_again_once_a_person_releases_it(flow, bill, closed, simulator):
    customers = bill("acme")
    insert_events(flow.connection, billable_event(quantity=Decimal(10), occurred_at=closed))
    flow.validate_contract()
    flow.aggregate()
    flow.cut()
    flow.connection.execute("UPDATE ledger_entries SET state = 'ambiguous', first_attempt_at = %s", (flow.clock(),))
    flow.connection.execute("UPDATE ledger_entries SET state = 'rejected', hold_reason = 'rejected_by_stripe'")
    flow.connection.execute("UPDATE usage_windows SET cut_due = true")
    assert flush(flow).cut.entries == 0
    (held,) = held_windows(flow.connection, limit=5)
    assert (held.units, held.reason) == (10, "rejected_by_stripe")

    release_windows(flow.connection, [held.window_id], actor="Ann", reason="meter reactivated", now=flow.clock())
    flush(flow)

    assert counted_by_stripe(simulator) == {(customers["acme"], "prompt_tokens", closed): 10}


def test_a_release_of_what_is_not_on_hold_changes_nothing(flow, bill, closed):
    bill("acme")
    use(flow, closed)

    with pytest.raises(UserError, match="not on hold are the windows 1, 77"):
        release_windows(flow.connection, [77, 1], actor="Ann", reason="x", now=flow.clock())

    assert operations(flow) == []


def test_an_hour_over_its_meters_brake_is_sent_only_as_far_as_a_person_let_it(flow, bill, closed, simulator):
    customers = bill("acme", "globex")
    text = '[meters.prompt_tokens]\nevent_types = ["prompt_tokens"]\naggregation = "sum"\nhour_max = 100\n'
    flow.catalogue = parse_catalogue(text, origin="test")
    acme, globex = ((customers[name], "prompt_tokens", closed) for name in ("acme", "globex"))

    use(flow, closed, quantity=100, organization_id="globex")
    report = use(flow, closed, quantity=101)
    assert (report.cut.entries, report.cut.windows_held) == (0, 1)
    assert counted_by_stripe(simulator) == {globex: 100}, "the others go on"
    assert found(flow) == [("held", 101)]
    (held,) = held_windows(flow.connection, limit=5)
    assert (held.organization_id, held.units, held.reason) == ("acme", 101, "more_than_the_meters_hour_max")

    release_windows(flow.connection, [held.window_id], actor="Ann", reason="asked the customer", now=flow.clock())
    flush(flow)
    assert counted_by_stripe(simulator) == {globex: 100, acme: 101}

    use(flow, closed, quantity=1)
    assert counted_by_stripe(simulator) == {globex: 100, acme: 101}, "no further than she saw"
    assert found(flow) == [("held", 1)]
    assert broken(flow) == []
