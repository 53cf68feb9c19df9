"""Reads Stripe's lists of events, page by page: what its webhooks would have delivered, for 30 days.

The list is eventually consistent, so whoever needs all of a span asks for one that is over, and again later.
Source: Stripe's API reference, "List all events" and "List all events" of v2.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any

import stripe

from billing_pipeline.errors import StripeUnavailable
from billing_pipeline.settings import Settings
from billing_pipeline.stripe_api.bodies import PAGE_SIZE, headers_of, pages
from billing_pipeline.stripe_api.client import translated_errors

KEPT = timedelta(days=30)
"""How long Stripe lists an event."""

Bodies = list[dict[str, Any]]


def stripe_now(client: stripe.StripeClient, settings: Settings) -> datetime:
    """What time it is at Stripe, in whole seconds.  Raises `StripeUnavailable` or `StripeRefused`."""
    with translated_errors(settings):
        listed = client.v1.events.list({"limit": 1})
    date = headers_of(listed).get("Date")
    if not date:
        raise StripeUnavailable("Stripe's answer has no Date, so nobody knows until when its list is whole.")
    return parsedate_to_datetime(date).astimezone(UTC)


def event_pages(
    client: stripe.StripeClient, settings: Settings, *, since: datetime, until: datetime
) -> Iterator[Bodies]:
    """Every event that Stripe made in [since, until), of every type, newest first.

    Raises `StripeUnavailable` or `StripeRefused`, also in the middle.
    """
    span = {"gte": int(since.timestamp()), "lt": int(until.timestamp())}
    with translated_errors(settings):
        for page in pages(client.v1.events.list, {"created": span}, size=PAGE_SIZE):
            yield page.bodies


def thin_event_pages(
    client: stripe.StripeClient, settings: Settings, types: Sequence[str], *, since: datetime, until: datetime
) -> Iterator[Bodies]:
    """Every thin event of these types that Stripe made in [since, until).

    Raises `StripeUnavailable` or `StripeRefused`, also in the middle.
    """
    span = {name: moment.strftime("%Y-%m-%dT%H:%M:%SZ") for name, moment in (("gte", since), ("lt", until))}
    with translated_errors(settings):
        filters: Any = {"types": list(types), "created": span, "limit": PAGE_SIZE}
        page: Bodies = []
        for event in client.v2.core.events.list(filters).auto_paging_iter():
            page.append(_notification(event.to_dict()))
            if len(page) == PAGE_SIZE:
                yield page
                page = []
        if page:
            yield page


def _notification(event: dict[str, Any]) -> dict[str, Any]:
    """The event as its notification would have been: without data, which whoever handles it fetches."""
    created = event["created"]
    named = {name: event.get(name) for name in ("id", "object", "type", "livemode", "context", "related_object")}
    return named | {"created": created.isoformat() if isinstance(created, datetime) else created}
