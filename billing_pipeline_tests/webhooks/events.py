"""Stripe's objects and events for tests, small and in today's shape unless a test says otherwise."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import datetime
from itertools import count
from typing import Any

from psycopg import Connection
from psycopg.types.json import Jsonb

from billing_pipeline.domain.envelope import parse_envelope

SECOND = 1_790_000_000
"""2026-09-21, a second that tests count from."""

_numbers = count(1)


def subscription(**overrides: Any) -> dict[str, Any]:
    """One monthly licensed item, active."""
    subscription_id = overrides.get("id", "sub_1")
    item = {
        "id": f"si_{subscription_id}",
        "object": "subscription_item",
        "current_period_start": SECOND,
        "current_period_end": SECOND + 2_592_000,
        "price": {
            "id": "price_1",
            "lookup_key": "starter",
            "product": "prod_1",
            "recurring": {"interval": "month", "interval_count": 1, "usage_type": "licensed", "meter": None},
        },
        "quantity": 1,
    }
    return {
        "id": subscription_id,
        "object": "subscription",
        "cancel_at_period_end": False,
        "created": SECOND,
        "currency": "usd",
        "customer": "cus_1",
        "items": {"object": "list", "data": [item], "has_more": False},
        "metadata": {"organization_id": "acme"},
        "status": "active",
    } | overrides


def invoice(**overrides: Any) -> dict[str, Any]:
    """A draft with one metered line."""
    line = {
        "id": "il_1",
        "object": "line_item",
        "amount": 4_800,
        "parent": {
            "subscription_item_details": {"subscription": "sub_1", "subscription_item": "si_2", "proration": False}
        },
        "period": {"start": SECOND, "end": SECOND + 2_592_000},
        "pricing": {"price_details": {"price": "price_2"}, "unit_amount_decimal": "4"},
        "quantity": 1_200,
        "quantity_decimal": "1200",
    }
    return {
        "id": "in_1",
        "object": "invoice",
        "amount_due": 4_800,
        "created": SECOND,
        "currency": "usd",
        "customer": "cus_1",
        "lines": {"object": "list", "data": [line], "has_more": False},
        "parent": {"subscription_details": {"subscription": "sub_1"}},
        "status": "draft",
        "status_transitions": {},
        "total": 4_800,
    } | overrides


def event(event_type: str, about: dict[str, Any], *, at: int = 0, **overrides: Any) -> dict[str, Any]:
    """A snapshot event, `at` so many seconds after `SECOND`."""
    return {
        "id": f"evt_test_{next(_numbers)}",
        "object": "event",
        "api_version": "2026-10-28.endive",
        "created": SECOND + at,
        "livemode": False,
        "type": event_type,
        "data": {"object": about},
    } | overrides


def store(connection: Connection[Any], events: Iterable[dict[str, Any]], *, now: datetime) -> None:
    """Put events into the inbox as the intake would, due at once."""
    for one in events:
        envelope = parse_envelope(json.dumps(one))
        connection.execute(
            "INSERT INTO stripe_events (stripe_event_id, event_type, payload_style, api_version, livemode, object_id,"
            " object_key, created_at, tenant_hint, payload, origin, received_at)"
            " VALUES (%s, %s, %s, %s, %s, %s, %s, %s, %s, %s, 'webhook', %s)",
            (
                envelope.stripe_event_id,
                envelope.event_type,
                envelope.payload_style,
                envelope.api_version,
                envelope.livemode,
                envelope.object_id,
                envelope.object_key,
                envelope.created_at,
                envelope.tenant_hint,
                Jsonb(one),
                now,
            ),
        )
        connection.execute(
            "INSERT INTO event_dispatches (stripe_event_id, object_key, created_at, due_at) VALUES (%s, %s, %s, %s)",
            (envelope.stripe_event_id, envelope.object_key, envelope.created_at, now),
        )
