"""Once an invoice is final, nothing more is sent for its period, and what changes is owed in everybody's sight.

The judge is the simulator's journal.
"""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest

from billing_pipeline.database.connection import connect
from billing_pipeline.domain.adoption import EntryAtMinute, Step, decide_adoption
from billing_pipeline.domain.seals import Period
from billing_pipeline.errors import GateClosed, UserError
from billing_pipeline.reconciliation.invariants import violations
from billing_pipeline.reconciliation.reconcile import reconcile
from billing_pipeline.usage.aggregate import Scope, aggregate
from billing_pipeline.usage.flush import flush
from billing_pipeline.usage.seal import owed_after_seal, seal
from billing_pipeline_tests.builders import billable_event, insert_events
from billing_pipeline_tests.cli.command import billing_pipeline
from billing_pipeline_tests.fix_flow import counted_by_stripe

HOUR = timedelta(hours=1)


@pytest.fixture
def closed(flow):
    """An hour of a period that is over, in the middle of a month and of the reach."""
    return flow.clock().replace(minute=0, second=0, microsecond=0) - 12 * HOUR


@pytest.fixture
def close_period(flow, closed):
    """Seal the four hours from `closed` on for a customer."""

    def close_period(customer, *, event_name=None, leave_owed=False, start=closed, end=closed + 4 * HOUR):
        return seal(
            flow.connection,
            Period(customer, event_name, start, end),
            leave_owed=leave_owed,
            closed_before=flow.clock() - HOUR,
            actor="Ann",
            reason="invoice in_1 is final",
            now=flow.clock(),
        )

    return close_period


def use(flow, at, quantity, **overrides):
    row = {"quantity": Decimal(quantity), "occurred_at": at, "recorded_at": flow.clock()}
    insert_events(flow.connection, billable_event(**row | overrides))


def found(flow):
    report = reconcile(flow.connection, settings=flow.settings, now=flow.clock())
    return [(str(difference.kind), difference.units) for difference in report.differences]


def broken(flow):
    return violations(flow.connection, settings=flow.settings, mark=flow.mark.read().attempt_id, now=flow.clock())


def sealed_windows(flow):
    return flow.connection.execute("SELECT count(*) FROM usage_windows WHERE sealed_at IS NOT NULL").fetchone()[0]


def test_late_usage_of_a_sealed_period_is_never_sent_and_shown_as_owed(flow, bill, closed, simulator, close_period):
    customers = bill("acme", "globex")
    for organization_id in customers:
        use(flow, closed, 10, organization_id=organization_id)
    flush(flow)
    report = close_period(customers["acme"])
    assert (report.windows, report.windows_owed) == (1, 0)
    before = counted_by_stripe(simulator)

    use(flow, closed, 3)
    use(flow, closed, 4, organization_id="globex")
    flush(flow)

    after = counted_by_stripe(simulator)
    assert {key: after[key] - before[key] for key in after} == {
        (customers["acme"], "prompt_tokens", closed): 0,
        (customers["globex"], "prompt_tokens", closed): 4,
    }
    assert found(flow) == [("owed_after_seal", 3)]
    assert [(owed.organization_id, owed.meter, owed.units) for owed in owed_after_seal(flow.connection)] == [
        ("acme", "prompt_tokens", 3)
    ]
    assert broken(flow) == []
    # The truth goes on: a window's target is what the source says, sealed or not.
    assert flow.connection.execute("SELECT max(target) FROM usage_windows").fetchone() == (14,)
    later = flow.clock() + timedelta(days=100)
    flow.clock = lambda: later
    assert ("owed_after_seal", 3) in found(flow), "age does not hide it"


def test_usage_taken_back_after_the_seal_is_owed_to_the_customer_and_not_sent(
    flow, bill, closed, simulator, close_period
):
    (customer,) = bill("acme").values()
    use(flow, closed, 10, event_id="x")
    flush(flow)
    close_period(customer)

    flow.connection.execute("UPDATE public.billable_events SET quantity = 4")
    flow.aggregate(Scope.FULL)
    flush(flow)

    assert sum(counted_by_stripe(simulator).values()) == 10
    assert found(flow) == [("owed_after_seal", -6)]


def test_an_hour_without_usage_that_gets_some_after_the_seal_is_sealed_too(flow, bill, closed, simulator, close_period):
    (customer,) = bill("acme").values()
    use(flow, closed, 10)
    flush(flow)
    close_period(customer)

    use(flow, closed + 2 * HOUR, 5)
    use(flow, closed + 5 * HOUR, 7)
    flush(flow)

    assert counted_by_stripe(simulator) == {
        (customer, "prompt_tokens", closed): 10,
        (customer, "prompt_tokens", closed + 5 * HOUR): 7,
    }
    assert found(flow) == [("owed_after_seal", 5)]
    assert broken(flow) == []


