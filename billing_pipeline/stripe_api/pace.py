"""Keeps requests under the rate Stripe allows, and slows down where Stripe says so.

A token bucket with room for a tenth of a second; every 429 halves the rate, every quiet second wins back a tenth.
"""

from __future__ import annotations

import asyncio
import time

BURST_SECONDS = 0.1
RECOVERY_PER_SECOND = 0.1
RATE_MIN = 1.0


class Pace:
    """`await turn(n)` before n events are sent; `slow_down()` after a 429."""

    def __init__(self, per_second: int) -> None:
        self._rate_max = float(per_second)
        self._rate = self._rate_max
        self._tokens = self._burst
        self._at = time.monotonic()

    @property
    def _burst(self) -> float:
        return max(1.0, self._rate * BURST_SECONDS)

    async def turn(self, events: int) -> None:
        """Wait until `events` may be sent; waiting callers go in turn, because each takes its tokens at once."""
        self._refill()
        self._tokens -= events
        if self._tokens < 0:
            await asyncio.sleep(-self._tokens / self._rate)

    def slow_down(self) -> None:
        """Stripe answered 429: halve the rate."""
        self._refill()
        self._rate = max(RATE_MIN, self._rate / 2)

    def _refill(self) -> None:
        now = time.monotonic()
        elapsed, self._at = now - self._at, now
        self._tokens = min(self._burst, self._tokens + elapsed * self._rate)
        self._rate = min(self._rate_max, self._rate + elapsed * RECOVERY_PER_SECOND * self._rate_max)
