"""Asks Stripe for one object as it is now, whole, with the moment that the answer is good for.

Used where events cannot decide.  A list inside the object is read to its end, because Stripe shows only its first part.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any

import stripe

from billing_pipeline.domain.projections.projected import ObjectKind
from billing_pipeline.errors import StripeUnavailable
from billing_pipeline.settings import Settings
from billing_pipeline.stripe_api.bodies import PAGE_SIZE, body_of, headers_of, pages
from billing_pipeline.stripe_api.client import translated_errors

GONE = 404


@dataclass(frozen=True, slots=True)
class Shown:
    """An object and a whole second of Stripe's clock: everything before it is in the object, later things may be."""

    payload: dict[str, Any]
    as_of: datetime


def read_object(client: stripe.StripeClient, settings: Settings, kind: ObjectKind, object_id: str) -> Shown:
    """The object as Stripe has it; one that is gone as `{"id": ..., "deleted": True}`.

    Raises `StripeUnavailable` or `StripeRefused`.
    """
    started = time.monotonic_ns()
    with translated_errors(settings):
        try:
            found = _retrieve(client, kind, object_id)
        except stripe.InvalidRequestError as exc:
            if exc.http_status != GONE:
                raise
            # Customers and subscriptions stay readable; only a draft that was deleted is really gone.
            return Shown(_gone(kind, object_id), as_of(exc.headers, started))
        return Shown(_whole(client, kind, object_id, found), as_of(headers_of(found), started))


def _gone(kind: ObjectKind, object_id: str) -> dict[str, Any]:
    if kind is ObjectKind.FEATURE_SUMMARY:
        return {"object": kind.value, "customer": object_id, "entitlements": {"data": [], "has_more": False}}
    return {"id": object_id, "object": kind.value, "deleted": True}


def _retrieve(client: stripe.StripeClient, kind: ObjectKind, object_id: str) -> stripe.StripeObject:
    match kind:
        case ObjectKind.CUSTOMER:
            return client.v1.customers.retrieve(object_id)
        case ObjectKind.SUBSCRIPTION:
            return client.v1.subscriptions.retrieve(object_id)
        case ObjectKind.INVOICE:
            return client.v1.invoices.retrieve(object_id)
        case ObjectKind.CHECKOUT_SESSION:
            return client.v1.checkout.sessions.retrieve(object_id)
        case ObjectKind.FEATURE_SUMMARY:
            return client.v1.entitlements.active_entitlements.list({"customer": object_id, "limit": PAGE_SIZE})


def _whole(client: stripe.StripeClient, kind: ObjectKind, object_id: str, found: stripe.StripeObject) -> dict[str, Any]:
    shown = body_of(found)
    if kind is ObjectKind.FEATURE_SUMMARY:
        members = _members(client.v1.entitlements.active_entitlements.list, {"customer": object_id}, shown)
        return {"object": kind.value, "customer": object_id, "entitlements": {"data": members, "has_more": False}}
    if kind is ObjectKind.INVOICE and shown["lines"]["has_more"]:
        members = _members(partial(client.v1.invoices.line_items.list, object_id), {})
        shown["lines"] = {"data": members, "has_more": False}
    if kind is ObjectKind.SUBSCRIPTION and shown["items"]["has_more"]:
        members = _members(client.v1.subscription_items.list, {"subscription": object_id})
        shown["items"] = {"data": members, "has_more": False}
    return shown


def _members(fetch: Callable[[Any], Any], filters: dict[str, Any], first: dict[str, Any] | None = None) -> list[Any]:
    """Every member of a list; where its first page is known and is all, nothing more is asked."""
    if first is not None and not first.get("has_more"):
        return list(first.get("data") or [])
    return [member for page in pages(fetch, filters) for member in page.bodies]


def as_of(headers: Any, started: int) -> datetime:
    """Stripe's clock when the request left, at the latest: the state that was read cannot be older.

    `started` is `time.monotonic_ns()` before the request.  Raises `StripeUnavailable` for an answer without its time.
    """
    date = next((value for name, value in (headers or {}).items() if name.lower() == "date"), None)
    if not date:
        raise StripeUnavailable("Stripe's answer has no Date, so it cannot be put in order. Try again later.")
    answered = parsedate_to_datetime(date).astimezone(UTC)
    return (answered - timedelta(microseconds=(time.monotonic_ns() - started) // 1_000)).replace(microsecond=0)