def test_a_window_of_a_sealed_period_that_is_not_sealed_is_found(flow, bill, closed, close_period):
    (customer,) = bill("acme").values()
    use(flow, closed, 10)
    flush(flow)
    close_period(customer)
    flow.connection.execute("ALTER TABLE usage_windows DISABLE TRIGGER guard_sealing")
    flow.connection.execute("UPDATE usage_windows SET sealed_at = NULL")

    assert [row.invariant for row in broken(flow)] == ["v10_nothing_open_under_a_seal"]


def test_a_seal_of_one_meter_leaves_the_others_open(flow, bill, closed, simulator, close_period):
    (customer,) = bill("acme").values()
    for event_type in ("prompt_tokens", "generated_tokens"):
        use(flow, closed, 10, event_type=event_type)
    flush(flow)
    close_period(customer, event_name="prompt_tokens")

    for event_type in ("prompt_tokens", "generated_tokens"):
        use(flow, closed, 1, event_type=event_type)
    flush(flow)

    assert counted_by_stripe(simulator) == {
        (customer, "prompt_tokens", closed): 10,
        (customer, "generated_tokens", closed): 11,
    }


@pytest.mark.parametrize(
    ("obstacle", "why"),
    [
        ("uncut", "owes units that Stripe could still take"),
        ("pending", "has an entry whose fate"),
        ("accepted", "has an entry whose fate"),
        ("held", "is on hold"),
        ("crossing", "holds usage of two periods"),
    ],
)
def test_a_period_is_sealed_whole_or_not_at_all(flow, bill, closed, close_period, obstacle, why):
    (customer,) = bill("acme").values()
    use(flow, closed + HOUR, 10)
    flush(flow)
    use(flow, closed, 3)
    flow.validate_contract()
    flow.aggregate()
    if obstacle in {"pending", "accepted"}:
        flow.cut()
    if obstacle == "accepted":
        flow.submit()
    if obstacle == "held":
        flow.connection.execute("UPDATE usage_windows SET hold_reason = 'x' WHERE cut_due")
    start = closed + timedelta(minutes=10) if obstacle == "crossing" else closed

    with pytest.raises(GateClosed, match=rf"Nothing was sealed; 1 of 2 .*acme prompt_tokens.*{why}"):
        close_period(customer, start=start)

    assert sealed_windows(flow) == 0
    assert flow.connection.execute("SELECT count(*) FROM seals, ledger_operations").fetchone() == (0,)


def test_what_was_not_stated_in_time_can_be_left_owed(flow, bill, closed, simulator, close_period):
    (customer,) = bill("acme").values()
    use(flow, closed, 3)
    flow.aggregate()

    report = close_period(customer, leave_owed=True)
    flush(flow)

    assert (report.windows, report.windows_owed, report.units_owed) == (1, 1, 3)
    assert counted_by_stripe(simulator) == {}
    assert found(flow) == [("owed_after_seal", 3)]


def test_a_second_seal_of_the_same_period_changes_nothing(flow, bill, closed, close_period):
    (customer,) = bill("acme").values()
    use(flow, closed, 3)
    flush(flow)
    first = close_period(customer)

    second = close_period(customer)

    assert (second.sealed_at, second.windows) == (first.sealed_at, 0)
    assert flow.connection.execute("SELECT actor, reason FROM ledger_operations WHERE action = 'seal'").fetchall() == [
        ("Ann", "invoice in_1 is final")
    ]


def test_a_period_that_is_not_over_or_of_nobody_is_refused(flow, bill, closed, close_period):
    (customer,) = bill("acme").values()

    with pytest.raises(UserError, match="is not over yet"):
        close_period(customer, end=flow.clock())
    with pytest.raises(UserError, match="must end after it starts"):
        close_period(customer, end=closed)
    with pytest.raises(UserError, match="cus_misspelt; is it written correctly"):
        close_period("cus_misspelt")
    with pytest.raises(UserError, match="counted for tokenz"):
        close_period(customer, event_name="tokenz")


