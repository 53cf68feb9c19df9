"""The HTTP face: the SDK over a real socket, calls in flight, and what the network can do to a request."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from urllib.parse import urlsplit

import pytest
import stripe

from billing_pipeline.errors import UserError
from billing_pipeline.stripe_simulator.server import BODY_BYTES_MAX, bind
from billing_pipeline_tests.fix_simulator import KEY, make_core, running_simulator

PROCESSING = timedelta(seconds=0.4)


def send(running, customer, event_name="api", identifier=None, key=None):
    params = {"event_name": event_name, "payload": {"stripe_customer_id": customer, "value": "1"}}
    options = {"idempotency_key": key} if key else {}
    try:
        return running.client().v1.billing.meter_events.create(
            {**params, **({"identifier": identifier} if identifier else {})}, options
        )
    except stripe.StripeError as error:
        return error


def fill(core, *event_names):
    for name in event_names:
        params = {"display_name": name, "event_name": name, "default_aggregation": {"formula": "sum"}}
        assert core.handle("POST", "/v1/billing/meters", params, key=KEY).status == 200
    return [core.handle("POST", "/v1/customers", key=KEY).body["id"] for _ in range(2)]


@contextmanager
def raw_connection(running):
    parts = urlsplit(running.url)
    with socket.create_connection((parts.hostname, parts.port), timeout=5) as connection:
        yield connection


def raw_request(body: bytes, length: int | None = None) -> bytes:
    head = (
        "POST /v1/billing/meter_events HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        f"Authorization: Bearer {KEY}\r\nContent-Length: {len(body) if length is None else length}\r\n\r\n"
    )
    return head.encode() + body


def test_sdk_bills_and_reads_back_over_http(simulator):
    customer, _ = fill(simulator.core, "api")
    answer = send(simulator, customer, identifier="a")

    assert answer.last_response.headers["request-id"] == simulator.journal("meter_event")[0]["request_id"]
    assert len(answer.last_response.headers.get("date", "").split(", ")) == 2
    assert "already exists" in str(send(simulator, customer, identifier="a"))
    customers = simulator.client().v1.customers.list({"limit": 1})
    assert (len(customers.data), customers.has_more) == (1, True)
    assert simulator.client().v1.customers.delete(customer).deleted is True


def test_second_call_for_the_same_customer_and_meter_is_refused_while_the_first_is_processed():
    core = make_core()
    customer, _ = fill(core, "api")
    with running_simulator(core, processing=PROCESSING) as running, ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda n: send(running, customer, identifier=f"e{n}"), range(2)))
        [refused] = [answer for answer in answers if isinstance(answer, stripe.StripeError)]

        assert (type(refused), refused.http_status) == (stripe.RateLimitError, 429)
        assert refused.json_body["error"]["code"] == "lock_timeout"
        assert refused.headers["stripe-rate-limited-reason"] == "resource-specific"
        assert len(running.journal("meter_event")) == 1

        # It was not executed, and the place is free again.
        free = {"e0", "e1"} - {record["identifier"] for record in running.journal("meter_event")}
        assert send(running, customer, identifier=free.pop()).livemode is False


def test_calls_for_other_customers_or_meters_do_not_collide():
    core = make_core()
    first, second = fill(core, "api", "storage")
    calls = [(first, "api"), (second, "api"), (first, "storage")]
    with running_simulator(core, processing=PROCESSING) as running, ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda call: send(running, *call), calls))

        assert [type(answer) for answer in answers] == [stripe.billing.MeterEvent] * 3


def test_same_idempotency_key_in_flight_is_a_conflict():
    core = make_core()
    first, second = fill(core, "api")
    with running_simulator(core, processing=PROCESSING) as running, ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda customer: send(running, customer, key="same"), (first, second)))
        [conflict] = [answer for answer in answers if isinstance(answer, stripe.StripeError)]

        assert conflict.http_status == 409
        assert conflict.json_body["error"]["code"] == "idempotency_key_in_use"
        assert len(running.journal("meter_event")) == 1


def test_client_that_leaves_early_was_still_counted_and_frees_its_place():
    """The lost answer: what was asked for is done, only nobody heard of it."""
    core = make_core()
    customer, _ = fill(core, "api")
    done = threading.Event()
    finish = core.finish
    core.finish = lambda exchange: (finish(exchange), done.set())
    body = f"event_name=api&identifier=a&payload[stripe_customer_id]={customer}&payload[value]=7".encode()
    with running_simulator(core, processing=timedelta(seconds=0.05)) as running:
        with raw_connection(running) as connection:
            connection.sendall(raw_request(body))
        assert done.wait(5)

        assert [record["value"] for record in running.journal("meter_event")] == ["7"]
        assert "already exists with identifier a" in str(send(running, customer, identifier="a"))


def test_request_cut_off_in_its_body_is_not_executed(simulator):
    """`payload[value]=1` may be the beginning of `payload[value]=15`."""
    customer, _ = fill(simulator.core, "api")
    body = f"event_name=api&payload[stripe_customer_id]={customer}&payload[value]=1".encode()
    with raw_connection(simulator) as connection:
        connection.sendall(raw_request(body, length=len(body) + 1))
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1000)

    assert simulator.client().v1.accounts.retrieve_current().id
    assert simulator.journal("meter_event") == []


def test_body_beyond_the_limit_is_refused(simulator):
    with raw_connection(simulator) as connection:
        connection.sendall(raw_request(b"", length=BODY_BYTES_MAX + 1) + b"a" * (BODY_BYTES_MAX + 1))
        answer = connection.recv(1000)

    assert answer.startswith(b"HTTP/1.1 413")
    assert b"\r\nrequest-id: req_" in answer


def test_malformed_form_is_refused_in_the_shape_of_stripe(simulator):
    with raw_connection(simulator) as connection:
        connection.sendall(raw_request(b"payload=1&payload[value]=2"))
        answer = connection.recv(4000)

    assert answer.startswith(b"HTTP/1.1 400")
    assert b'"invalid_request_error"' in answer


@pytest.mark.parametrize("host", ["0.0.0.0", "192.0.2.1", "::", "example.test", ""])
def test_simulator_listens_on_this_machine_only(host):
    with pytest.raises(UserError, match="this machine only"):
        bind(host, 0)


def test_port_in_use_is_named():
    with bind("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            bind("127.0.0.1", port)
