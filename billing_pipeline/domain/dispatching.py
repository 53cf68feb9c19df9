"""How long a webhook event may be handled, when one that failed is tried again, and when it is left to a person."""

from __future__ import annotations

from datetime import timedelta

SLA = timedelta(minutes=5)
"""How long a claim lasts, where BILLING_DISPATCH_SLA_SECONDS says nothing else."""

FIRST_PAUSE = timedelta(seconds=30)
LONGEST_PAUSE = timedelta(minutes=10)
ATTEMPTS_MAX = 10
"""With the pauses before each, about an hour."""


def pause_after(attempts: int) -> timedelta:
    """How long to wait after so many attempts: 30 s, doubling to 10 min."""
    doublings = min(attempts - 1, 10)
    return min(FIRST_PAUSE * (1 << doublings), LONGEST_PAUSE)
