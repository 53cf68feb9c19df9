"""A Stripe subscription with its items, in the shape before API version 2025-03-31 and since.

Before, the billing period stood on the subscription; since, on each item, because items may differ.
Source: Stripe's changelog of 2025-03-31 and its reference, "The Subscription object".
"""

from __future__ import annotations

from typing import Any

from billing_pipeline.domain.envelope import organization_hint
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

ACTIVE = frozenset({"trialing", "active", "past_due"})
"""States that give access: a payment that failed is retried by Stripe before the subscription ends."""

TERMINAL = frozenset({"canceled", "incomplete_expired"})

RANKS = {"incomplete": 0, "trialing": 1, "active": 2, "past_due": 3, "unpaid": 4, "paused": 5}
"""The usual way through a subscription's life, for two states of one second."""

PERIODS = {
    ("day", 1): "daily",
    ("week", 1): "weekly",
    ("month", 1): "monthly",
    ("month", 3): "quarterly",
    ("month", 6): "semiannual",
    ("month", 12): "annual",
    ("year", 1): "annual",
}


def project_subscription(subscription: Object) -> Projected:
    """The row of `subscriptions`.  Raises `EventUnreadable`."""
    subscription_id, status = required(subscription, "id"), required(subscription, "status")
    members, complete = items_of(subscription, "items")
    # By id: the order of the list is not part of the state.
    items = sorted(
        (_item(subscription, member) for member in members), key=lambda item: str(item["subscription_item_id"])
    )
    main = next((item for item in items if item["usage_type"] != "metered"), items[0] if items else {})
    customer_id = id_of(subscription, "customer") or required(subscription, "customer")
    starts = sorted(str(item["current_period_start"]) for item in items if item["current_period_start"])
    ends = sorted(str(item["current_period_end"]) for item in items if item["current_period_end"])
    return Projected(
        ObjectKind.SUBSCRIPTION,
        subscription_id,
        customer_id,
        {
            "stripe_subscription_id": subscription_id,
            "stripe_customer_id": customer_id,
            "organization_hint": organization_hint(subscription),
            "status": status,
            "is_active": status in ACTIVE,
            "plan": main.get("lookup_key") or main.get("price_id"),
            "billing_period": _billing_period(main),
            "currency": text(subscription, "currency"),
            "current_period_start": starts[0] if starts else instant(subscription, "current_period_start"),
            "current_period_end": ends[0] if ends else instant(subscription, "current_period_end"),
            "trial_ends_at": instant(subscription, "trial_end"),
            "cancel_at_period_end": boolean(subscription, "cancel_at_period_end") or False,
            "cancel_at": instant(subscription, "cancel_at"),
            "canceled_at": instant(subscription, "canceled_at"),
            "ended_at": instant(subscription, "ended_at"),
            "collection_paused": text(part(subscription, "pause_collection"), "behavior"),
            "latest_invoice_id": id_of(subscription, "latest_invoice"),
            "created_at": instant(subscription, "created"),
            "items": items,
            "items_complete": complete,
        },
        terminal=status in TERMINAL,
        rank=RANKS.get(status, len(RANKS)),
        complete=complete,
    )


def _item(subscription: Object, item: Object) -> dict[str, Any]:
    price = part(item, "price") or part(item, "plan")
    # A plan, the older form, has these on itself.
    recurring = part(price, "recurring") or price
    return {
        "subscription_item_id": required(item, "id"),
        "price_id": text(price, "id"),
        "lookup_key": text(price, "lookup_key"),
        "product_id": id_of(price, "product"),
        "meter_id": text(recurring, "meter"),
        "usage_type": text(recurring, "usage_type"),
        "interval": text(recurring, "interval"),
        "interval_count": integer(recurring, "interval_count"),
        "quantity": decimal(item, "quantity"),
        "current_period_start": instant(item, "current_period_start") or instant(subscription, "current_period_start"),
        "current_period_end": instant(item, "current_period_end") or instant(subscription, "current_period_end"),
    }


def _billing_period(item: Object) -> str | None:
    interval, count = item.get("interval"), item.get("interval_count") or 1
    return PERIODS.get((interval, count), f"every_{count}_{interval}s") if interval else None
