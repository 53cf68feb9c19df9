"""What becomes of an invoice: final, paid, unpaid and tried again, void, uncollectible.

Pure changes of bodies and the records they make; asked by the invoice endpoints, by `life` and at a subscription's
creation.  A payment succeeds unless the customer's default payment method is Stripe's test card that never pays.
Sources: Stripe's guides "How subscriptions work" and "Testing" (`pm_card_chargeCustomerFail`).
"""

from __future__ import annotations

from datetime import UTC, datetime

from billing_pipeline.stripe_simulator.calls import created, updated
from billing_pipeline.stripe_simulator.journal import Record
from billing_pipeline.stripe_simulator.state import State
from billing_pipeline.stripe_simulator.subscription_invoices import recounted, subscription_of
from billing_pipeline.stripe_simulator.wire import Body

NEVER_PAYS = "pm_card_chargeCustomerFail"
RETRY_DAYS = (3, 5, 7)
"""After which of the failed attempts the next one comes; after the last the subscription is canceled."""

PAID_EVENTS = ("invoice.updated", "invoice.paid", "invoice.payment_succeeded")
FAILED_EVENTS = ("invoice.updated", "invoice.payment_failed")


def finalized(state: State, invoice: Body, epoch: int) -> Body:
    """The invoice with what its meters show at `epoch`; from here on its amounts do not change."""
    counted = recounted(state, invoice, datetime.fromtimestamp(epoch, UTC))
    return {
        **counted,
        "automatically_finalizes_at": None,
        "effective_at": epoch,
        "hosted_invoice_url": f"https://invoice.stripe.com/i/{state.account_id()}/test_{invoice['id']}",
        "number": f"SIM-{state.digest('number', invoice['id'])[:8].upper()}-0001",
        "status": "open",
        "status_transitions": {**invoice["status_transitions"], "finalized_at": epoch},
    }


def paid(invoice: Body, epoch: int) -> Body:
    """The open invoice once its amount is paid; one over nothing needs no attempt."""
    return {
        **invoice,
        **_settled(invoice, "paid", "paid_at", epoch),
        "amount_paid": invoice["amount_due"],
        "amount_remaining": 0,
        "attempt_count": invoice["attempt_count"] + (1 if invoice["amount_due"] else 0),
        "attempted": True,
    }


def voided(invoice: Body, epoch: int) -> Body:
    """The invoice as if it had never been asked for."""
    return {**invoice, **_settled(invoice, "void", "voided_at", epoch)}


def uncollectible(invoice: Body, epoch: int) -> Body:
    """The invoice that is given up; it may still be paid."""
    return {**invoice, **_settled(invoice, "uncollectible", "marked_uncollectible_at", epoch)}


def _settled(invoice: Body, status: str, transition: str, epoch: int) -> Body:
    return {
        "auto_advance": False,
        "next_payment_attempt": None,
        "status": status,
        "status_transitions": {**invoice["status_transitions"], transition: epoch},
    }


def unpaid(invoice: Body, epoch: int) -> Body:
    """The open invoice after one more attempt that failed, and when the next comes, if one does."""
    attempts = invoice["attempt_count"] + 1
    days = RETRY_DAYS[attempts - 1] if attempts <= len(RETRY_DAYS) else None
    return {
        **invoice,
        "attempt_count": attempts,
        "attempted": True,
        "next_payment_attempt": None if days is None else epoch + days * 86_400,
    }


def pays(state: State, customer: str) -> bool:
    """Whether this customer's payments succeed."""
    settings = (state.find("customer", customer) or {}).get("invoice_settings") or {}
    return settings.get("default_payment_method") != NEVER_PAYS


def first_collection(state: State, draft: Body, epoch: int) -> tuple[list[Record], Body]:
    """A first invoice's records, from its making to its payment or its failure, and how it ended."""
    open_invoice = finalized(state, draft, epoch)
    records = [created("invoice", draft), updated("invoice", open_invoice, "invoice.finalized")]
    ended, events = _tried(state, open_invoice, epoch)
    return [*records, updated("invoice", ended, *events)], ended


def attempt(state: State, invoice: Body, epoch: int) -> tuple[list[Record], Body]:
    """One attempt to collect an open invoice: its record, the one of its subscription, and how it ended."""
    ended, events = _tried(state, invoice, epoch)
    return [updated("invoice", ended, *events), *subscription_after(state, ended)], ended


def _tried(state: State, invoice: Body, epoch: int) -> tuple[Body, tuple[str, ...]]:
    if invoice["amount_due"] == 0 or pays(state, invoice["customer"]):
        return paid(invoice, epoch), PAID_EVENTS
    return unpaid(invoice, epoch), FAILED_EVENTS


def subscription_after(state: State, invoice: Body) -> list[Record]:
    """The subscription whose status follows from what became of its latest invoice."""
    subscription = state.find("subscription", subscription_of(invoice))
    if subscription is None or subscription["latest_invoice"] != invoice["id"]:
        return []
    after = status_after(subscription["status"], invoice)
    return [] if after == subscription["status"] else [updated("subscription", {**subscription, "status": after})]


def status_after(status: str, invoice: Body) -> str:
    """A subscription's status once its latest invoice is as given."""
    match status, invoice["status"]:
        case ("active", "open") if invoice["attempted"]:
            return "past_due"
        case ("past_due" | "incomplete", "paid") | ("past_due", "void" | "uncollectible"):
            return "active"
    return status
