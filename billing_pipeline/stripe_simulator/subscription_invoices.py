"""Makes the invoices of a subscription: the first one, one per period, and the last one.

Asked by the subscription endpoints and by `life`.  An item with a quantity is billed in advance, for the period that
begins; a metered item is billed for the period that ended, as far as the meter shows it.
A trial's items cost nothing, and its usage is not billed.
"""

from __future__ import annotations

from datetime import UTC, datetime

from billing_pipeline.stripe_simulator.invoices import invoice_line
from billing_pipeline.stripe_simulator.state import State
from billing_pipeline.stripe_simulator.wire import Body

GRACE_SECONDS = 3_600
"""Stripe's default time between a draft and its final invoice."""


def first_invoice(state: State, subscription: Body, epoch: int) -> Body:
    """What is billed when a subscription begins: the draft, before it is made final at once."""
    id = _next_id(state, subscription)
    lines = _in_advance(state, id, subscription, epoch)
    return _for(state, subscription, id, "subscription_create", (epoch, epoch), lines)


def period_invoice(state: State, before: Body, after: Body | None, epoch: int, reason: str) -> Body | None:
    """The draft for the period that ended at `epoch` and, unless the subscription ended, for the one that begins.

    `before` is the subscription in the ended period, `after` in the next.  None when there is nothing to bill: Stripe
    makes no invoice at the end of a subscription without usage-based items.
    """
    id = _next_id(state, before)
    start = min(item["current_period_start"] for item in before["items"]["data"])
    lines = [] if before["status"] == "trialing" else _metered(state, id, before, epoch)
    if after is None and not lines:
        return None
    if after is not None:
        lines += _in_advance(state, id, after, epoch)
    return _for(state, after or before, id, reason, (start, epoch), lines)


def recounted(state: State, invoice: Body, now: datetime) -> Body:
    """A draft with its metered lines as the meters show them now; what is final stays as it is."""
    if invoice["status"] != "draft":
        return invoice
    owner = {"id": subscription_of(invoice), "customer": invoice["customer"]}
    lines = []
    for line in invoice["lines"]["data"]:
        if line["parent"]["type"] != "subscription_item_details":
            lines.append(line)
            continue
        price = state.find("price", line["pricing"]["price_details"]["price"])
        assert price is not None, "a line's price is never deleted"
        item = {
            "id": line["parent"]["subscription_item_details"]["subscription_item"],
            "price": price,
            "current_period_start": line["period"]["start"],
            "current_period_end": line["period"]["end"],
        }
        metered = price["recurring"]["usage_type"] == "metered"
        lines.append(invoice_line(state, now, invoice["id"], owner, item) if metered else line)
    return with_lines(invoice, lines)


def subscription_of(invoice: Body) -> str:
    """The id of the subscription that an invoice bills; empty for an invoice of its own."""
    return "" if invoice["parent"] is None else str(invoice["parent"]["subscription_details"]["subscription"])


def _next_id(state: State, subscription: Body) -> str:
    return f"in_{state.digest('invoice', subscription['id'], state.invoices_of(subscription['id']) + 1)}"


def _metered(state: State, id: str, subscription: Body, epoch: int) -> list[Body]:
    now = datetime.fromtimestamp(epoch, UTC)
    items = (item for item in subscription["items"]["data"] if "quantity" not in item)
    ended = ({**item, "current_period_end": epoch} for item in items if item["current_period_start"] < epoch)
    return [invoice_line(state, now, id, subscription, item) for item in ended]


def _in_advance(state: State, id: str, subscription: Body, epoch: int) -> list[Body]:
    now = datetime.fromtimestamp(epoch, UTC)
    items = (item for item in subscription["items"]["data"] if "quantity" in item)
    lines = [invoice_line(state, now, id, subscription, item) for item in items]
    return [{**line, "amount": 0, "subtotal": 0} if subscription["status"] == "trialing" else line for line in lines]


def _for(state: State, subscription: Body, id: str, reason: str, period: tuple[int, int], lines: list[Body]) -> Body:
    keeps_draft = (subscription["pause_collection"] or {}).get("behavior") == "keep_as_draft"
    draft = empty_draft(id, subscription["customer"], subscription["currency"], reason, period)
    details = {"metadata": subscription["metadata"], "subscription": subscription["id"]}
    own = {
        "auto_advance": not keeps_draft,
        "automatically_finalizes_at": None if keeps_draft else draft["created"] + GRACE_SECONDS,
        "customer_email": (state.find("customer", subscription["customer"]) or {}).get("email"),
        "parent": {"type": "subscription_details", "quote_details": None, "subscription_details": details},
    }
    return with_lines(draft | own, lines)


def empty_draft(id: str, customer: str, currency: str, reason: str, period: tuple[int, int]) -> Body:
    """A draft made at the end of its period, over nothing, that no subscription stands behind."""
    draft = {
        "id": id,
        "object": "invoice",
        "amount_paid": 0,
        "attempt_count": 0,
        "attempted": False,
        "auto_advance": False,
        "automatically_finalizes_at": None,
        "billing_reason": reason,
        "collection_method": "charge_automatically",
        "created": period[1],
        "currency": currency,
        "customer": customer,
        "customer_email": None,
        "description": None,
        "due_date": None,
        "effective_at": None,
        "hosted_invoice_url": None,
        "lines": {"object": "list", "data": [], "has_more": False, "url": f"/v1/invoices/{id}/lines"},
        "livemode": False,
        "metadata": {},
        "next_payment_attempt": None,
        "number": None,
        "parent": None,
        "period_end": period[1],
        "period_start": period[0],
        "status": "draft",
        "status_transitions": {
            "finalized_at": None,
            "marked_uncollectible_at": None,
            "paid_at": None,
            "voided_at": None,
        },
        "total_taxes": [],
    }
    return with_lines(draft, [])


def with_lines(invoice: Body, lines: list[Body]) -> Body:
    """The invoice with these lines and what they come to."""
    total = sum(line["amount"] for line in lines)
    # What is below nothing becomes the customer's balance.
    due = max(total, 0)
    amounts = {"amount_due": due, "amount_remaining": due, "subtotal": total, "total": total}
    return {**invoice, **amounts, "lines": {**invoice["lines"], "data": lines}}
