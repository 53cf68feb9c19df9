"""/v1/invoiceitems: what is billed once, put on a draft as a line of its own.

Amounts are minor units of the invoice's currency; a negative price per unit takes from what is due.
Items that wait for the next invoice are refused: the simulator has no invoice to put them on.
"""

from __future__ import annotations

from decimal import ROUND_HALF_UP, Decimal

from billing_pipeline.stripe_simulator.calls import Call, Write, created, updated
from billing_pipeline.stripe_simulator.lists import PAGING, page
from billing_pipeline.stripe_simulator.parameters import (
    checked,
    group,
    integer,
    interval,
    plain_decimal,
    string_map,
    text,
)
from billing_pipeline.stripe_simulator.period_invoices import find_invoice
from billing_pipeline.stripe_simulator.state import State
from billing_pipeline.stripe_simulator.subscription_invoices import subscription_of, with_lines
from billing_pipeline.stripe_simulator.wire import Body, forbidden, invalid, no_such

ITEMS_MAX = 250
"""Of an invoice (Stripe API reference, "Create an invoice item")."""


def create_invoice_item(state: State, call: Call) -> Write:
    """POST /v1/invoiceitems, for a draft only"""
    required = {"customer": text(), "invoice": text(), "unit_amount_decimal": plain_decimal}
    optional = {
        "currency": text(3),
        "description": text(),
        "metadata": string_map,
        "period": group({"start": integer(0), "end": integer(0)}),
        "quantity": integer(0),
    }
    given = checked(call.params, required, optional)
    invoice = find_invoice(state, given["invoice"])
    if invoice["customer"] != given["customer"]:
        raise no_such("invoice", given["invoice"], param="invoice")
    if invoice["status"] != "draft":
        raise forbidden(
            f"The invoice {invoice['id']} is {invoice['status']}; items are added to drafts only.",
            code="invoice_not_editable",
        )
    if str(given.get("currency", invoice["currency"])).lower() != invoice["currency"]:
        raise invalid(f"The invoice {invoice['id']} is in {invoice['currency']}.", "currency")
    if len(_items_of(state, invoice["id"])) >= ITEMS_MAX:
        raise invalid(f"The invoice {invoice['id']} has {ITEMS_MAX} items, which is the most it takes.", "invoice")
    item = _item(state.new_id("invoiceitem", "ii"), call.epoch, invoice, given)
    changed = with_lines(invoice, [*invoice["lines"]["data"], _line(state, invoice, item)])
    return Write((updated("invoice", changed), created("invoiceitem", item)))


def list_invoice_items(state: State, call: Call) -> Body:
    """GET /v1/invoiceitems"""
    given = checked(call.params, optional={**PAGING, "created": interval, "customer": text(), "invoice": text()})
    created_at = given.get("created")
    items = [
        item
        for item in state.newest_first("invoiceitem")
        if given.get("customer") in (None, item["customer"])
        and given.get("invoice") in (None, item["invoice"])
        and (created_at is None or created_at(item["date"]))
    ]
    return page(items, given, url="/v1/invoiceitems", what="invoice item")


def _items_of(state: State, invoice: str) -> list[Body]:
    return [item for item in state.newest_first("invoiceitem") if item["invoice"] == invoice]


def _item(id: str, epoch: int, invoice: Body, given: Body) -> Body:
    price, quantity = given["unit_amount_decimal"], given.get("quantity", 1)
    return {
        "id": id,
        "object": "invoiceitem",
        "amount": int((Decimal(price) * quantity).quantize(Decimal(1), ROUND_HALF_UP)),
        "currency": invoice["currency"],
        "customer": invoice["customer"],
        "date": epoch,
        "description": given.get("description"),
        "discountable": price > 0,
        "discounts": [],
        "invoice": invoice["id"],
        "livemode": False,
        "metadata": given.get("metadata", {}),
        "parent": None,
        "period": given.get("period", {"start": epoch, "end": epoch}),
        "pricing": {"type": "price_details", "unit_amount_decimal": str(price)},
        "proration": False,
        "quantity": quantity,
        "quantity_decimal": str(quantity),
        "tax_rates": [],
        "test_clock": None,
    }


def _line(state: State, invoice: Body, item: Body) -> Body:
    return {
        "id": f"il_{state.digest(invoice['id'], item['id'])}",
        "object": "line_item",
        "amount": item["amount"],
        "currency": item["currency"],
        "description": item["description"],
        "discountable": item["discountable"],
        "invoice": invoice["id"],
        "livemode": False,
        "metadata": item["metadata"],
        "parent": {
            "type": "invoice_item_details",
            "invoice_item_details": {
                "invoice_item": item["id"],
                "proration": False,
                "subscription": subscription_of(invoice) or None,
            },
        },
        "period": item["period"],
        "pricing": item["pricing"],
        "quantity": item["quantity"],
        "quantity_decimal": item["quantity_decimal"],
        "subtotal": item["amount"],
        "taxes": [],
    }
