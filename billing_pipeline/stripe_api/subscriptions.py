"""Reads the metered items of Stripe's subscriptions with the billing period each is in.

Asked by the period sync before usage is counted.  Both shapes are read: since API version 2025-03-31 the period is on
the item, before it was on the subscription.  One listing serves all customers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import stripe

from billing_pipeline.errors import StripeRefused
from billing_pipeline.settings import Settings
from billing_pipeline.stripe_api.client import translated_errors

PAGE_SIZE = 100  # Stripe's maximum


@dataclass(frozen=True, slots=True)
class ItemPeriod:
    """The billing period [starts_at, ends_at) that a metered subscription item is in, or was in when it ended.

    Where both are equal the item ended with its period's first second: it is in no period.
    """

    subscription_item_id: str
    stripe_customer_id: str
    event_name: str
    starts_at: datetime
    ends_at: datetime


def item_periods(
    client: stripe.StripeClient, settings: Settings, event_names: Mapping[str, str], *, ended_since: datetime
) -> list[ItemPeriod]:
    """The periods of all metered items; `event_names` are those of the meters, by Stripe's meter id.

    Subscriptions whose period ended before `ended_since` are left out, so that the canceled ones of years do not make
    the listing longer.  Raises `StripeUnavailable` or `StripeRefused`.
    """
    # A canceled subscription keeps its natural period, so this finds every one that ended after `ended_since`.
    filters: stripe.params.SubscriptionListParams = {
        "status": "all",
        "current_period_end": {"gte": int(ended_since.timestamp())},
        "limit": PAGE_SIZE,
    }
    found: list[ItemPeriod] = []
    with translated_errors(settings):
        for subscription in client.v1.subscriptions.list(filters).auto_paging_iter():
            # Of a long list of items only the first page is inside the subscription.
            items = [item.to_dict() for item in subscription["items"].auto_paging_iter()]
            found += parse_item_periods(subscription.to_dict(), items, event_names)
    return found


def parse_item_periods(
    subscription: Mapping[str, Any], items: Iterable[Mapping[str, Any]], event_names: Mapping[str, str]
) -> Iterator[ItemPeriod]:
    """The periods of a subscription's metered items; items of other prices and of unknown meters have none.

    Raises `StripeRefused` for an item whose period is in neither of the two places.
    """
    customer = subscription["customer"]
    for item in items:
        recurring = (item.get("price") or {}).get("recurring") or {}
        event_name = event_names.get(recurring.get("meter") or "")
        if event_name is None:
            continue
        start, end = (_bound(subscription, item, f"current_period_{bound}") for bound in ("start", "end"))
        # Canceled at once: the period ends early, although Stripe still shows its natural end.
        end = min(end, subscription.get("ended_at") or end)
        yield ItemPeriod(
            subscription_item_id=item["id"],
            stripe_customer_id=customer if isinstance(customer, str) else customer["id"],
            event_name=event_name,
            starts_at=datetime.fromtimestamp(start, UTC),
            ends_at=datetime.fromtimestamp(max(start, end), UTC),
        )


def _bound(subscription: Mapping[str, Any], item: Mapping[str, Any], name: str) -> int:
    epoch = item.get(name) or subscription.get(name)
    if epoch is None:
        raise StripeRefused(
            f"Stripe's subscription {subscription['id']} has no {name} on its item {item['id']}, so its usage cannot "
            "be put into a period. Nothing is counted. Look at the subscription in Stripe."
        )
    return int(epoch)
