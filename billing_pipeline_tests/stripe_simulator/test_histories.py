"""Histories hold together: the last event of an object is the object, and every chain of changes is whole."""

from __future__ import annotations

import json

from hypothesis import HealthCheck, given, settings

from billing_pipeline.stripe_simulator.journal import MemoryJournal
from billing_pipeline.stripe_simulator.old_shape import OLD_VERSION
from billing_pipeline.stripe_simulator.webhook_weather import Trouble, WebhookWeather
from billing_pipeline_tests.fix_histories import MOVES, histories, play, random_history, random_steps
from billing_pipeline_tests.fix_simulator import make_core


def last_shown(history, kind, id):
    """The object in its last event."""
    shown = [event["data"]["object"] for event in history.events if event["data"]["object"].get("id") == id]
    return shown[-1]


def settled(kind, body):
    """What of an object does not follow from usage that was not yet told of."""
    if kind == "invoice" and body["status"] == "draft":
        return {**body, **dict.fromkeys(("lines", "total", "subtotal", "amount_due", "amount_remaining"))}
    return body


def check(history):
    entitled = {}
    for event in history.events:
        if event["type"] == "entitlements.active_entitlement_summary.updated":
            entitled[event["data"]["object"]["customer"]] = event["data"]["object"]["entitlements"]["data"]
    for customer, listed in history.final["active_entitlements"].items():
        assert entitled.get(customer, []) == listed["data"]
    for kind, objects in history.final.items():
        if kind == "active_entitlements":
            continue
        for id, body in objects.items():
            if body.get("deleted"):
                types = [e["type"] for e in history.events if e["data"]["object"].get("id") == id]
                assert types[-1] == f"{kind}.deleted"
            else:
                assert settled(kind, last_shown(history, kind, id)) == settled(kind, body)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(history=histories(steps_max=25))
def test_events_are_in_order_and_each_id_is_there_once(history):
    created = [event["created"] for event in history.events]

    assert created == sorted(created)
    assert len({event["id"] for event in history.events}) == len(history.events)
    assert json.loads(json.dumps(history.events)) == history.events


def test_the_last_event_of_an_object_is_the_object():
    for seed in range(6):
        check(random_history(seed, 150, old_percent=0))


def test_a_long_history_has_every_move_and_every_type():
    history = random_history(1, 1500, old_percent=0)
    types = {event["type"] for event in history.events}

    assert set(history.played) == set(MOVES)
    assert {
        "checkout.session.completed",
        "checkout.session.expired",
        "customer.created",
        "customer.deleted",
        "customer.subscription.created",
        "customer.subscription.deleted",
        "customer.subscription.trial_will_end",
        "customer.subscription.updated",
        "customer.updated",
        "entitlements.active_entitlement_summary.updated",
        "invoice.created",
        "invoice.finalized",
        "invoice.marked_uncollectible",
        "invoice.paid",
        "invoice.payment_failed",
        "invoice.payment_succeeded",
        "invoice.updated",
        "invoice.voided",
    } <= types
    statuses = {subscription["status"] for subscription in history.final["subscription"].values()}
    assert statuses >= {"active", "canceled", "incomplete_expired"}
    seconds = [event["created"] for event in history.events]
    assert len(set(seconds)) < len(seconds) / 3, "many events share their second"


def test_every_history_is_the_same_again_and_after_a_restart():
    first, second = (random_history(5, 200) for _ in range(2))
    again = make_core(first.clock, MemoryJournal(list(first.core.journal.read())))

    assert first.events == second.events
    assert [e.body() for e in again.state.events.since(0)] == [e.body() for e in first.core.state.events.since(0)]


def test_a_mixed_history_has_both_shapes():
    history = random_history(2, 200, old_percent=50)
    invoices = [event for event in history.events if event["type"] == "invoice.paid"]
    old = [event["data"]["object"] for event in invoices if event["api_version"] == OLD_VERSION]
    new = [event["data"]["object"] for event in invoices if event["api_version"] != OLD_VERSION]

    assert old
    assert new
    assert all(invoice["subscription"] and invoice["paid"] and "parent" not in invoice for invoice in old)
    assert all("subscription" not in invoice and invoice["parent"] for invoice in new)


def holds(shown, previous):
    """Whether an object that was shown has these attributes; of a nested group only the named ones count."""
    if isinstance(previous, dict) and isinstance(shown, dict):
        return all(holds(shown.get(name), value) for name, value in previous.items())
    return shown == previous


def test_the_previous_attributes_lead_from_each_event_to_the_next():
    """For each object: what an update says was there before is what the event before it showed."""
    history = random_history(3, 400, old_percent=0)
    shown = {}
    compared = 0
    for event in history.events:
        body = event["data"]["object"]
        # A summary of entitlements has no id of its own.
        id = (event["type"], body["customer"]) if "entitlements" in body else body["id"]
        if event["type"].endswith(".updated"):
            for name, value in event["data"]["previous_attributes"].items():
                assert holds(shown.get(id, {"entitlements": {"data": []}}).get(name), value), (event["id"], name)
                assert not holds(body.get(name), value), "only what changed is named"
                compared += 1
        shown[id] = body

    assert compared > 100


def test_a_weather_keeps_facts_from_becoming_events():
    weather = WebhookWeather(1, {Trouble.NOT_GENERATED: 50_000, Trouble.TWO_EVENTS: 50_000})
    steps = random_steps(4, 200)
    fair, foul = play(steps), play(steps, webhook_weather=weather)

    assert foul.final == fair.final
    troubles = foul.core.webhook_troubles
    gained = troubles[Trouble.TWO_EVENTS] - troubles[Trouble.NOT_GENERATED]
    assert len(foul.events) == len(fair.events) + gained