def test_a_unit_made_of_fractions_is_carried_past_the_seal(flow, bill, closed, simulator, close_period):
    """Two rests of half a unit, one of them sealed: the unit goes to the hour that is open, whichever is the latest."""
    (customer,) = bill("acme").values()
    use(flow, closed, "0.5")
    use(flow, closed + 3 * HOUR, "0.9")
    flush(flow)
    close_period(customer, start=closed + HOUR)

    use(flow, closed, "0.3", event_id="late")
    flush(flow)

    if (closed + 3 * HOUR).month == closed.month:
        targets = flow.connection.execute("SELECT target, sealed_at IS NULL FROM usage_windows ORDER BY starts_at")
        assert targets.fetchall() == [(0, True), (1, False)]
    use(flow, closed, "0.5")
    use(flow, closed + 2 * HOUR, "0.9")
    flush(flow)
    if (closed + 3 * HOUR).month == closed.month:
        assert counted_by_stripe(simulator) == {
            (customer, "prompt_tokens", closed): 2,
            (customer, "prompt_tokens", closed + 3 * HOUR): 1,
        }
    assert not reconcile(flow.connection, settings=flow.settings, now=flow.clock()).faults


def test_a_unit_of_fractions_that_only_sealed_hours_could_carry_is_owed_and_no_fault(
    flow, bill, closed, simulator, close_period
):
    (customer,) = bill("acme").values()
    use(flow, closed, "0.7")
    flush(flow)
    close_period(customer)

    use(flow, closed + HOUR, "0.7")
    flush(flow)

    assert counted_by_stripe(simulator) == {}
    same_month = (closed + HOUR).month == closed.month
    assert ("owed_after_seal", 1) in found(flow) or not same_month
    assert not reconcile(flow.connection, settings=flow.settings, now=flow.clock()).faults


def test_a_seal_waits_for_an_aggregation_under_way(flow, bill, closed, database_url, close_period):
    """Or the window that it is about to make would be missed."""
    (customer,) = bill("acme").values()
    with connect(database_url) as other:
        with other.transaction():
            other.execute("LOCK TABLE aggregations IN SHARE ROW EXCLUSIVE MODE")
            flow.connection.execute("SET lock_timeout = '300ms'")
            with pytest.raises(Exception, match="lock timeout"):
                close_period(customer)
        close_period(customer)
        use(flow, closed, 3)
        aggregate(
            other,
            source=flow.read_source(),
            catalogue=flow.catalogue,
            start_at=None,
            overlap=HOUR,
            clock=flow.clock,
        )

    assert sealed_windows(flow) == 1


@pytest.mark.parametrize("entry", [None, EntryAtMinute(1, 1, "replaced", 5, None)])
def test_what_recovery_finds_under_a_seal_is_for_a_person(entry):
    assert decide_adoption(entry, 7, sealed=False) is Step.ADOPT
    assert decide_adoption(entry, 7, sealed=True) is Step.CONFLICT
    assert decide_adoption(entry, 0, sealed=True) is Step.KEEP


def test_a_person_seals_and_sees_what_is_owed(flow, bill, closed, database_url, tmp_path):
    (customer,) = bill("acme").values()
    use(flow, closed, 10)
    flush(flow)
    where = {"folder": tmp_path, "DATABASE_URL": database_url, "STRIPE_API_BASE": "http://127.0.0.1:1"}
    period = ("--from", closed.isoformat(), "--until", (closed + HOUR).isoformat(), "--by", "Ann", "--reason", "final")

    code, out, err = billing_pipeline("ledger", "seal", "--customer", customer, *period, **where)
    assert (code, err) == (0, "")
    assert "1 usage windows, 0 of them leave 0 units owed." in out
    use(flow, closed, 3)
    flush(flow)
    flow.connection.execute("INSERT INTO customer_mappings (organization_id, stripe_customer_id) VALUES ('x', 'cus_x')")
    use(flow, closed, 5, organization_id="x")
    flow.aggregate()
    flow.connection.execute(
        "UPDATE usage_windows SET hold_reason = 'more_digits_than_stripe_accepts' WHERE organization_id = 'x'"
    )

    out = billing_pipeline("ledger", "status", **where)[1]
    assert f"3 units of acme prompt_tokens ({customer}, 1 windows; by an invoice item)" in out
    ((window_id,),) = flow.connection.execute("SELECT window_id FROM usage_windows WHERE organization_id = 'x'")
    assert f"window {window_id}: x prompt_tokens {closed:%Y-%m-%d %H:%M} UTC, 5 units, more digits than" in out
    code, out, err = billing_pipeline("holds", "release", str(window_id), "--by", "Ann", "--reason", "mended", **where)
    assert (code, err) == (0, "")
    assert "On hold" not in billing_pipeline("ledger", "status", **where)[1]
