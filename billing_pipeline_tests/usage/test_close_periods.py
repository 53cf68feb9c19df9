"""A period closes while its invoice is a draft: a flush first, then what sealed periods are owed is billed once.

The judge is Stripe's own invoice.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import timedelta

import psycopg
import pytest

from billing_pipeline.database.connection import connect
from billing_pipeline.domain.catalogue import LateUsage
from billing_pipeline.errors import LedgerFrozen, StripeUnavailable
from billing_pipeline.reconciliation.invariants import violations
from billing_pipeline.settings import load_settings
from billing_pipeline.stripe_api.invoice_items import ItemRefused, StripeInvoiceItems
from billing_pipeline.usage import gate
from billing_pipeline.usage.adjust import SendReport, has_due_adjustments, send_adjustments
from billing_pipeline.usage.aggregate import Scope
from billing_pipeline.usage.close_periods import CloseReport, close_periods
from billing_pipeline.usage.flow import UsageFlow
from billing_pipeline.usage.lease import LeaseHeld
from billing_pipeline.usage.seal import owed_after_seal
from billing_pipeline_tests.fix_flow import counted_by_stripe
from billing_pipeline_tests.fix_renewal import HOUR, Renewal


class LosesTheAnswer(StripeInvoiceItems):
    """Stripe makes the item, and we never hear of it."""

    def create(self, new):
        super().create(new)
        raise StripeUnavailable("the answer was lost")


def items_of(flow, kind=StripeInvoiceItems):
    return kind(flow.stripe, flow.settings)


def send(flow, items, clock=None):
    return send_adjustments(flow.connection, items, flow.settings.protocol_times, clock or flow.clock, limit=10)


def commit_without_sending(flow, monkeypatch):
    """Close, and die before the first request."""

    def die(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(StripeInvoiceItems, "find", die)
        with pytest.raises(KeyboardInterrupt):
            close_periods(flow)


@pytest.mark.slow
def test_late_usage_of_a_sealed_period_is_billed_once_on_the_next_draft(flow, renewal, simulator, caplog):
    invoice_id = renewal.draft()
    with caplog.at_level(logging.INFO, logger="billing_pipeline.milestones"):
        report = close_periods(flow)
    again = close_periods(flow)

    assert report.sent == SendReport(applied=1)
    assert renewal.lines(invoice_id) == [(3, 3)]
    assert sum(counted_by_stripe(simulator).values()) == 10, "no meter event of a sealed period"
    assert again == CloseReport()
    assert owed_after_seal(flow.connection) == []
    assert renewal.found() == {"adjusted": 3}
    assert violations(flow.connection, settings=flow.settings, mark=flow.mark.read().attempt_id, now=flow.clock()) == []
    [line] = [r for r in caplog.records if r.message == "Stripe invoice.created billing adjustments applied"]
    assert (line.stripe_invoice_id, line.organization_id, line.adjustments) == (invoice_id, "acme", 1)


@pytest.mark.slow
def test_the_line_is_logged_where_nothing_was_owed_too(flow, bill, simulator, subscriptions, caplog):
    (customer,) = bill("acme").values()
    renewal = Renewal(flow, customer, simulator, subscriptions)
    invoice_id = renewal.draft()
    with caplog.at_level(logging.INFO, logger="billing_pipeline.milestones"):
        close_periods(flow)

    [line] = [r for r in caplog.records if r.message == "Stripe invoice.created billing adjustments applied"]
    assert (line.stripe_invoice_id, line.adjustments, line.too_late) == (invoice_id, 0, False)


@pytest.mark.slow
def test_usage_that_was_not_sent_yet_is_flushed_before_the_draft_is_closed(flow, renewal, simulator):
    renewal.use(7, at=renewal.ended - 2 * HOUR)
    renewal.draft()
    close_periods(flow)

    assert sum(counted_by_stripe(simulator).values()) == 17


@pytest.mark.slow
def test_what_was_billed_too_much_is_given_back(flow, renewal):
    flow.connection.execute("UPDATE public.billable_events SET quantity = 4 WHERE quantity = 10")
    flow.connection.execute("DELETE FROM public.billable_events WHERE quantity = 3")
    invoice_id = renewal.draft()
    flow.aggregate(Scope.FULL)
    close_periods(flow)

    assert renewal.lines(invoice_id) == [(6, -6)]
    assert renewal.states() == [("applied", -6)]


@pytest.mark.slow
def test_an_answer_that_was_lost_makes_no_second_item(flow, renewal, monkeypatch):
    invoice_id = renewal.draft()
    commit_without_sending(flow, monkeypatch)
    with pytest.raises(StripeUnavailable):
        send(flow, items_of(flow, LosesTheAnswer))
    assert renewal.states() == [("ambiguous", 3)]

    later = flow.clock() + timedelta(minutes=6)
    assert send(flow, items_of(flow), lambda: later) == SendReport(applied=1)
    assert renewal.lines(invoice_id) == [(3, 3)]


@pytest.mark.slow
def test_what_a_dead_run_left_is_due_and_the_next_run_brings_it(flow, renewal, monkeypatch):
    invoice_id = renewal.draft()
    commit_without_sending(flow, monkeypatch)

    assert has_due_adjustments(flow.connection, now=flow.clock())
    assert close_periods(flow) == CloseReport(sent=SendReport(applied=1))
    assert renewal.lines(invoice_id) == [(3, 3)]
    assert not has_due_adjustments(flow.connection, now=flow.clock())


@pytest.mark.slow
def test_a_draft_that_stripe_no_longer_has_holds_up_no_other(flow, renewal):
    invoice_id = renewal.draft()
    flow.connection.execute(
        'INSERT INTO invoices SELECT (jsonb_populate_record(i, \'{"stripe_invoice_id": "in_gone"}\')).* FROM invoices i'
    )

    report = close_periods(flow)

    assert {closed.stripe_invoice_id: closed.is_late for closed in report.closed} == {
        invoice_id: False,
        "in_gone": True,
    }
    assert renewal.lines(invoice_id) == [(3, 3)]


@pytest.mark.slow
def test_two_workers_make_one_item(flow, renewal, monkeypatch, database_url, settings):
    invoice_id = renewal.draft()
    commit_without_sending(flow, monkeypatch)
    with connect(database_url) as connection:
        other = UsageFlow(connection, database_url, settings, holder="other")

        class Races(StripeInvoiceItems):
            def find(self, invoice_id, identifier):
                found = super().find(invoice_id, identifier)
                send(other, items_of(other))
                return found

        report = send(flow, Races(flow.stripe, flow.settings))

    assert report == SendReport(in_doubt=1), "the other one has it"
    assert renewal.lines(invoice_id) == [(3, 3)]
    assert renewal.states() == [("applied", 3)]


@pytest.mark.slow
def test_a_database_that_forgot_finds_its_item(flow, renewal):
    invoice_id = renewal.draft()
    close_periods(flow)
    flow.connection.execute("TRUNCATE invoice_adjustments, adjusted_windows, closed_invoices")

    assert close_periods(flow).sent == SendReport(applied=1)
    assert renewal.lines(invoice_id) == [(3, 3)]


@pytest.mark.slow
def test_an_item_of_another_amount_under_our_name_waits_for_a_person(flow, renewal):
    invoice_id = renewal.draft()
    close_periods(flow)
    flow.connection.execute("TRUNCATE invoice_adjustments, adjusted_windows, closed_invoices")
    renewal.use(2)

    assert close_periods(flow).sent == SendReport(in_doubt=1)
    assert renewal.lines(invoice_id) == [(3, 3)]
    (error,) = flow.connection.execute("SELECT last_error FROM invoice_adjustments").fetchone()
    assert "bills 3 units under this name, the ledger 5" in error


@pytest.mark.slow
def test_a_draft_that_became_final_meanwhile_leaves_it_owed_for_the_next(flow, renewal, monkeypatch):
    invoice_id = renewal.draft()
    commit_without_sending(flow, monkeypatch)
    renewal.finalize(invoice_id)

    assert send(flow, items_of(flow)) == SendReport(refused=1)
    assert renewal.states() == [("refused", 3)]
    assert [owed.units for owed in owed_after_seal(flow.connection)] == [3]


@pytest.mark.slow
def test_a_refusal_after_a_lost_answer_is_believed_once_nothing_is_under_way(flow, renewal, monkeypatch):
    """The request that was lost may still arrive and make the item."""
    renewal.draft()
    commit_without_sending(flow, monkeypatch)

    class NeverArrives(StripeInvoiceItems):
        def create(self, new):
            raise StripeUnavailable("lost on the way")

    class Refuses(StripeInvoiceItems):
        def create(self, new):
            return ItemRefused("The invoice is final.")

    with pytest.raises(StripeUnavailable):
        send(flow, items_of(flow, NeverArrives))
    soon, later = flow.clock() + timedelta(minutes=6), flow.clock() + timedelta(hours=1, minutes=10)

    assert send(flow, items_of(flow, Refuses), lambda: soon) == SendReport(in_doubt=1)
    assert renewal.states() == [("ambiguous", 3)]
    assert send(flow, items_of(flow, Refuses), lambda: later) == SendReport(refused=1)


@pytest.mark.slow
def test_an_invoice_that_is_final_already_is_closed_without_an_item(flow, renewal):
    invoice_id = renewal.draft()
    renewal.finalize(invoice_id)
    report = close_periods(flow)

    assert [(closed.is_late, closed.adjustments) for closed in report.closed] == [(True, ())]
    assert [owed.units for owed in owed_after_seal(flow.connection)] == [3]


@pytest.mark.slow
def test_a_meter_that_the_catalogue_writes_off_is_not_billed_and_not_owed(flow, renewal):
    meters = tuple(replace(meter, late_usage=LateUsage.WRITE_OFF) for meter in flow.catalogue.meters)
    flow.catalogue = replace(flow.catalogue, meters=meters)
    invoice_id = renewal.draft()
    close_periods(flow)

    assert renewal.lines(invoice_id) == []
    assert renewal.states() == [("written_off", 3)]
    assert owed_after_seal(flow.connection) == []


@pytest.mark.slow
def test_nothing_is_put_on_a_draft_by_a_frozen_ledger_beside_a_flush_or_in_shadow_mode(
    flow, renewal, settings, database_url
):
    invoice_id = renewal.draft()
    in_shadow = load_settings(**settings.model_dump() | {"billing_mode": "shadow"})
    shadow = UsageFlow(flow.connection, database_url, in_shadow, holder="s")
    assert close_periods(shadow) == CloseReport()
    other = UsageFlow(flow.connection, database_url, settings, holder="other")
    other.take_lease()
    with pytest.raises(LeaseHeld):
        close_periods(flow)
    other.give_lease_back()
    gate.freeze(flow.connection, "a test", now=flow.clock())
    with pytest.raises(LedgerFrozen):
        close_periods(flow)

    assert (renewal.lines(invoice_id), renewal.states()) == ([], [])


@pytest.mark.slow
def test_a_draft_waits_until_its_last_hour_has_had_its_grace(flow, renewal):
    renewal.draft()
    early = renewal.ended + timedelta(minutes=5)
    flow.clock = lambda: early

    assert close_periods(flow) == CloseReport()


def test_the_table_refuses_an_item_without_a_price_and_a_second_one_of_the_same(connection):
    insert = (
        "INSERT INTO invoice_adjustments (identifier, stripe_invoice_id, stripe_customer_id, organization_id, meter, "
        "event_name, units, currency, unit_amount, starts_at, ends_at, state, created_at) "
        "VALUES (%s, 'in_1', 'cus_1', 'acme', 'm', 'm', 1, %s, %s, now(), now(), 'pending', now())"
    )
    connection.execute(insert, ("a", "usd", 1))
    with pytest.raises(psycopg.errors.UniqueViolation):
        connection.execute(insert, ("b", "usd", 1))
    with pytest.raises(psycopg.errors.CheckViolation):
        connection.execute(insert, ("c", None, None))
