"""Goes through all of Stripe's objects of a kind, page by page, each with the moment that the page is good for.

Used where events cannot help: a gap of more than 30 days, and events that Stripe never made.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

import stripe

from billing_pipeline.domain.projections.projected import ObjectKind
from billing_pipeline.settings import Settings
from billing_pipeline.stripe_api.bodies import pages
from billing_pipeline.stripe_api.client import translated_errors
from billing_pipeline.stripe_api.objects import Shown, as_of, read_object

UNFINISHED = ("draft", "open", "uncollectible")
"""States that an invoice may still leave."""

LISTS_INSIDE = {ObjectKind.SUBSCRIPTION: "items", ObjectKind.INVOICE: "lines"}


def all_objects(
    client: stripe.StripeClient, settings: Settings, kind: ObjectKind, *, recent_since: datetime
) -> Iterator[list[Shown]]:
    """Pages of all customers, of all subscriptions, or of all invoices that are unfinished or made since then.

    Raises `StripeUnavailable` or `StripeRefused`, also in the middle.
    """
    for filters in _filters(kind, recent_since):
        yield from _pages(client, settings, kind, filters)


def _filters(kind: ObjectKind, recent_since: datetime) -> list[dict[str, Any]]:
    match kind:
        case ObjectKind.SUBSCRIPTION:
            return [{"status": "all"}]
        case ObjectKind.INVOICE:
            unfinished: list[dict[str, Any]] = [{"status": status} for status in UNFINISHED]
            return [*unfinished, {"created": {"gte": int(recent_since.timestamp())}}]
        case _:
            return [{}]


def _pages(
    client: stripe.StripeClient, settings: Settings, kind: ObjectKind, filters: dict[str, Any]
) -> Iterator[list[Shown]]:
    lists: dict[ObjectKind, Callable[[Any], Any]] = {
        ObjectKind.CUSTOMER: client.v1.customers.list,
        ObjectKind.SUBSCRIPTION: client.v1.subscriptions.list,
        ObjectKind.INVOICE: client.v1.invoices.list,
    }
    started = time.monotonic_ns()
    with translated_errors(settings):
        for page in pages(lists[kind], filters):
            moment = as_of(page.headers, started)
            yield [_whole(client, settings, kind, Shown(body, moment)) for body in page.bodies]
            started = time.monotonic_ns()


def _whole(client: stripe.StripeClient, settings: Settings, kind: ObjectKind, shown: Shown) -> Shown:
    inside = shown.payload.get(LISTS_INSIDE.get(kind, "")) or {}
    return read_object(client, settings, kind, shown.payload["id"]) if inside.get("has_more") else shown
