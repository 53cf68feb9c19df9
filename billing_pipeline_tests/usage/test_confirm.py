"""Only Stripe's own summaries prove an entry, and only long absence behind a visible canary disproves it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from billing_pipeline.errors import IdentityMismatch, LedgerFrozen, StripeRefused
from billing_pipeline.reconciliation.invariants import violations
from billing_pipeline.usage.canary import look_for_canaries
from billing_pipeline.usage.confirm import confirm
from billing_pipeline.usage.flush import flush
from billing_pipeline_tests.builders import billable_event, insert_events
from billing_pipeline_tests.fix_flow import counted_by_stripe

CLOSED = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=3)


class Summaries:
    """Stripe's summaries as a test wants them: what is shown, by customer, event name and minute."""

    def __init__(self, shown=()):
        self.shown = dict(shown)
        self.reads = 0

    def days(self, event_name, customer, start, end):
        hours = self.hours(event_name, customer, start, end)
        return {
            day: sum(units for hour, units in hours.items() if hour.replace(hour=0) == day)
            for day in {hour.replace(hour=0) for hour in hours}
        }

    def hours(self, event_name, customer, start, end):
        self.reads += 1
        totals = {}
        for (name, who, minute), units in self.shown.items():
            if (name, who) == (event_name, customer) and start <= minute < end:
                hour = minute.replace(minute=0)
                totals[hour] = totals.get(hour, 0) + units
        return totals

    def minute(self, event_name, customer, minute):
        self.reads += 1
        return self.shown.get((event_name, customer, minute), 0)


def prepare(flow, bill, *quantities):
    """One entry per quantity, each of an hour of its own, sent and accepted; returns the customer."""
    customers = bill("acme")
    insert_events(
        flow.connection,
        *(
            billable_event(quantity=Decimal(quantity), occurred_at=CLOSED - number * timedelta(hours=1))
            for number, quantity in enumerate(quantities)
        ),
    )
    flow.validate_contract()
    flow.aggregate()
    flow.cut()
    flow.submit()
    return customers["acme"]


def judge(flow, summaries, *, later=timedelta(0), reads_max=1_000):
    return confirm(
        flow.connection,
        summaries,
        times=flow.settings.protocol_times,
        reads_max=reads_max,
        clock=lambda: flow.clock() + later,
    )


def states(flow):
    return [row[0] for row in flow.connection.execute("SELECT state::text FROM ledger_entries ORDER BY entry_id")]


def show_canaries(flow, *, sent_later=timedelta(0)):
    """The flow's canaries were sent later than they were, and Stripe shows them."""
    flow.connection.execute("UPDATE canaries SET started_at = started_at + %s, seen_at = now()", (sent_later,))


def test_an_hour_that_agrees_proves_its_entries_with_one_read(flow, bill):
    customer = prepare(flow, bill, 5)
    summaries = Summaries({("prompt_tokens", customer, CLOSED): 5})

    report = judge(flow, summaries)

    assert (report.confirmed, report.units_confirmed, states(flow)) == (1, 5, ["confirmed"])
    assert summaries.reads == 1 + 3, "one for the day, and one for each meter's canary"


def test_opposite_values_that_add_up_to_nothing_prove_nothing(flow, bill):
    customer = prepare(flow, bill, 5)
    # The cutter would wait for the proof of the first; the confirmer does not rest on that.
    flow.connection.execute(
        "INSERT INTO ledger_entries (window_id, sequence, epoch, stripe_customer_id, event_name, value, slot_at,"
        " identifier) SELECT window_id, 1, 0, stripe_customer_id, event_name, -value, slot_at + interval '1 minute',"
        " 'be1_t_opposite' FROM ledger_entries"
    )
    flow.submit()
    assert states(flow) == ["accepted", "accepted"]

    judge(flow, Summaries())
    assert states(flow) == ["accepted", "accepted"]

    minute = timedelta(minutes=1)
    judge(flow, Summaries({("prompt_tokens", customer, CLOSED): 5, ("prompt_tokens", customer, CLOSED + minute): -5}))
    assert states(flow) == ["confirmed", "confirmed"]


def test_an_ambiguous_entry_that_stripe_shows_is_confirmed(flow, bill):
    customer = prepare(flow, bill, 5)
    as_ambiguous(flow)

    judge(flow, Summaries({("prompt_tokens", customer, CLOSED): 5}))

    assert states(flow) == ["confirmed"]


def test_a_replaced_entrys_value_is_stated_again_by_a_new_entry(flow, bill):
    prepare(flow, bill, 5)
    show_canaries(flow, sent_later=timedelta(hours=1))
    judge(flow, Summaries(), later=timedelta(hours=10))

    flow.cut()

    rows = flow.connection.execute("SELECT state::text, value, sequence FROM ledger_entries ORDER BY entry_id")
    assert rows.fetchall() == [("replaced", 5, 0), ("pending", 5, 1)]


def test_the_day_looked_at_longest_ago_is_read_first(flow, bill):
    customer = prepare(flow, bill, *([1] * 30))
    shown = {("prompt_tokens", customer, CLOSED - number * timedelta(hours=1)): 1 for number in range(30)}
    days = len({(CLOSED - number * timedelta(hours=1)).date() for number in range(30)})

    reports = [judge(flow, Summaries(shown), reads_max=4, later=timedelta(minutes=number)) for number in range(days)]

    assert [report.reads for report in reports] == [4] * days
    assert sum(report.confirmed for report in reports) == 30


