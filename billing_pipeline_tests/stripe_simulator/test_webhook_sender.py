"""Webhooks over real sockets: the running simulator posts to an endpoint, and tries again when it is refused."""

from __future__ import annotations

import json
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import stripe

from billing_pipeline.stripe_simulator.webhook_deliveries import RETRY_SECONDS
from billing_pipeline_tests.fix_simulator import SimulatorClock, make_core, running_simulator

WAIT_SECONDS = 10


class Endpoint:
    """An HTTP server that keeps what it is sent and answers each request with the next status, then 200."""

    def __init__(self, url):
        self.url = url
        self.statuses = []
        self.requests = []

    def wait_for(self, count):
        deadline = time.monotonic() + WAIT_SECONDS
        while len(self.requests) < count:
            assert time.monotonic() < deadline, f"{len(self.requests)} of {count} webhooks arrived"
            time.sleep(0.01)


@pytest.fixture
def endpoint():
    with serving() as endpoint:
        yield endpoint


@contextmanager
def serving():
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            status = endpoint.statuses.pop(0) if endpoint.statuses else 200
            endpoint.requests.append((body, dict(self.headers)))
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_):
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    endpoint = Endpoint(f"http://127.0.0.1:{server.server_address[1]}/webhooks/stripe")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield endpoint
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def running():
    clock = SimulatorClock(still_at=datetime(2026, 6, 15, 12, 0, 30, tzinfo=UTC))
    with running_simulator(make_core(clock)) as running:
        yield running


def listen(running, url):
    return running.client().v1.webhook_endpoints.create({"url": url, "enabled_events": ["*"]}).secret


def test_a_change_is_posted_to_the_endpoint_by_itself(running, endpoint):
    secret = listen(running, endpoint.url)
    customer = running.client().v1.customers.create({"name": "Zoë"})
    endpoint.wait_for(1)

    body, headers = endpoint.requests[0]
    event = stripe.Webhook.construct_event(body, headers["Stripe-Signature"], secret, tolerance=10**9)
    assert (event.type, event.data.object.id) == ("customer.created", customer.id)
    assert headers["Content-Type"] == "application/json; charset=utf-8"
    assert headers["User-Agent"].startswith("Stripe/1.0")


@pytest.mark.parametrize("status", [500, 302])
def test_a_refused_delivery_is_posted_again_when_its_time_has_come(running, endpoint, status):
    listen(running, endpoint.url)
    endpoint.statuses.append(status)
    running.client().v1.customers.create({})
    endpoint.wait_for(1)
    time.sleep(0.5)
    assert len(endpoint.requests) == 1
    running.clock.advance(seconds=RETRY_SECONDS[0])
    endpoint.wait_for(2)

    assert endpoint.requests[0][0] == endpoint.requests[1][0]
    assert endpoint.requests[0][1]["Stripe-Signature"] != endpoint.requests[1][1]["Stripe-Signature"]


def test_an_endpoint_that_is_down_gets_its_events_when_it_is_up_again(running):
    with serving() as gone:
        address = gone.url
    listen(running, address)
    running.client().v1.customers.create({})
    deadline = time.monotonic() + WAIT_SECONDS
    while not running.journal("webhook_attempt"):
        assert time.monotonic() < deadline
        time.sleep(0.01)

    assert running.journal("webhook_attempt")[0]["object"]["http_status"] is None
    [event] = running.client().v1.events.list({"delivery_success": False}).data
    assert (event.type, event.pending_webhooks) == ("customer.created", 1)


def test_a_period_that_ends_is_told_without_anybody_asking(running, endpoint):
    client = running.client().v1
    product = client.products.create({"name": "x"}).id
    price = client.prices.create(
        {"currency": "usd", "product": product, "unit_amount": 100, "recurring": {"interval": "month"}}
    ).id
    listen(running, endpoint.url)
    customer = client.customers.create({}).id
    client.subscriptions.create({"customer": customer, "items": [{"price": price}]})
    endpoint.wait_for(7)
    running.clock.advance(days=32)
    endpoint.wait_for(7 + 2 + 4)

    assert {json.loads(body)["type"] for body, _ in endpoint.requests[7:]} == {
        "customer.subscription.updated",
        "invoice.created",
        "invoice.finalized",
        "invoice.paid",
        "invoice.payment_succeeded",
        "invoice.updated",
    }


def test_without_endpoints_nothing_runs_beside_the_server(running):
    running.client().v1.customers.create({})

    assert running.journal("webhook_attempt") == []
    assert running.core.state.deliveries.has_endpoints is False
