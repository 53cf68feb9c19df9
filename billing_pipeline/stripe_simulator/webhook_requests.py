"""One delivery as the request that is sent: address, headers, signature and the very bytes.

Made anew for each attempt, because the signature holds the time of sending.
Source: Stripe's guide "Receive Stripe events", on the `Stripe-Signature` header; `v0` is what test mode adds.
"""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Iterable
from dataclasses import dataclass, field

from billing_pipeline.stripe_simulator.core_events import notification
from billing_pipeline.stripe_simulator.error_reports import ErrorReport
from billing_pipeline.stripe_simulator.snapshots import API_VERSION
from billing_pipeline.stripe_simulator.state import State
from billing_pipeline.stripe_simulator.webhook_deliveries import Delivery
from billing_pipeline.stripe_simulator.webhook_endpoints import secrets_at
from billing_pipeline.stripe_simulator.wire import Body

USER_AGENT = "Stripe/1.0 (+https://stripe.com/docs/webhooks)"


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One attempt of a delivery: POST `body` to `url` with these headers."""

    delivery: str
    event: str
    endpoint: str
    attempt: int
    url: str
    headers: dict[str, str] = field(repr=False)
    body: bytes = field(repr=False)


def outgoing(state: State, delivery: Delivery, epoch: int) -> Outgoing:
    """The request of a delivery's next attempt, signed at `epoch` with every secret that is valid then."""
    endpoint = state.deliveries.endpoint(delivery.endpoint)
    assert endpoint is not None, "what is due has an endpoint"
    body = json.dumps(_body(state, delivery, endpoint), indent=2, ensure_ascii=False).encode()
    headers = {
        "Content-Type": "application/json; charset=utf-8",
        "Stripe-Signature": signature(body, secrets_at(endpoint, epoch), epoch),
        "User-Agent": USER_AGENT,
    }
    return Outgoing(
        delivery.id, delivery.event.id, endpoint["id"], delivery.attempts + 1, endpoint["url"], headers, body
    )


def _body(state: State, delivery: Delivery, endpoint: Body) -> Body:
    if isinstance(delivery.event, ErrorReport):
        return notification(delivery.event)
    version = endpoint["api_version"] or API_VERSION
    pending = state.deliveries.pending(delivery.event.id)
    return delivery.event.body(pending, version, lambda price: state.find("price", price))


def signature(body: bytes, secrets: Iterable[str], epoch: int) -> str:
    """The `Stripe-Signature` header: one `v1` for each secret, and the `v0` that must be ignored."""
    signed = [f"v1={_hmac(secret, body, epoch)}" for secret in secrets]
    return ",".join((f"t={epoch}", *signed, f"v0={_hmac('not a secret', body, epoch)}"))


def _hmac(secret: str, body: bytes, epoch: int) -> str:
    return hmac.new(secret.encode(), f"{epoch}.".encode() + body, hashlib.sha256).hexdigest()
