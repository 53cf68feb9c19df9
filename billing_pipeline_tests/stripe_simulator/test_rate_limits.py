"""Rate limits: what is beyond them is not executed, and the clock fills the bucket again."""

from __future__ import annotations

from datetime import timedelta

import pytest
import stripe
from hypothesis import given
from hypothesis import strategies as st

from billing_pipeline.stripe_simulator.rate_limits import RateLimiter, RateLimits
from billing_pipeline.stripe_simulator.wire import Refusal, Request
from billing_pipeline_tests.fix_simulator import SimulatorClock, client_without_sockets, streaming
from billing_pipeline_tests.stripe_simulator.conftest import NOON, make_account

SECOND = timedelta(seconds=1)
V1 = Request("POST", "/v1/billing/meter_events", {}, {})


def test_call_beyond_the_limit_is_refused_and_its_key_stays_free():
    account = make_account(rate_limits=RateLimits(meter_events=2))
    account.send()
    account.send()
    error = account.refused(stripe.RateLimitError, options={"idempotency_key": "k"})
    account.client.v2.core.events.list()
    account.clock.advance(milliseconds=500)
    account.send(options={"idempotency_key": "k"})

    assert (error.http_status, error.error.code) == (429, "rate_limit")
    assert error.headers["stripe-rate-limited-reason"] == "endpoint-rate"
    assert len(account.journal("meter_event")) == 3


def test_stream_has_a_limit_of_its_own():
    account = make_account(rate_limits=RateLimits(stream=1))
    for _ in range(5):
        account.send()
    stream = streaming(account.client, lambda token: client_without_sockets(account.core, token))
    stream.create({"events": [account.event()]})
    with pytest.raises(stripe.RateLimitError):
        stream.create({"events": [account.event()]})
    account.clock.advance(seconds=1)
    stream.create({"events": [account.event()]})

    assert [r["channel"] for r in account.journal("meter_event")] == ["v1"] * 5 + ["v2_stream"] * 2


@given(rate=st.integers(1, 50), pauses=st.lists(st.sampled_from([0, 0, 0, 20, 300, 1000, 60_000]), max_size=150))
def test_any_second_takes_at_most_a_burst_and_a_refill_and_refuses_nothing_below_the_rate(rate, pauses):
    clock, limiter, taken = SimulatorClock(still_at=NOON), RateLimiter(RateLimits(meter_events=rate)), []
    for pause in pauses:
        clock.advance(milliseconds=pause)
        try:
            limiter.refuse_beyond(V1, clock())
        except Refusal:
            assert sum(clock() - at < SECOND for at in taken) >= rate
        else:
            taken.append(clock())

    for at in taken:
        assert sum(timedelta(0) <= other - at < SECOND for other in taken) <= 2 * rate


def test_idle_time_is_not_saved_up():
    clock, limiter = SimulatorClock(still_at=NOON), RateLimiter(RateLimits(meter_events=3))
    limiter.refuse_beyond(V1, clock())
    clock.advance(hours=1)
    for _ in range(3):
        limiter.refuse_beyond(V1, clock())

    with pytest.raises(Refusal):
        limiter.refuse_beyond(V1, clock())
