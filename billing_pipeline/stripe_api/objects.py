"""Asks Stripe for one object as it is now, whole, with the moment that the answer is good for.

Used where events cannot decide.  A list inside the object is read to its end, because Stripe shows only its first part.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, cast

import stripe

from billing_pipeline.domain.projections.projected import ObjectKind
from billing_pipeline.errors import StripeUnavailable
from billing_pipeline.settings import Settings
from billing_pipeline.stripe_api.client import translated_errors

PAGE_SIZE = 100  # Stripe's maximum
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
            return Shown({"id": object_id, "object": kind.value, "deleted": True}, _as_of(exc.headers, started))
        headers = found.last_response.headers if found.last_response else {}
        return Shown(_whole(client, kind, object_id, found), _as_of(headers, started))


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
    shown = _plain(found)
    if kind is ObjectKind.FEATURE_SUMMARY:
        listed = cast("stripe.ListObject[stripe.entitlements.ActiveEntitlement]", found)
        members = [_plain(member) for member in listed.auto_paging_iter()]
        return {"object": kind.value, "customer": object_id, "entitlements": {"data": members, "has_more": False}}
    if kind is ObjectKind.INVOICE and shown["lines"]["has_more"]:
        lines = client.v1.invoices.line_items.list(object_id, {"limit": PAGE_SIZE}).auto_paging_iter()
        shown["lines"] = {"data": [_plain(line) for line in lines], "has_more": False}
    if kind is ObjectKind.SUBSCRIPTION and shown["items"]["has_more"]:
        items = client.v1.subscription_items.list({"subscription": object_id, "limit": PAGE_SIZE}).auto_paging_iter()
        shown["items"] = {"data": [_plain(item) for item in items], "has_more": False}
    return shown


def _plain(found: stripe.StripeObject) -> dict[str, Any]:
    # The SDK makes decimals of Stripe's decimal texts; in an event they are texts.
    plain: dict[str, Any] = json.loads(json.dumps(found.to_dict(), default=lambda number: format(number, "f")))
    return plain


def _as_of(headers: Any, started: int) -> datetime:
    # Stripe's clock when the request left, at the latest: the state that was read cannot be older.
    date = next((value for name, value in (headers or {}).items() if name.lower() == "date"), None)
    if not date:
        raise StripeUnavailable("Stripe's answer has no Date, so it cannot be put in order. Try again later.")
    answered = parsedate_to_datetime(date).astimezone(UTC)
    underway = timedelta(microseconds=(time.monotonic_ns() - started) // 1_000)
    return (answered - underway).replace(microsecond=0)
