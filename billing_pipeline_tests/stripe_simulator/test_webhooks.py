"""Webhook deliveries: signed for the SDK, tried again, resumed by a restart, and met by a seeded weather."""

from __future__ import annotations

import json
from collections import Counter
from datetime import timedelta

import pytest
import stripe
from hypothesis import given, settings
from hypothesis import strategies as st

from billing_pipeline.stripe_simulator.journal import FileJournal, MemoryJournal
from billing_pipeline.stripe_simulator.old_shape import OLD_VERSION
from billing_pipeline.stripe_simulator.webhook_deliveries import RETRY_SECONDS
from billing_pipeline.stripe_simulator.webhook_requests import signature
from billing_pipeline.stripe_simulator.webhook_weather import Trouble, WebhookWeather
from billing_pipeline_tests.fix_simulator import KEY, client_without_sockets, make_core
from billing_pipeline_tests.stripe_simulator.lives import make_shop

URL = "http://127.0.0.1:8000/webhooks/stripe"


class Intake:
    """What an endpoint would see; it answers each request with the next of `answers`, and then 200."""

    def __init__(self, *answers):
        self.answers = list(answers)
        self.requests = []

    def __call__(self, request):
        self.requests.append(request)
        return self.answers.pop(0) if self.answers else 200

    @property
    def events(self):
        return [json.loads(request.body) for request in self.requests]

    @property
    def types(self):
        return [event["type"] for event in self.events]


def listen(shop, *types, **params):
    return shop.client.webhook_endpoints.create({"url": URL, "enabled_events": list(types or "*"), **params})


@pytest.fixture
def shop():
    return make_shop()


def deliver(shop, intake):
    return shop.account.core.deliver_webhooks(intake)


def test_a_delivery_is_what_the_sdk_takes(shop, monkeypatch):
    endpoint, intake = listen(shop), Intake()
    shop.client.customers.create({"name": "Émile"})
    assert deliver(shop, intake) == 1
    [request] = intake.requests
    monkeypatch.setattr("stripe._webhook.time.time", lambda: shop.account.now + 299)

    event = stripe.Webhook.construct_event(request.body, request.headers["Stripe-Signature"], endpoint.secret)
    listed = shop.client.events.retrieve(event.id)
    assert event.to_dict() == {**listed.to_dict(), "pending_webhooks": 1}
    assert listed.pending_webhooks == 0
    assert "Émile".encode() in request.body
    assert request.url == URL
    assert "v0=" in request.headers["Stripe-Signature"]
    with pytest.raises(stripe.SignatureVerificationError):
        stripe.Webhook.construct_event(request.body, request.headers["Stripe-Signature"], "whsec_other")


def test_an_endpoint_gets_the_types_it_named_from_its_making_on(shop):
    shop.client.customers.create({})
    listen(shop, "invoice.paid", "customer.subscription.created")
    intake = Intake()
    shop.subscribe()
    deliver(shop, intake)

    assert intake.types == ["customer.subscription.created", "invoice.paid"]


def test_the_secret_is_shown_once(shop):
    endpoint = listen(shop)

    assert endpoint.secret.startswith("whsec_")
    assert "secret" not in shop.client.webhook_endpoints.retrieve(endpoint.id).to_dict()
    assert "secret" not in shop.client.webhook_endpoints.list().data[0].to_dict()
    assert endpoint.secret != listen(shop).secret


def test_a_rolled_secret_signs_beside_the_new_one_until_it_expires(shop):
    endpoint, intake = listen(shop), Intake()
    path = f"/_control/webhook_endpoints/{endpoint.id}/roll_secret"
    new = shop.account.core.handle("POST", path, {"expires_in": "3600"}, key=KEY).body["secret"]
    shop.client.customers.create({})
    deliver(shop, intake)
    shop.advance(hours=1)
    shop.client.customers.create({})
    deliver(shop, intake)

    def signed_with(request, secret):
        try:
            return stripe.WebhookSignature.verify_header(
                request.body.decode(), request.headers["Stripe-Signature"], secret
            )
        except stripe.SignatureVerificationError:
            return False

    during, after = intake.requests
    assert (signed_with(during, new), signed_with(during, endpoint.secret)) == (True, True)
    assert (signed_with(after, new), signed_with(after, endpoint.secret)) == (True, False)
    assert during.headers["Stripe-Signature"].count("v1=") == 2
    refused = shop.account.core.handle("POST", path, {"expires_in": str(24 * 3600 + 1)}, key=KEY)
    assert refused.status == 400


