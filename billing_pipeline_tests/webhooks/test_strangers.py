"""What a stranger without a secret can do is bounded: sockets in time, bodies in bytes, the log in lines."""

import logging
import socket
import time
from contextlib import ExitStack, suppress

import pytest

from billing_pipeline.webhooks import body as body_module
from billing_pipeline.webhooks import committer as committer_module
from billing_pipeline.webhooks import http_protocol
from billing_pipeline.webhooks.refusal_log import QUIET_SECONDS, RefusalLog
from billing_pipeline_tests.signing import event, signed

HEAD = b"POST /webhooks/stripe HTTP/1.1\r\nHost: x\r\n"


def seconds_until_closed(client, drip=b"") -> float:
    """How long the server leaves the connection open, while a byte of `drip` is sent every now and then."""
    began = time.monotonic()
    client.settimeout(0.05)
    with suppress(ConnectionError):
        for number in range(100):
            if drip:
                client.sendall(drip[number % len(drip) :][:1])
            with suppress(TimeoutError):
                if client.recv(65536) == b"":
                    return time.monotonic() - began
        raise AssertionError("the connection is open still")
    return time.monotonic() - began


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(http_protocol, "HEAD_SECONDS", 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("sent", [b"", b"POST", HEAD], ids=["nothing", "a word", "half a head"])
def test_a_socket_that_sends_no_whole_head_is_closed(soon, intake, sent):
    with socket.create_connection(intake.address) as client:
        client.sendall(sent)
        assert 0.3 < seconds_until_closed(client) < 3


@pytest.mark.slow
def test_a_head_that_drips_is_cut_off(soon, intake):
    with socket.create_connection(intake.address) as client:
        client.sendall(HEAD)
        assert 0.3 < seconds_until_closed(client, drip=b"X-Y: z\r\n") < 3


@pytest.mark.slow
def test_the_second_head_of_a_connection_has_no_longer(soon, intake):
    with socket.create_connection(intake.address) as client:
        client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 200")
        client.sendall(HEAD)
        assert 0.3 < seconds_until_closed(client, drip=b"X-Y: z\r\n") < 3


@pytest.mark.slow
def test_a_body_that_nobody_waits_for_keeps_no_connection(soon, intake):
    with socket.create_connection(intake.address) as client:
        client.sendall(b"POST /nothing HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 404")
        assert 0.3 < seconds_until_closed(client, drip=b"x") < 3


@pytest.mark.slow
def test_a_connection_between_two_deliveries_may_rest_longer(soon, intake):
    with socket.create_connection(intake.address) as client:
        for _ in range(2):
            client.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            answer = b""
            while b'{"status":"up"}' not in answer:
                answer += client.recv(65536)
            time.sleep(1)


@pytest.mark.slow
def test_a_head_without_an_end_is_cut_off_at_its_cap(intake):
    with socket.create_connection(intake.address) as client:
        began = time.monotonic()
        with suppress(ConnectionError):
            for _ in range(64):
                client.sendall(b"X-Y: " + b"z" * 65_536 if _ else HEAD)
            while client.recv(65536):
                pass
        assert time.monotonic() - began < http_protocol.HEAD_SECONDS / 2


@pytest.mark.slow
def test_unverified_bodies_are_bounded_together_and_their_room_is_given_back(intake, monkeypatch):
    monkeypatch.setattr(body_module, "UNVERIFIED_BYTES_MAX", 3_000)
    head = HEAD + b"Content-Length: 2000\r\n\r\n"
    with ExitStack() as opened:
        waiting = [opened.enter_context(socket.create_connection(intake.address)) for _ in range(2)]
        for client in waiting:
            client.sendall(head + b"x" * 1_400)
        time.sleep(0.5)
        one_more = opened.enter_context(socket.create_connection(intake.address))
        one_more.sendall(head + b"x" * 1_400)
        answer = one_more.recv(65536)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: " in answer
        assert b"connection: close" in answer
        waiting[0].sendall(b"x" * 600)
        assert waiting[0].recv(65536).startswith(b"HTTP/1.1 400 ")
    deadline = time.monotonic() + 10
    body, headers = signed(event("evt_1"))
    half = HEAD + b"Content-Length: %d\r\nStripe-Signature: %b\r\n\r\n" % (
        len(body),
        headers["Stripe-Signature"].encode(),
    )
    while True:
        with socket.create_connection(intake.address) as client:
            client.sendall(half + body[:-1])
            time.sleep(0.1)
            client.sendall(body[-1:])
            if client.recv(65536).startswith(b"HTTP/1.1 202 "):
                break
        assert time.monotonic() < deadline


@pytest.mark.slow
def test_many_forged_deliveries_are_few_lines_and_exact_counts(intake, connection, caplog, monkeypatch):
    monkeypatch.setattr(committer_module, "HOUSEKEEPING_SECONDS", 0.05)
    for _ in range(40):
        intake.post(b"{}", {})
    intake.post(b"{}", {"Stripe-Signature": "t=1,v1=00"})

    assert [one.getMessage() for one in caplog.records if one.levelno >= logging.ERROR] == [
        "Signature verification failed: missing_signature",
        "Signature verification failed: invalid_signature",
    ]
    metrics = intake.ask("GET", "/metrics").raw.decode()
    assert 'stripe_webhook_events_total{event_type="unknown",result="missing_signature"} 40.0' in metrics
    deadline = time.monotonic() + 30
    count = "SELECT reason, sum(deliveries) FROM signature_failures GROUP BY 1 ORDER BY 1"
    while (counted := connection.execute(count).fetchall()) != [("invalid_signature", 1), ("missing_signature", 40)]:
        assert time.monotonic() < deadline, counted
        time.sleep(0.05)


@pytest.mark.slow
def test_what_is_no_http_is_no_line(intake, caplog):
    for _ in range(3):
        with socket.create_connection(intake.address) as client:
            client.sendall(b"\x16\x03\x01 hello\r\n\r\n")
            assert client.recv(65536).startswith(b"HTTP/1.1 400 ")

    assert [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING] == []


def test_the_first_of_a_reason_is_told_at_once_and_how_many_followed_a_minute_later(caplog):
    def told():
        lines = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return lines

    log = RefusalLog()
    for now in range(3):
        log.refused("invalid_signature", now=now)
    log.refused("stale_signature", now=3)
    assert told() == [
        "Signature verification failed: invalid_signature",
        "Signature verification failed: stale_signature",
    ]
    log.tell(now=QUIET_SECONDS - 1)
    assert told() == []

    log.tell(now=QUIET_SECONDS + 3)
    assert told() == ["Signature verification failed: invalid_signature, 2 more within a minute"]
    log.refused("invalid_signature", now=QUIET_SECONDS + 4)  # It goes on, so it stays at a line a minute.
    log.refused("stale_signature", now=QUIET_SECONDS + 4)  # It had stopped, so it is new.
    assert told() == ["Signature verification failed: stale_signature"]

    log.tell_all()
    assert told() == ["Signature verification failed: invalid_signature, 1 more within a minute"]
