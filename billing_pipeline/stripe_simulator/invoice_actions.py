"""What a person does to an invoice: change it, make it final, pay it, void it, give it up, delete the draft.

The changes themselves are in `collection`; here is which status allows which.
"""

from __future__ import annotations

from billing_pipeline.stripe_simulator.calls import Call, Write, created, deleted, updated
from billing_pipeline.stripe_simulator.collection import (
    PAID_EVENTS,
    attempt,
    finalized,
    paid,
    pays,
    subscription_after,
    uncollectible,
    unpaid,
    voided,
)
from billing_pipeline.stripe_simulator.parameters import checked, flag, integer, string_map, text
from billing_pipeline.stripe_simulator.period_invoices import find_invoice
from billing_pipeline.stripe_simulator.state import State
from billing_pipeline.stripe_simulator.subscription_invoices import empty_draft, subscription_of
from billing_pipeline.stripe_simulator.wire import Body, Refusal, forbidden, invalid, no_such


def create_invoice(state: State, call: Call) -> Write:
    """POST /v1/invoices: a draft of its own, over nothing yet"""
    given = checked(call.params, {"customer": text()}, {"currency": text(3), "metadata": string_map})
    if state.live("customer", given["customer"]) is None:
        raise no_such("customer", given["customer"], param="customer")
    id = f"in_{state.digest('one-off invoice', state.line + 1)}"
    currency = given.get("currency", "usd").lower()
    draft = empty_draft(id, given["customer"], currency, "manual", (call.epoch, call.epoch))
    return Write((created("invoice", draft | {"metadata": given.get("metadata", {})}),))


def update_invoice(state: State, call: Call) -> Write:
    """POST /v1/invoices/{id}; `auto_advance` and the time of finalization are a draft's"""
    given = checked(
        call.params,
        optional={"auto_advance": flag, "automatically_finalizes_at": integer(0), "metadata": string_map},
    )
    invoice = find_invoice(state, call.target)
    if given.keys() - {"metadata"}:
        _refuse_unless(invoice, "draft")
    if given.get("automatically_finalizes_at", call.epoch + 1) <= call.epoch:
        raise invalid("automatically_finalizes_at must lie in the future.", "automatically_finalizes_at")
    if not given.get("auto_advance", True):
        given["automatically_finalizes_at"] = None
    elif given.get("auto_advance") and invoice["automatically_finalizes_at"] is None:
        given.setdefault("automatically_finalizes_at", call.epoch + 3_600)
    metadata = {**invoice["metadata"], **given.get("metadata", {})}
    return Write((updated("invoice", {**invoice, **given, "metadata": metadata}),))


def finalize_invoice(state: State, call: Call) -> Write:
    """POST /v1/invoices/{id}/finalize; collection follows at once when it is automatic"""
    given = checked(call.params, optional={"auto_advance": flag})
    invoice = find_invoice(state, call.target)
    _refuse_unless(invoice, "draft")
    final = finalized(state, invoice, call.epoch)
    record = updated("invoice", final, "invoice.finalized")
    if not given.get("auto_advance", invoice["auto_advance"]):
        return Write((record,))
    collected, *consequence = attempt(state, final, call.epoch)[0]
    return Write((record, *consequence, collected))


def pay_invoice(state: State, call: Call) -> Write:
    """POST /v1/invoices/{id}/pay; a payment that fails is a 402, and is told of all the same"""
    given = checked(call.params, optional={"paid_out_of_band": flag})
    invoice = find_invoice(state, call.target)
    _refuse_unless(invoice, "open", "draft", "uncollectible")
    earlier = []
    if invoice["status"] == "draft":
        invoice = finalized(state, invoice, call.epoch)
        earlier = [updated("invoice", invoice, "invoice.finalized")]
    out_of_band = given.get("paid_out_of_band", False)
    if not out_of_band and invoice["amount_due"] and not pays(state, invoice["customer"]):
        failed = {**unpaid(invoice, call.epoch), "next_payment_attempt": invoice["next_payment_attempt"]}
        refused = Refusal(402, "Your card was declined.", type="card_error", code="card_declined", executed=True)
        record = updated("invoice", failed, "invoice.updated", "invoice.payment_failed")
        return Write((*earlier, *subscription_after(state, failed), {**record, **_answer(refused)}))
    settled = paid(invoice, call.epoch)
    # Marked as paid elsewhere: nothing was paid here, so no payment succeeded.
    events = PAID_EVENTS[:-1] if out_of_band else PAID_EVENTS
    return Write((*earlier, *subscription_after(state, settled), updated("invoice", settled, *events)))


def _answer(refusal: Refusal) -> Body:
    return {"status": refusal.status, "answer": refusal.body}


def void_invoice(state: State, call: Call) -> Write:
    """POST /v1/invoices/{id}/void"""
    checked(call.params)
    invoice = find_invoice(state, call.target)
    _refuse_unless(invoice, "open", "uncollectible")
    after = voided(invoice, call.epoch)
    return Write((*subscription_after(state, after), updated("invoice", after, "invoice.updated", "invoice.voided")))


def mark_uncollectible(state: State, call: Call) -> Write:
    """POST /v1/invoices/{id}/mark_uncollectible"""
    checked(call.params)
    invoice = find_invoice(state, call.target)
    _refuse_unless(invoice, "open")
    after = uncollectible(invoice, call.epoch)
    events = ("invoice.updated", "invoice.marked_uncollectible")
    return Write((*subscription_after(state, after), updated("invoice", after, *events)))


def delete_draft(state: State, call: Call) -> Write:
    """DELETE /v1/invoices/{id}; one of a subscription can only be voided (Stripe API reference)"""
    checked(call.params)
    invoice = find_invoice(state, call.target)
    _refuse_unless(invoice, "draft")
    if subscription_of(invoice):
        raise forbidden("An invoice of a subscription cannot be deleted. Finalize it, then void it.")
    return Write((deleted("invoice", "invoice", invoice["id"]),))


def _refuse_unless(invoice: Body, *statuses: str) -> None:
    if invoice["status"] not in statuses:
        raise forbidden(
            f"Invoice {invoice['id']} is {invoice['status']}; this takes an invoice that is {' or '.join(statuses)}.",
            code="invoice_not_editable" if "draft" in statuses else None,
        )