def test_the_signature_is_the_documented_one():
    # printf '1764550804.{}' | openssl dgst -sha256 -hmac whsec_x
    made = "b895685098172736af1e307532e834cebd852b2699dd07996f18c8fcebbe2a5e"

    assert signature(b"{}", ["whsec_x"], 1764550804).startswith(f"t=1764550804,v1={made},v0=")


@pytest.mark.parametrize("answer", [500, 404, 302, None])
def test_what_is_not_taken_is_sent_again_with_a_new_signature(shop, answer):
    listen(shop)
    intake = Intake(answer, answer)
    id = shop.client.customers.create({}).id
    deliver(shop, intake)
    assert deliver(shop, intake) == 0
    assert [e.type for e in shop.client.events.list({"delivery_success": False}).data] == ["customer.created"]
    shop.advance(seconds=RETRY_SECONDS[0])
    deliver(shop, intake)
    shop.advance(seconds=RETRY_SECONDS[1])
    deliver(shop, intake)

    assert [event["data"]["object"]["id"] for event in intake.events] == [id] * 3
    assert len({request.headers["Stripe-Signature"] for request in intake.requests}) == 3
    assert len({request.body for request in intake.requests}) == 1
    assert [request.attempt for request in intake.requests] == [1, 2, 3]
    assert shop.client.events.list({"delivery_success": False}).data == []


def test_retries_end_within_three_days(shop):
    listen(shop)
    intake = Intake(*[500] * 100)
    shop.client.customers.create({})
    for _ in range(80):
        deliver(shop, intake)
        shop.advance(hours=1)

    assert len(intake.requests) == len(RETRY_SECONDS) + 1
    assert sum(RETRY_SECONDS) <= 3 * 86_400
    [event] = shop.client.events.list({"delivery_success": False}).data
    assert event.pending_webhooks == 0


def test_a_deleted_or_disabled_endpoint_gets_nothing_more(shop):
    first, second = listen(shop), listen(shop)
    shop.client.customers.create({})
    shop.client.webhook_endpoints.delete(first.id)
    shop.client.webhook_endpoints.update(second.id, {"disabled": True})
    shop.client.customers.create({})

    assert deliver(shop, Intake()) == 0


def test_a_restart_sends_what_was_not_delivered_and_nothing_else(tmp_path):
    journal = FileJournal(tmp_path / "journal")
    shop = make_shop(journal=journal)
    listen(shop)
    first = shop.client.customers.create({}).id
    deliver(shop, Intake())
    second = shop.client.customers.create({}).id
    deliver(shop, Intake(500))
    third = shop.client.customers.create({}).id
    journal.close()
    again, intake = make_core(shop.account.clock, FileJournal(tmp_path / "journal")), Intake()
    again.deliver_webhooks(intake)
    assert [event["data"]["object"]["id"] for event in intake.events] == [third]
    shop.advance(seconds=RETRY_SECONDS[0])
    again.deliver_webhooks(intake)

    assert [event["data"]["object"]["id"] for event in intake.events] == [third, second]
    assert first not in str(intake.events)


