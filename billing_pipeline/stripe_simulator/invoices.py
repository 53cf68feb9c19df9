"""POST /v1/invoices/create_preview: what a subscription's current period comes to by now.

A metered line's quantity is what its meter shows of the period, so it follows the summaries' lag, and is never below
nothing.  Nothing is stored: an invoice is a view of subscription, prices and meter events.
"""

from __future__ import annotations

from datetime import datetime
from decimal import ROUND_HALF_UP, Decimal
from typing import Any

from billing_pipeline.stripe_simulator.billing_periods import with_periods
from billing_pipeline.stripe_simulator.calls import Call
from billing_pipeline.stripe_simulator.counted import MINUTE
from billing_pipeline.stripe_simulator.meters import find_meter
from billing_pipeline.stripe_simulator.parameters import checked, text
from billing_pipeline.stripe_simulator.state import State
from billing_pipeline.stripe_simulator.summaries import aggregate
from billing_pipeline.stripe_simulator.wire import Body, forbidden, no_such


def preview_invoice(state: State, call: Call) -> Body:
    """The draft that the period would end with, were it to end now."""
    given = checked(call.params, {"subscription": text()}, {"customer": text()})
    stored = state.find("subscription", given["subscription"])
    if stored is None or given.get("customer", stored["customer"]) != stored["customer"]:
        raise no_such("subscription", given["subscription"], param="subscription")
    if stored["ended_at"] is not None:
        raise forbidden("A canceled subscription has no upcoming invoice.", param="subscription")
    subscription = with_periods(stored, call.epoch)
    id = f"upcoming_in_{state.digest('invoice', subscription['id'], call.epoch)}"
    lines = [invoice_line(state, call.now, id, subscription, item) for item in subscription["items"]["data"]]
    total = sum(line["amount"] for line in lines)
    return {
        "id": id,
        "object": "invoice",
        "amount_due": total,
        "billing_reason": "upcoming",
        "created": call.epoch,
        "currency": subscription["currency"],
        "customer": subscription["customer"],
        "lines": {
            "object": "list",
            "data": lines,
            "has_more": False,
            "url": f"/v1/invoices/upcoming/lines?subscription={subscription['id']}",
        },
        "livemode": False,
        "parent": {"type": "subscription_details", "subscription_details": {"subscription": subscription["id"]}},
        "period_end": max(line["period"]["end"] for line in lines),
        "period_start": min(line["period"]["start"] for line in lines),
        "status": "draft",
        "subtotal": total,
        "total": total,
    }


def invoice_line(state: State, now: datetime, invoice: str, subscription: Body, item: Body) -> Body:
    """What an item comes to in its period, as far as the summaries show it at `now`."""
    price, start, end = item["price"], item["current_period_start"], item["current_period_end"]
    customer = subscription["customer"]
    quantity = item["quantity"] if "quantity" in item else _used(state, now, customer, price, start, end)
    amount = int((Decimal(price["unit_amount_decimal"]) * quantity).quantize(Decimal(1), ROUND_HALF_UP))
    parent: dict[str, Any] = {
        "invoice_item": None,
        "proration": False,
        "subscription": subscription["id"],
        "subscription_item": item["id"],
    }
    return {
        "id": f"il_{state.digest(invoice, item['id'])}",
        "object": "line_item",
        "amount": amount,
        "currency": price["currency"],
        "description": None,
        "discountable": True,
        "invoice": invoice,
        "livemode": False,
        "metadata": {},
        "parent": {"type": "subscription_item_details", "subscription_item_details": parent},
        "period": {"start": start, "end": end},
        "pricing": {
            "type": "price_details",
            "price_details": {"price": price["id"], "product": price["product"]},
            "unit_amount_decimal": price["unit_amount_decimal"],
        },
        "quantity": quantity,
        "quantity_decimal": str(quantity),
        "subtotal": amount,
        "taxes": [],
    }


def _used(state: State, now: datetime, customer: str, price: Body, start: int, end: int) -> int:
    meter = find_meter(state, price["recurring"]["meter"])
    # The index knows whole minutes; of those that hold the period's edges, only events inside it count.
    seen = state.meter_events.visible(meter["id"], customer, start, end + MINUTE, now)
    events = [event for event in seen if start <= event.timestamp < end]
    return max(int(aggregate(meter, events)), 0) if events else 0
