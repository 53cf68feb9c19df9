"""Objects as Stripe showed them before API version 2025-03-31, for endpoints that are set to such a version.

Asked where an event is rendered for a delivery.  Since then a subscription's period is on its items, an invoice names
its subscription in `parent`, and a line its price in `pricing`.
Source: Stripe's changelog of 2025-03-31 (basil).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from billing_pipeline.stripe_simulator.wire import Body

MOVED_IN = "2025-03-31"
OLD_VERSION = "2025-02-24.acacia"

_PERIOD = ("current_period_start", "current_period_end")


def is_old(api_version: str) -> bool:
    """Whether a version is of before the shapes moved; versions begin with their date."""
    return api_version < MOVED_IN


def in_old_shape(kind: str, body: Body, price_of: Callable[[str], Body | None]) -> Body:
    """An object of a kind in the old shape; kinds that did not change stay as they are."""
    match kind:
        case "subscription":
            return _subscription(body)
        case "invoice":
            return _invoice(body, price_of)
    return body


def _subscription(body: Body) -> Body:
    items = body["items"]["data"]
    period = {name: items[0][name] for name in _PERIOD}
    stripped = [_without(item, *_PERIOD) | {"plan": _plan(item["price"])} for item in items]
    return {**body, **period, "items": {**body["items"], "data": stripped}}


def _invoice(body: Body, price_of: Callable[[str], Body | None]) -> Body:
    details = (body["parent"] or {}).get("subscription_details") or {}
    lines = [_line(line, price_of) for line in body["lines"]["data"]]
    is_paid = body["status"] == "paid"
    return {
        **_without(body, "parent", "total_taxes"),
        "charge": f"ch_{body['id']}" if is_paid and body["amount_paid"] else None,
        "lines": {**body["lines"], "data": lines},
        "paid": is_paid,
        "paid_out_of_band": False,
        "payment_intent": f"pi_{body['id']}" if body["attempt_count"] else None,
        "quote": None,
        "subscription": details.get("subscription"),
        "subscription_details": {"metadata": details.get("metadata")},
        "tax": None,
        "total_tax_amounts": [],
    }


def _line(line: Body, price_of: Callable[[str], Body | None]) -> Body:
    is_item = line["parent"]["type"] == "invoice_item_details"
    details = line["parent"][line["parent"]["type"]]
    price = None if is_item else price_of(line["pricing"]["price_details"]["price"])
    return {
        **_without(line, "parent", "pricing", "quantity_decimal", "taxes"),
        "plan": None if price is None else _plan(price),
        "price": price,
        "proration": details["proration"],
        "subscription": details["subscription"],
        **(
            {"invoice_item": details["invoice_item"]}
            if is_item
            else {"subscription_item": details["subscription_item"]}
        ),
        "tax_amounts": [],
        "type": "invoiceitem" if is_item else "subscription",
    }


def _plan(price: Body) -> Body:
    recurring: dict[str, Any] = price["recurring"] or {}
    return {
        "id": price["id"],
        "object": "plan",
        "amount": price["unit_amount"],
        "amount_decimal": price["unit_amount_decimal"],
        "currency": price["currency"],
        "interval": recurring.get("interval"),
        "interval_count": recurring.get("interval_count"),
        "meter": recurring.get("meter"),
        "product": price["product"],
        "usage_type": recurring.get("usage_type"),
    }


def _without(body: Body, *names: str) -> Body:
    return {name: value for name, value in body.items() if name not in names}