def test_an_endpoint_of_an_older_version_gets_the_older_shape(shop):
    listen(shop, api_version=OLD_VERSION)
    intake = Intake()
    subscription = shop.subscribe()
    shop.advance(days=31)
    deliver(shop, intake)
    by_type = {event["type"]: event["data"] for event in intake.events}

    item = subscription["items"].data[0]
    created = by_type["customer.subscription.created"]["object"]
    assert created["current_period_end"] == item.current_period_end
    assert "current_period_end" not in created["items"]["data"][0]
    updated = by_type["customer.subscription.updated"]
    assert updated["previous_attributes"]["current_period_end"] == item.current_period_end
    paid = by_type["invoice.paid"]["object"]
    assert (paid["subscription"], paid["paid"]) == (subscription.id, True)
    assert "parent" not in paid
    assert {line["price"]["id"] for line in paid["lines"]["data"]} == {shop.seats, shop.calls}
    assert {event["api_version"] for event in intake.events} == {OLD_VERSION}


def lives(weather, journal=None, customers=60):
    """Customers made under a weather, all deliveries made, and the clock gone on beyond every delay."""
    shop = make_shop(webhook_weather=weather, journal=journal or MemoryJournal())
    listen(shop)
    intake = Intake()
    for number in range(customers):
        # Without the SDK, whose idempotency keys are random.
        shop.account.core.handle("POST", "/v1/customers", {"name": str(number)}, key=KEY)
        deliver(shop, intake)
        shop.advance(seconds=number % 3)
    shop.advance(minutes=10)
    deliver(shop, intake)
    return shop, intake


@pytest.mark.parametrize("trouble", Trouble)
def test_each_trouble_happens_and_is_counted(trouble):
    shop, intake = lives(WebhookWeather(seed=7, per_million={trouble: 300_000}))
    happened = shop.account.core.webhook_troubles
    assert set(happened) == {trouble}
    count = happened[trouble]
    names = Counter(event["data"]["object"]["name"] for event in intake.events)
    ids = Counter(event["id"] for event in intake.events)

    assert 5 < count < 40
    told = shop.account.core.handle("GET", "/_webhooks", key=KEY).body
    assert told["troubles"] == {trouble: count}
    assert (told["events"], told["deliveries_open"]) == (shop.mark(), 0)
    match trouble:
        case Trouble.NOT_GENERATED:
            # The account's own customer was made before the endpoint.
            assert 60 - len(names) in (count, count - 1)
            assert len(shop.client.events.list({"limit": 100}).data) == 61 - count
        case Trouble.TWO_EVENTS:
            assert sum(n == 2 for n in names.values()) in (count, count - 1)
            assert set(ids.values()) == {1}
        case Trouble.DUPLICATED:
            assert sum(n == 2 for n in ids.values()) == count
            # A copy is no delivery of its own: nothing is owed to anybody.
            assert {e.pending_webhooks for e in shop.client.events.list({"limit": 100}).data} == {0}
            assert shop.client.events.list({"delivery_success": False}).data == []
        case Trouble.DELAYED:
            order = [int(event["data"]["object"]["name"]) for event in intake.events]
            assert sorted(order) == list(range(60))
            assert order != sorted(order)
        case Trouble.DROPPED:
            assert 60 - len(names) == count
            assert len(shop.client.events.list({"limit": 100, "delivery_success": False}).data) == count


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000))
def test_the_same_seed_is_the_same_weather(seed):
    weather = WebhookWeather(seed, dict.fromkeys(Trouble, 100_000))
    first, second = (lives(weather, customers=8)[1] for _ in range(2))

    assert [request.body for request in first.requests] == [request.body for request in second.requests]


def test_a_restart_keeps_the_weather_of_what_was_made(tmp_path):
    weather = WebhookWeather(3, dict.fromkeys(Trouble, 100_000))
    journal = FileJournal(tmp_path / "journal")
    shop, _ = lives(weather, journal)
    before = [event.to_dict() for event in shop.client.events.list({"limit": 100}).data]
    troubles = shop.account.core.webhook_troubles
    journal.close()
    again = make_core(shop.account.clock, FileJournal(tmp_path / "journal"), webhook_weather=weather)

    assert [e.to_dict() for e in client_without_sockets(again).v1.events.list({"limit": 100}).data] == before
    assert again.webhook_troubles == troubles
    assert again.deliver_webhooks(Intake()) == 0
    assert timedelta(seconds=weather.delay_max) <= timedelta(minutes=5)
