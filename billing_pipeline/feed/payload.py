"""What an organization is told of one webhook event: a `BillingEventPayload`, the same for every API version.

It is made of our projections and not of Stripe's objects, so it has no names, addresses or free texts.
`billing_event_payload.v1.json` is its contract; a field is added or taken away only with another version.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib import resources
from typing import Any

from jsonschema import Draft202012Validator

from billing_pipeline.domain.projections.projected import ObjectKind, Projected

VERSION = 1
SCHEMA_FILE = f"billing_event_payload.v{VERSION}.json"
LINES_MAX = 100
"""Of an invoice; a message that a browser reads must not have the size of a table."""

Columns = Mapping[str, Any]


def make_payload(
    shown: Projected, *, organization_id: str, stripe_event_id: str, event_type: str, occurred_at: datetime
) -> dict[str, Any]:
    """The payload of an event that showed this object; `occurred_at` is Stripe's time of it.

    Times are ISO 8601 in UTC, amounts whole minor units of the `currency` beside them, quantities exact decimals as
    text.  Of the parts named like kinds of objects one is there and the others are null.
    """
    parts: dict[str, Any] = {name: None for name, _ in PARTS.values()}
    name, make = PARTS[shown.kind]
    parts[name] = make(shown.columns)
    return {
        "version": VERSION,
        "organization_id": organization_id,
        "stripe_event_id": stripe_event_id,
        "event_type": event_type,
        "occurred_at": occurred_at.astimezone(UTC).isoformat(),
        "kind": name,
        "object_id": shown.object_id,
        "status": shown.columns.get("status"),
        **parts,
    }


def faults_of(payload: object) -> list[str]:
    """Where a payload breaks the schema, one line each, without its values; none where it fits."""
    found = _validator().iter_errors(payload)
    return [f"{fault.json_path}: {fault.validator}" for fault in sorted(found, key=lambda fault: fault.json_path)]


def schema() -> dict[str, Any]:
    """The JSON Schema of this version."""
    text = (resources.files("billing_pipeline.feed") / SCHEMA_FILE).read_text(encoding="utf-8")
    return dict(json.loads(text))


@cache
def _validator() -> Draft202012Validator:
    return Draft202012Validator(schema())


def _subscription(columns: Columns) -> dict[str, Any]:
    return {"subscription_id": columns["stripe_subscription_id"]} | _only(
        columns,
        "status",
        "is_active",
        "plan",
        "billing_period",
        "currency",
        "current_period_start",
        "current_period_end",
        "trial_ends_at",
        "cancel_at_period_end",
        "cancel_at",
        "canceled_at",
        "ended_at",
    )


def _invoice(columns: Columns) -> dict[str, Any]:
    lines = columns["lines"]
    return {
        "invoice_id": columns["stripe_invoice_id"],
        "subscription_id": columns["stripe_subscription_id"],
        **_only(
            columns,
            "number",
            "status",
            "billing_reason",
            "currency",
            "subtotal",
            "total",
            "amount_due",
            "amount_paid",
            "amount_remaining",
            "attempt_count",
            "next_payment_attempt_at",
            "finalized_at",
            "paid_at",
        ),
        "lines": [
            _only(line, "price_id", "quantity", "amount", "proration", "period_start", "period_end")
            for line in lines[:LINES_MAX]
        ],
        "lines_complete": columns["lines_complete"] and len(lines) <= LINES_MAX,
    }


def _checkout(columns: Columns) -> dict[str, Any]:
    return {
        "session_id": columns["stripe_session_id"],
        "subscription_id": columns["stripe_subscription_id"],
        **_only(columns, "mode", "status", "payment_status"),
    }


def _customer(columns: Columns) -> dict[str, Any]:
    return _only(columns, "currency", "delinquent", "deleted")


def _features(columns: Columns) -> dict[str, Any]:
    return _only(columns, "features", "features_complete")


def _only(columns: Columns, *names: str) -> dict[str, Any]:
    return {name: columns[name] for name in names}


PARTS: Mapping[ObjectKind, tuple[str, Callable[[Columns], dict[str, Any]]]] = {
    ObjectKind.SUBSCRIPTION: ("subscription", _subscription),
    ObjectKind.INVOICE: ("invoice", _invoice),
    ObjectKind.CHECKOUT_SESSION: ("checkout", _checkout),
    ObjectKind.CUSTOMER: ("customer", _customer),
    ObjectKind.FEATURE_SUMMARY: ("entitlements", _features),
}
"""The part of the payload that each kind of object fills, and how."""
