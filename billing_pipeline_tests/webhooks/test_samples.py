"""Stripe's own samples pass through: events as `stripe trigger` sends them, and the objects of its OpenAPI fixtures."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from billing_pipeline.webhooks.dispatch import Dispatcher
from billing_pipeline.webhooks.handlers import HANDLERS
from billing_pipeline_tests.builders import map_customer
from billing_pipeline_tests.webhooks.events import event, store

STRIPE = Path(__file__).parents[3] / "shared/stripe"
NOW = datetime(2026, 9, 22, tzinfo=UTC)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not STRIPE.exists(), reason=f"{STRIPE} is not there: Stripe's samples are kept beside the code"),
]

TYPES = {
    "customer": ("customer.created", "customer.updated"),
    "subscription": ("customer.subscription.created", "customer.subscription.updated"),
    "invoice": ("invoice.created", "invoice.updated"),
    "checkout.session": ("checkout.session.completed",),
    "entitlements.active_entitlement_summary": ("entitlements.active_entitlement_summary.updated",),
    "charge": ("charge.succeeded",),
    "invoice_payment": ("invoice_payment.paid",),
    "subscription_schedule": ("subscription_schedule.updated",),
}


def pass_through(connection, events):
    """Outcome and error of each event, by its id, once everybody who is named has an organization."""
    named = {customer for one in events if isinstance(customer := one["data"]["object"].get("customer"), str)}
    for customer in sorted(named):
        map_customer(connection, f"org-{customer}", customer)
    store(connection, events, now=NOW)
    Dispatcher(connection, lambda: NOW).drain(events_max=len(events))
    found = connection.execute("SELECT stripe_event_id, processing_outcome, processing_error FROM stripe_events")
    return {event_id: (outcome, error) for event_id, outcome, error in found}


def test_every_event_that_stripe_trigger_sends_is_processed_or_ignored(connection):
    files = sorted(path for path in (STRIPE / "webhook_events").glob("*.json") if not path.stem.startswith("_"))
    events = [json.loads(path.read_text()) for path in files]

    outcomes = pass_through(connection, events)

    ours = {
        one["id"]
        for one in events
        if one["type"] != "invoice.upcoming" and any(handler.takes(one["type"]) for handler in HANDLERS.values())
    }
    assert len(ours) > 10
    assert outcomes == {one["id"]: ("processed" if one["id"] in ours else "ignored", None) for one in events}


def test_every_object_of_the_openapi_fixtures_passes_through_and_becomes_its_row(connection):
    shown = json.loads((STRIPE / "openapi/fixtures3.json").read_text())["resources"]
    events = [event(name, shown[kind], at=at) for kind, types in TYPES.items() for at, name in enumerate(types)]

    outcomes = pass_through(connection, events)

    kept = {handler.kind.value for handler in HANDLERS.values()}
    assert outcomes == {
        one["id"]: ("processed" if one["data"]["object"]["object"] in kept else "ignored", None) for one in events
    }
    rows = {
        "stripe_customers": ("customer", "stripe_customer_id"),
        "subscriptions": ("subscription", "stripe_subscription_id"),
        "invoices": ("invoice", "stripe_invoice_id"),
        "checkout_sessions": ("checkout.session", "stripe_session_id"),
    }
    for table, (kind, key) in rows.items():
        assert connection.execute(f"SELECT {key} FROM {table}").fetchall() == [(shown[kind]["id"],)]
