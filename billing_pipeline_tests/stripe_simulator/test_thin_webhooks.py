"""Thin notifications: a report of rejected meter events is pushed to destinations that take thin events."""

from __future__ import annotations

import json

import pytest
import stripe

URL = "http://127.0.0.1:8000/webhooks/stripe"
TYPES = ["v1.billing.meter.error_report_triggered", "v1.billing.meter.no_meter_found"]


def destination(account, payload="thin", types=TYPES):
    return account.client.v2.core.event_destinations.create(
        {
            "name": "errors",
            "type": "webhook_endpoint",
            "event_payload": payload,
            "enabled_events": types,
            "webhook_endpoint": {"url": URL},
            "include": ["webhook_endpoint.signing_secret", "webhook_endpoint.url"],
        }
    )


def delivered(account):
    requests = []
    account.core.deliver_webhooks(lambda request: requests.append(request) or 200)
    return requests


def test_a_report_is_pushed_without_data_when_its_window_closes(account):
    made = destination(account)
    account.stream(account.event("1", identifier="a", payload={"stripe_customer_id": "cus_x", "value": "1"}))
    assert delivered(account) == []
    account.clock.advance(seconds=10)
    [request] = delivered(account)

    body = json.loads(request.body)
    assert "data" not in body
    assert (body["object"], body["type"]) == ("v2.core.event", TYPES[0])
    assert body["related_object"]["id"] == account.meter
    notification = account.client.parse_event_notification(
        request.body, request.headers["Stripe-Signature"], made.webhook_endpoint.signing_secret, tolerance=10**9
    )
    fetched = account.client.v2.core.events.retrieve(notification.id).to_dict()
    [code] = fetched["data"]["reason"]["error_types"]
    assert code["sample_errors"][0]["request"]["identifier"] == "a"


def test_one_window_is_one_notification_and_no_meter_has_no_related_object(account):
    destination(account)
    for identifier in "abc":
        account.stream(account.event("1", identifier=identifier, event_name="unknown"))
    account.clock.advance(seconds=10)
    [request] = delivered(account)

    body = json.loads(request.body)
    assert body["type"] == TYPES[1]
    assert "related_object" not in body


def test_thin_and_snapshot_events_go_to_those_that_take_them(account):
    destination(account)
    destination(account, "snapshot", ["*"])
    account.client.v1.webhook_endpoints.create({"url": URL, "enabled_events": ["*"]})
    account.stream(account.event("1", event_name="unknown"))
    account.client.v1.customers.create({})
    account.clock.advance(seconds=10)

    types = [json.loads(request.body)["type"] for request in delivered(account)]
    assert sorted(types) == ["customer.created", "customer.created", TYPES[1]]


def test_a_destination_is_listed_switched_off_and_deleted(account):
    made = destination(account)
    service = account.client.v2.core.event_destinations
    assert made.webhook_endpoint.signing_secret.startswith("whsec_")
    assert [(found.id, found.webhook_endpoint.url) for found in service.list().data] == [(made.id, None)]
    [shown] = service.list({"include": ["webhook_endpoint.url"]}).data
    assert shown.webhook_endpoint.url == URL
    assert service.retrieve(made.id).webhook_endpoint.signing_secret is None
    assert account.client.v1.webhook_endpoints.list().data == []
    assert service.disable(made.id).status == "disabled"
    account.stream(account.event("1", event_name="unknown"))
    account.clock.advance(seconds=10)
    assert delivered(account) == []

    assert service.enable(made.id).status == "enabled"
    service.delete(made.id)
    assert service.list().data == []
    with pytest.raises(stripe.InvalidRequestError, match="No such event destination"):
        service.retrieve(made.id)