def test_one_meters_trouble_does_not_keep_the_others_from_being_proved(flow, bill):
    customers = bill("acme", "globex")
    for organization_id in customers:
        insert_events(flow.connection, billable_event(organization_id=organization_id, occurred_at=CLOSED))
    flow.validate_contract()
    flow.aggregate()
    flow.cut()
    flow.submit()

    class Broken(Summaries):
        def hours(self, event_name, customer, start, end):
            if customer == customers["acme"]:
                raise StripeRefused("no such customer")
            return super().hours(event_name, customer, start, end)

    with pytest.raises(StripeRefused, match="1 of the days"):
        judge(flow, Broken({("prompt_tokens", customers["globex"], CLOSED): 1}))

    assert sorted(states(flow)) == ["accepted", "confirmed"]


def settled_lanes(flow, bill, *organizations):
    """One confirmed entry of each organization; returns the customers and what Stripe shows."""
    customers = bill(*organizations)
    for organization_id in customers:
        insert_events(flow.connection, billable_event(organization_id=organization_id, occurred_at=CLOSED))
    flow.validate_contract()
    flow.aggregate()
    flow.cut()
    flow.submit()
    shown = {("prompt_tokens", customer, CLOSED): 1 for customer in customers.values()}
    assert judge(flow, Summaries(shown)).confirmed == len(organizations)
    return customers, shown


def test_one_customers_trouble_does_not_keep_the_settled_days_of_others_from_being_read_again(flow, bill):
    customers, shown = settled_lanes(flow, bill, "acme", "globex")
    read = []

    class Broken(Summaries):
        def days(self, event_name, customer, start, end):
            if customer == customers["acme"]:
                raise StripeRefused("no such customer")
            read.append(customer)
            return super().days(event_name, customer, start, end)

    with pytest.raises(StripeRefused, match="1 of the days"):
        judge(flow, Broken(shown), later=timedelta(hours=21))

    assert read == [customers["globex"]]


def test_settled_days_wait_when_the_reads_are_spent(flow, bill):
    _, shown = settled_lanes(flow, bill, "acme")

    spent = judge(flow, Summaries(shown), later=timedelta(hours=21), reads_max=1)
    enough = judge(flow, Summaries(shown), later=timedelta(hours=21))

    assert (spent.lanes_read_again, enough.lanes_read_again) == (0, 1)


def test_confirmation_asks_the_gate_whose_ledger_it_is(flow, bill):
    prepare(flow, bill, 5)
    flow.connection.execute("UPDATE ledger_identity SET stripe_account = 'acct_other'")

    with pytest.raises(IdentityMismatch):
        flow.confirm()


def test_every_flush_sends_a_canary_per_meter_and_sees_it(flow, bill, simulator):
    prepare(flow, bill, 5)
    assert count(flow, "canaries", "seen_at IS NULL") == 3

    look_for_canaries(flow.connection, flow.summaries, now=flow.clock())

    assert count(flow, "canaries", "seen_at IS NOT NULL") == 3
    assert sum(counted_by_stripe(simulator).values()) == 5, "a canary is nobody's usage"


def test_canaries_that_the_ledger_does_not_know_freeze_it(flow, bill):
    prepare(flow, bill, 5)
    sent = flow.connection.execute("SELECT stripe_customer_id FROM canaries LIMIT 1").fetchone()[0]
    # As if a restore had taken back one of two canaries of an hour.
    flow.stripe.v1.billing.meter_events.create(
        {"event_name": "api_requests", "payload": {"stripe_customer_id": sent, "value": "1"}}
    )

    with pytest.raises(LedgerFrozen, match="shows 2 canaries of api_requests, but the ledger sent only 1"):
        flow.submit()


def test_the_invariants_hold_after_every_stage(flow, bill):
    prepare(flow, bill, 5, 7)
    flush(flow)

    assert (
        violations(
            flow.connection,
            settings=flow.settings,
            mark=flow.mark.read().attempt_id,
            now=flow.clock(),
        )
        == []
    )


def as_ambiguous(flow):
    """The answer to the only attempt was lost."""
    guards = {"ledger_entries": "guard_state", "attempts": "guard_change"}
    for table, guard in guards.items():
        flow.connection.execute(f"ALTER TABLE {table} DISABLE TRIGGER {guard}")
    flow.connection.execute("UPDATE ledger_entries SET state = 'ambiguous'")
    flow.connection.execute("UPDATE attempts SET outcome = 'unknown'")
    flow.connection.execute(
        "INSERT INTO open_entries (entry_id, window_id, send_by)"
        " SELECT entry_id, window_id, first_attempt_at + interval '20 hours' FROM ledger_entries"
    )
    for table, guard in guards.items():
        flow.connection.execute(f"ALTER TABLE {table} ENABLE TRIGGER {guard}")


def count(flow, table, condition):
    return flow.connection.execute(f"SELECT count(*) FROM {table} WHERE {condition}").fetchone()[0]
