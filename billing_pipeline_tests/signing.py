"""Makes webhook deliveries the way Stripe does: an event's bytes, and the header that signs them.

Nothing of the package is used, because it is judged with this.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

SECRET = "whsec_signing0secret0of0the0tests"
NOW = datetime(2026, 11, 20, 13, 0, tzinfo=UTC)


def signature_header(body: bytes, *secrets: str, at: datetime | int | None = None) -> str:
    """`Stripe-Signature` for these bytes with one v1 per secret; `at`: the machine's time unless given."""
    seconds = int(time.time() if at is None else at.timestamp() if isinstance(at, datetime) else at)
    message = b"%d.%b" % (seconds, body)
    digests = [hmac.new(secret.encode(), message, hashlib.sha256).hexdigest() for secret in secrets or (SECRET,)]
    return ",".join([f"t={seconds}", *(f"v1={digest}" for digest in digests)])


def event(event_id: str = "evt_1", event_type: str = "customer.subscription.updated", **fields: Any) -> dict[str, Any]:
    """A snapshot event in the shape of Stripe's; `fields` replace its own."""
    about = {
        "id": f"sub_{event_id.removeprefix('evt_')}",
        "object": "subscription",
        "customer": "cus_1",
        "metadata": {"organization_id": "acme"},
        "status": "active",
    }
    return {
        "id": event_id,
        "object": "event",
        "api_version": "2026-10-28.endive",
        "created": 1_763_640_000,
        "livemode": False,
        "pending_webhooks": 1,
        "request": {"id": None, "idempotency_key": None},
        "type": event_type,
        "data": {"object": about},
    } | fields


def body_of(event: dict[str, Any]) -> bytes:
    """The event as bytes, as Stripe writes them."""
    return json.dumps(event, separators=(",", ":"), ensure_ascii=False).encode()


def realistic_event(event_id: str, number: int) -> dict[str, Any]:
    """An invoice with two to nine lines, 2 to 6 kB as Stripe's are; the number decides which."""
    lines = [_invoice_line(event_id, line) for line in range(2 + number % 8)]
    invoice = {
        "id": f"in_{number % 5_000:08d}",
        "object": "invoice",
        "account_country": "US",
        "amount_due": 50_000 + number,
        "amount_paid": 0,
        "amount_remaining": 50_000 + number,
        "billing_reason": "subscription_cycle",
        "collection_method": "charge_automatically",
        "currency": "usd",
        "customer": f"cus_{number % 5_000:08d}",
        "customer_email": None,
        "customer_tax_exempt": "none",
        "default_payment_method": None,
        "discounts": [],
        "hosted_invoice_url": None,
        "lines": {"object": "list", "data": lines, "has_more": False, "url": f"/v1/invoices/in_{number}/lines"},
        "metadata": {},
        "number": f"ABC-{number:06d}",
        "parent": {
            "type": "subscription_details",
            "subscription_details": {
                "metadata": {"organization_id": f"org-{number % 5_000}"},
                "subscription": f"sub_{number % 5_000:08d}",
            },
        },
        "period_end": 1_763_640_000,
        "period_start": 1_761_000_000,
        "status": "draft",
        "status_transitions": {"finalized_at": None, "marked_uncollectible_at": None, "paid_at": None},
        "total": 50_000 + number,
    }
    types = ("invoice.created", "invoice.finalized", "invoice.updated", "invoice.paid")
    # Each a second after the last: two states of one invoice in one second would be a question to Stripe.
    return event(event_id, types[number % 4], created=1_763_640_000 + number, data={"object": invoice})


def _invoice_line(event_id: str, line: int) -> dict[str, Any]:
    return {
        "id": f"il_{event_id}_{line}",
        "object": "line_item",
        "amount": 12_345 + line,
        "currency": "usd",
        "description": "25000 units × API calls (at $0.02 / unit)",
        "discountable": True,
        "discounts": [],
        "livemode": False,
        "metadata": {},
        "parent": {
            "type": "subscription_item_details",
            "subscription_item_details": {"proration": False, "subscription_item": f"si_{event_id}_{line}"},
        },
        "period": {"end": 1_763_640_000, "start": 1_761_000_000},
        "pricing": {"type": "price_details", "price_details": {"price": f"price_{line}", "product": "prod_1"}},
        "quantity": 25_000 + line,
        "taxes": [],
    }


def signed(event: dict[str, Any], *secrets: str, at: Sequence[int] | int | None = None) -> tuple[bytes, dict[str, str]]:
    """A delivery: its bytes and its headers."""
    body = body_of(event)
    return body, {"Stripe-Signature": signature_header(body, *secrets, at=at), "Content-Type": "application/json"}
