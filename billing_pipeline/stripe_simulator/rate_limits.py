"""Rate limits: a token bucket per endpoint, filled by the simulator's clock; off unless asked for.

They stand before the Idempotency-Key and before the endpoint, as Stripe's do, so a call beyond the limit is not
executed and its key stays free (Stripe, "Rate limits").
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from billing_pipeline.stripe_simulator.wire import Refusal, Request

_MICROSECONDS = 1_000_000


@dataclass(frozen=True, slots=True)
class RateLimits:
    """Calls per second, each also the largest burst; None is no limit."""

    meter_events: int | None = None
    stream: int | None = None


class RateLimiter:
    """The buckets, full at first.  They are not journaled: a restart forgives."""

    def __init__(self, limits: RateLimits) -> None:
        rates = {
            ("POST", "/v1/billing/meter_events"): limits.meter_events,
            ("POST", "/v2/billing/meter_event_stream"): limits.stream,
        }
        self._buckets = {endpoint: _Bucket(rate) for endpoint, rate in rates.items() if rate is not None}

    def refuse_beyond(self, request: Request, now: datetime) -> None:
        """Take a token for the request.  Raises `Refusal` (429) when there is none."""
        bucket = self._buckets.get((request.method, request.path))
        if bucket is not None and not bucket.take(now):
            raise too_many_requests()


class _Bucket:
    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._full = rate * _MICROSECONDS
        # In millionths of a token, so that it stays an integer for any rate.
        self._level = self._full
        self._filled_at: datetime | None = None

    def take(self, now: datetime) -> bool:
        if self._filled_at is not None:
            gained = max(0, (now - self._filled_at) // timedelta(microseconds=1)) * self._rate
            self._level = min(self._full, self._level + gained)
        self._filled_at = now
        if self._level < _MICROSECONDS:
            return False
        self._level -= _MICROSECONDS
        return True


def too_many_requests() -> Refusal:
    """Stripe's answer beyond a limit."""
    return Refusal(
        429,
        "Request rate limit exceeded. Send fewer requests a second to this endpoint.",
        code="rate_limit",
        headers={"Stripe-Rate-Limited-Reason": "endpoint-rate"},
    )
