"""What happens to subscriptions, invoices and checkout sessions by the clock alone.

The core asks for what is due, one moment after the other, before every request; each moment is one write of its own,
received at its own time.  A period's end bills it and begins the next; a draft becomes final an hour later and is
collected; a failed payment is tried again; a trial, a cancellation and a pause come to their ends.
"""

from __future__ import annotations

from billing_pipeline.stripe_simulator.billing_periods import with_periods
from billing_pipeline.stripe_simulator.calls import created, updated
from billing_pipeline.stripe_simulator.checkout import expired
from billing_pipeline.stripe_simulator.collection import attempt, finalized, uncollectible, voided
from billing_pipeline.stripe_simulator.due import INCOMPLETE_SECONDS, trial_ends_soon
from billing_pipeline.stripe_simulator.endings import canceled_records, expired_records, trial_notice
from billing_pipeline.stripe_simulator.journal import Record
from billing_pipeline.stripe_simulator.state import State
from billing_pipeline.stripe_simulator.subscription_invoices import period_invoice, subscription_of
from billing_pipeline.stripe_simulator.wire import Body


def records_due(state: State, kind: str, id: str, epoch: int) -> list[Record]:
    """The records of the one thing that is due for this object at `epoch`; never none."""
    body = state.find(kind, id)
    assert body is not None, "only what is there is due"
    match kind:
        case "subscription":
            return _subscription_due(state, body, epoch)
        case "invoice":
            return _invoice_due(state, body, epoch)
    return [expired(body)]


def _subscription_due(state: State, body: Body, epoch: int) -> list[Record]:
    if body["status"] == "incomplete" and epoch >= body["created"] + INCOMPLETE_SECONDS:
        return expired_records(state, body, epoch)
    if trial_ends_soon(body, epoch):
        return [trial_notice(body)]
    if body["cancel_at"] is not None and epoch >= body["cancel_at"]:
        return canceled_records(state, body, epoch)
    resumes_at = (body["pause_collection"] or {}).get("resumes_at")
    if resumes_at is not None and epoch >= resumes_at:
        return [updated("subscription", {**body, "pause_collection": None})]
    return next_period(state, body, epoch)


def next_period(state: State, body: Body, epoch: int) -> list[Record]:
    """The subscription in the period that begins at `epoch`, and the invoice between the two."""
    began = {**body, "status": "active"} if body["status"] == "trialing" and epoch >= body["trial_end"] else body
    after = with_periods(began, epoch)
    invoice = period_invoice(state, body, after, epoch, "subscription_cycle")
    assert invoice is not None, "a subscription that goes on has an invoice"
    after["latest_invoice"] = invoice["id"]
    return [updated("subscription", after), created("invoice", invoice)]


def _invoice_due(state: State, invoice: Body, epoch: int) -> list[Record]:
    subscription = state.find("subscription", subscription_of(invoice))
    if invoice["status"] == "open":
        return _retried(state, invoice, subscription, epoch)
    behavior = ((subscription or {}).get("pause_collection") or {}).get("behavior")
    if behavior == "keep_as_draft":
        return [updated("invoice", {**invoice, "auto_advance": False, "automatically_finalizes_at": None})]
    final = finalized(state, invoice, epoch)
    records = [updated("invoice", final, "invoice.finalized")]
    if behavior == "void":
        return [*records, updated("invoice", voided(final, epoch), "invoice.updated", "invoice.voided")]
    if behavior == "mark_uncollectible":
        given_up = uncollectible(final, epoch)
        return [*records, updated("invoice", given_up, "invoice.updated", "invoice.marked_uncollectible")]
    return [*records, *attempt(state, final, epoch)[0]]


def _retried(state: State, invoice: Body, subscription: Body | None, epoch: int) -> list[Record]:
    records, ended = attempt(state, invoice, epoch)
    gives_up = ended["status"] == "open" and ended["next_payment_attempt"] is None
    if gives_up and subscription is not None and subscription["ended_at"] is None:
        return [records[0], *canceled_records(state, subscription, epoch, reason="payment_failed")]
    return records
