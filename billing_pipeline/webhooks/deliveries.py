"""What is stored of one webhook event, made from signed bytes or from what Stripe lists.

A body is read here once, for the envelope; whether all of it can be stored PostgreSQL says.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from billing_pipeline.domain.envelope import Envelope, parse_envelope
from billing_pipeline.domain.storable import storable
from billing_pipeline.errors import DeliveryRefused


@dataclass(frozen=True, slots=True)
class Delivery:
    """An event to store.  `payload` is its JSON text, None where the raw body can be stored as it is.

    `raw_body` and `matched_secret` are None for what was not delivered but found in Stripe's list.
    """

    envelope: Envelope
    raw_body: bytes | None
    payload: str | None
    matched_secret: str | None


def read_delivery(raw_body: bytes, matched_secret: str) -> Delivery:
    """A delivery whose signature is right.  Raises `DeliveryRefused` (invalid_payload) for what is no event."""
    try:
        text = raw_body.decode("utf-8")
    except ValueError:
        raise DeliveryRefused("invalid_payload", "The body is no UTF-8; nothing is stored.") from None
    kept = storable(text)
    return Delivery(parse_envelope(kept), raw_body, None if kept is text else kept, matched_secret)


def found_delivery(event: Mapping[str, Any]) -> Delivery:
    """An event as Stripe lists it.  Raises `DeliveryRefused` for what is no event."""
    payload = storable(json.dumps(event, separators=(",", ":")))
    return Delivery(parse_envelope(payload), None, payload, None)
