"""How long a webhook event may be handled, when one that failed is tried again, and when it is left to a person."""

from __future__ import annotations

from datetime import timedelta

SLA = timedelta(minutes=5)
"""How long a claim lasts, where BILLING_DISPATCH_SLA_SECONDS says nothing else."""

REQUEST_TIMEOUT = timedelta(seconds=20)
"""How long Stripe may be silent, where STRIPE_TIMEOUT_SECONDS says nothing else."""
WRITING = timedelta(seconds=5)
"""What a batch has at the least to be written in, once Stripe was asked."""

FIRST_PAUSE = timedelta(seconds=30)
LONGEST_PAUSE = timedelta(minutes=10)
ATTEMPTS_MAX = 10
"""With the pauses before each, about an hour."""


def pause_after(attempts: int) -> timedelta:
    """How long to wait after so many attempts: 30 s, doubling to 10 min."""
    doublings = min(attempts - 1, 10)
    return min(FIRST_PAUSE * (1 << doublings), LONGEST_PAUSE)


def asking_time(sla: timedelta, request_timeout: timedelta) -> timedelta:
    """How long a batch may go on to ask Stripe, from its claim on; nothing is left where that is not positive.

    A request may wait for the timeout twice, to connect and for its answer, and the batch must then still be written.
    """
    return sla - 2 * request_timeout - WRITING
