"""Every fault once over HTTP: what the official SDK sees, and what Stripe did."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
import requests
import stripe

from billing_pipeline.stripe_simulator.faults import ConnectionLost, Fault, FaultKind
from billing_pipeline_tests.fix_simulator import KEY, SimulatorClock, make_core, running_simulator, streaming
from billing_pipeline_tests.stripe_simulator.conftest import NOON, make_account

DRIP = timedelta(seconds=0.3)
LATE = timedelta(minutes=5)
# requests raises its own errors for a body that breaks off; the SDK does not wrap them.
BROKEN_OFF = (stripe.APIConnectionError, requests.exceptions.RequestException)

WHAT_HAPPENS = {
    FaultKind.LOSE_REQUEST: (stripe.APIConnectionError, 0),
    FaultKind.ERROR_500_BEFORE: (stripe.APIError, 0),
    FaultKind.RATE_LIMITED_429: (stripe.RateLimitError, 0),
    FaultKind.CONFLICT_409: (stripe.APIError, 0),
    FaultKind.HTML_200: (stripe.APIError, 0),
    FaultKind.KEY_EXPIRED_401: (stripe.AuthenticationError, 0),
    FaultKind.SESSION_EXPIRED_401: ((stripe.AuthenticationError, stripe.TemporarySessionExpiredError), 0),
    FaultKind.LOSE_ANSWER: (stripe.APIConnectionError, 1),
    FaultKind.ERROR_500_AFTER: (stripe.APIError, 1),
    FaultKind.TRUNCATED_JSON: (stripe.APIError, 1),
    FaultKind.RESET_MID_BODY: (BROKEN_OFF, 1),
    FaultKind.SLOW_DRIP: (None, 1),
    FaultKind.WRONG_MODE: (None, 1),
    FaultKind.ASYNC_SILENT_DROP: (None, 0),
    FaultKind.DUPLICATED_DELIVERY: (None, 1),
    FaultKind.LATE_DELIVERY: (stripe.APIConnectionError, 0),
}
STATUS = {
    FaultKind.ERROR_500_BEFORE: 500,
    FaultKind.RATE_LIMITED_429: 429,
    FaultKind.CONFLICT_409: 409,
    FaultKind.HTML_200: 200,
    FaultKind.KEY_EXPIRED_401: 401,
    FaultKind.SESSION_EXPIRED_401: 401,
    FaultKind.ERROR_500_AFTER: 500,
    FaultKind.TRUNCATED_JSON: 200,
}
DELAYS = {FaultKind.SLOW_DRIP: DRIP, FaultKind.LATE_DELIVERY: LATE}


def only_first(kind, path="/v1/billing/meter_events"):
    """A plan that spoils the first call to a path and counts on nothing else."""
    left = [Fault(kind, DELAYS.get(kind, timedelta(0)))]
    return lambda _number, request: left.pop() if request.path == path and left else None


def account_with(kind, path="/v1/billing/meter_events"):
    clock = SimulatorClock(still_at=NOON)
    return make_account(clock=clock, core=make_core(clock, fault=only_first(kind, path)))


def send(account, running, identifier="a", **options):
    params = {**account.event("3", identifier=identifier), "timestamp": account.now}
    return running.client().v1.billing.meter_events.create(params, options)


def answer_or_error(call):
    try:
        return call()
    except (stripe.StripeError, requests.exceptions.RequestException) as error:
        return error


@pytest.mark.parametrize("kind", FaultKind)
def test_fault_of_a_v1_call_over_http(kind):
    account = account_with(kind)
    expected_error, counted = WHAT_HAPPENS[kind]
    with running_simulator(account.core) as running:
        begun = time.monotonic()
        seen = answer_or_error(lambda: send(account, running))
        took = time.monotonic() - begun

    assert isinstance(seen, expected_error or stripe.billing.MeterEvent)
    assert getattr(seen, "http_status", None) == STATUS.get(kind)
    assert len(account.journal("meter_event")) == counted
    assert account.core.faults_applied == {kind: 1}
    if kind is FaultKind.SLOW_DRIP:
        assert took >= DRIP.total_seconds()
    if expected_error is None:
        assert seen.livemode is (kind is FaultKind.WRONG_MODE)
        assert seen.identifier == "a"


@pytest.mark.parametrize("kind", FaultKind)
def test_fault_of_a_stream_request_over_http(kind):
    account = account_with(kind, "/v2/billing/meter_event_stream")
    expected_error, counted = WHAT_HAPPENS[kind]
    with running_simulator(account.core) as running:
        stream = streaming(running.client(), running.client)
        seen = answer_or_error(lambda: stream.create({"events": [account.event("3", identifier="a")]}))

    assert seen is None if expected_error is None else isinstance(seen, expected_error)
    assert len(account.journal("meter_event")) == counted
    # The stream's answer is empty: it cannot show a mode.
    assert account.core.faults_applied == ({} if kind is FaultKind.WRONG_MODE else {kind: 1})


@pytest.mark.parametrize("kind", FaultKind)
def test_fault_without_http_is_the_same(kind):
    account = account_with(kind)
    params = {**account.event("3", identifier="a"), "timestamp": str(account.now)}
    closes = {FaultKind.LOSE_REQUEST, FaultKind.LOSE_ANSWER, FaultKind.RESET_MID_BODY, FaultKind.LATE_DELIVERY}

    def call():
        return account.core.handle("POST", "/v1/billing/meter_events", params, key=KEY)

    if kind in closes:
        with pytest.raises(ConnectionLost):
            call()
    else:
        assert call().status == STATUS.get(kind, 200)
    assert len(account.journal("meter_event")) == WHAT_HAPPENS[kind][1]
    assert account.core.faults_applied == {kind: 1}


@pytest.mark.parametrize("kind", FaultKind)
def test_same_identifier_sent_again_is_counted_once_in_all(kind):
    """Whatever the fault, a resend settles it: counted, or known to be; but what was dropped stays dropped."""
    account = account_with(kind)
    with running_simulator(account.core) as running:
        answer_or_error(lambda: send(account, running))
        again = answer_or_error(lambda: send(account, running))
        executed = kind not in {
            FaultKind.LOSE_REQUEST,
            FaultKind.ERROR_500_BEFORE,
            FaultKind.RATE_LIMITED_429,
            FaultKind.CONFLICT_409,
            FaultKind.HTML_200,
            FaultKind.KEY_EXPIRED_401,
            FaultKind.SESSION_EXPIRED_401,
            FaultKind.LATE_DELIVERY,
        }

        assert isinstance(again, stripe.InvalidRequestError if executed else stripe.billing.MeterEvent)
        account.clock.advance(minutes=5)
        account.core.deliver_due()
        assert len(account.journal("meter_event")) == (0 if kind is FaultKind.ASYNC_SILENT_DROP else 1)


def test_late_delivery_is_executed_at_its_own_time_before_anything_later():
    account = account_with(FaultKind.LATE_DELIVERY)
    with pytest.raises(stripe.APIConnectionError):
        account.send("3", identifier="a")
    account.clock.advance(seconds=299)
    account.client.v1.customers.list()
    assert account.journal("meter_event") == []

    account.clock.advance(hours=1)
    assert "already exists" in str(answer_or_error(lambda: account.send("3", identifier="a")))
    [counted] = account.journal("meter_event")
    assert counted["received_at"] == (NOON + LATE).isoformat()


def test_duplicated_delivery_counts_twice_what_nothing_protects():
    account = account_with(FaultKind.DUPLICATED_DELIVERY)
    params = {**account.event("3"), "timestamp": str(account.now)}
    account.core.handle("POST", "/v1/billing/meter_events", params, key=KEY)

    assert account.total() == 6.0


def test_500_after_the_work_is_repeated_for_its_key_in_v1_and_not_in_v2():
    key = {"idempotency_key": "k"}
    account = account_with(FaultKind.ERROR_500_AFTER)
    for replayed in (None, "true"):
        error = answer_or_error(lambda: account.send("3", identifier="a", timestamp=account.now, options=key))
        assert (error.http_status, error.headers.get("idempotent-replayed")) == (500, replayed)

    account = account_with(FaultKind.ERROR_500_AFTER, "/v2/billing/meter_events")
    events = account.client.v2.billing.meter_events
    assert answer_or_error(lambda: events.create(account.event(identifier="a"), key)).http_status == 500
    assert answer_or_error(lambda: events.create(account.event(identifier="a"), key)).code == "duplicate_meter_event"


def test_silent_drop_is_told_in_the_journal_only():
    account = account_with(FaultKind.ASYNC_SILENT_DROP, "/v2/billing/meter_event_stream")
    account.stream(account.event("3", identifier="a"), account.event("4", identifier="b"))
    account.clock.advance(minutes=1)

    assert account.total() == 0
    assert account.client.v2.core.events.list().data == []
    assert [r["identifier"] for r in account.journal("meter_event_lost")] == ["a", "b"]


def test_fault_that_meets_nothing_to_spoil_is_not_counted():
    account = account_with(FaultKind.ASYNC_SILENT_DROP, "/v1/customers")
    account.client.v1.customers.create({})

    assert account.core.faults_applied == {}


def test_plan_is_asked_once_per_api_call_in_order():
    asked = []
    core = make_core(fault=lambda number, request: asked.append((number, request.path)))
    for path in ("/_health", "/v1/account", "/_journal", "/_faults", "/v1/unknown"):
        core.handle("GET", path, key=KEY)

    assert asked == [(0, "/v1/account"), (1, "/v1/unknown")]


def test_faults_can_be_read_over_http():
    account = account_with(FaultKind.LOSE_REQUEST)
    with pytest.raises(stripe.APIConnectionError):
        account.send()

    assert account.core.handle("GET", "/_faults").status == 401
    assert account.core.handle("GET", "/_faults", key=KEY).body == {
        "object": "faults",
        "calls": 3,
        "applied": {"lose_request": 1},
    }
