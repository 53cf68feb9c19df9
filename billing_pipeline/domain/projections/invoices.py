"""A Stripe invoice with its lines, in the shape before API version 2025-03-31 and since, and the way of its states.

Amounts are minor units of the invoice's currency.  A line's period is the service's; the invoice's own is not, so it is
not kept.  Source: Stripe's changelog of 2025-03-31 and its reference, "The Invoice object".
"""

from __future__ import annotations

from typing import Any

from billing_pipeline.domain.projections.projected import ObjectKind, Projected
from billing_pipeline.domain.projections.reading import (
    Object,
    boolean,
    decimal,
    id_of,
    instant,
    integer,
    items_of,
    part,
    required,
    text,
)
from billing_pipeline.errors import EventUnreadable

TRANSITIONS = {
    "draft": frozenset({"open", "paid", "void", "uncollectible", "deleted"}),
    "open": frozenset({"paid", "void", "uncollectible"}),
    "uncollectible": frozenset({"paid", "void"}),
    "paid": frozenset[str](),
    "void": frozenset[str](),
    "deleted": frozenset[str](),
}
"""Where an invoice may go from each state; a draft of nothing is paid at once.  A state with no way on is for ever.

Source: Stripe, "How invoices work: status transitions and finalization".
"""

RANKS = {"draft": 0, "open": 1, "uncollectible": 2, "paid": 3, "void": 3, "deleted": 3}


def project_invoice(invoice: Object) -> Projected:
    """The row of `invoices`.  Raises `EventUnreadable`."""
    invoice_id = required(invoice, "id")
    status = "deleted" if boolean(invoice, "deleted") else required(invoice, "status")
    if status not in TRANSITIONS:
        raise EventUnreadable(
            f"Stripe's invoice {invoice_id} is in a state unknown here: {status}. Nothing is changed."
        )
    members, complete = items_of(invoice, "lines")
    became = part(invoice, "status_transitions")
    customer_id = id_of(invoice, "customer")
    return Projected(
        ObjectKind.INVOICE,
        invoice_id,
        customer_id,
        {
            "stripe_invoice_id": invoice_id,
            "stripe_customer_id": customer_id,
            "stripe_subscription_id": _subscription_of(invoice),
            "number": text(invoice, "number"),
            "status": status,
            "billing_reason": text(invoice, "billing_reason"),
            "currency": text(invoice, "currency"),
            "subtotal": integer(invoice, "subtotal"),
            "total": integer(invoice, "total"),
            "amount_due": integer(invoice, "amount_due"),
            "amount_paid": integer(invoice, "amount_paid"),
            "amount_remaining": integer(invoice, "amount_remaining"),
            "attempt_count": integer(invoice, "attempt_count"),
            "next_payment_attempt_at": instant(invoice, "next_payment_attempt"),
            "finalizes_at": instant(invoice, "automatically_finalizes_at"),
            "finalized_at": instant(became, "finalized_at"),
            "paid_at": instant(became, "paid_at"),
            "voided_at": instant(became, "voided_at"),
            "uncollectible_at": instant(became, "marked_uncollectible_at"),
            "created_at": instant(invoice, "created"),
            "lines": sorted(map(_line, members), key=lambda line: str(line["invoice_line_id"])),
            "lines_complete": complete,
        },
        terminal=not TRANSITIONS[status],
        rank=RANKS[status],
        complete=complete,
    )


def _subscription_of(invoice: Object) -> str | None:
    return id_of(part(invoice, "parent", "subscription_details"), "subscription") or id_of(invoice, "subscription")


def _line(line: Object) -> dict[str, Any]:
    of_item, of_invoice_item = (
        part(line, "parent", f"{kind}_details") for kind in ("subscription_item", "invoice_item")
    )
    # The older shape has the whole price, or a plan; the newer only its id.
    price = part(line, "price") or part(line, "plan")
    pricing = part(line, "pricing")
    period = part(line, "period")
    return {
        "invoice_line_id": required(line, "id"),
        "stripe_subscription_id": id_of(of_item, "subscription")
        or id_of(of_invoice_item, "subscription")
        or id_of(line, "subscription"),
        "subscription_item_id": text(of_item, "subscription_item") or text(line, "subscription_item"),
        "price_id": id_of(part(pricing, "price_details"), "price") or text(price, "id"),
        "meter_id": text(part(price, "recurring") or price, "meter"),
        "proration": boolean(of_item or of_invoice_item or line, "proration"),
        "quantity": decimal(line, "quantity_decimal") or decimal(line, "quantity"),
        "amount": integer(line, "amount"),
        "unit_amount": decimal(pricing, "unit_amount_decimal") or decimal(price, "unit_amount_decimal"),
        "period_start": instant(period, "start"),
        "period_end": instant(period, "end"),
        "description": text(line, "description"),
    }
