"""Stage 4, repeated within one flush: what brought no certainty is sent again before the hour is over.

Each send is an attempt of the protocol like any other, under the same identifier.  What three do not settle is left to
the next flush; nothing here retries a request by itself.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable
from dataclasses import fields, replace

from billing_pipeline.usage.submit import SubmitReport

milestones = logging.getLogger("billing_pipeline.milestones")

ATTEMPTS = 3
"""Sends of one entry in one flush of the schedule (requirement: in-process backoff retries, three attempts)."""
PAUSES_SECONDS = (15, 60)
"""Before the second and the third; longer than an entry waits after as many attempts (`entries.retry_delay`)."""
JITTER_PART = 4
"""So much of a pause is added at random at most, lest all that failed together come back together."""


def submit_until_answered(
    submit: Callable[[], SubmitReport], *, attempts: int = ATTEMPTS, sleep: Callable[[int], None] = time.sleep
) -> SubmitReport:
    """Submit up to `attempts` times, until Stripe has answered everything; the counts of all of them.

    `unanswered` is that of the last.  Raises what `submit` raises.
    """
    report = submit()
    for number in range(1, attempts):
        if not report.unanswered:
            break
        pause = PAUSES_SECONDS[min(number, len(PAUSES_SECONDS)) - 1]
        pause += random.randint(0, pause // JITTER_PART)
        milestones.info(
            "Stripe did not answer for %d entries; sent again in %d s", report.unanswered, pause,
            extra={"action": "flush_retried", "unanswered": report.unanswered, "attempt": number + 1},
        )  # fmt: skip
        sleep(pause)
        report = _together(report, submit())
    return report


def _together(before: SubmitReport, after: SubmitReport) -> SubmitReport:
    counts = {field.name: getattr(before, field.name) + getattr(after, field.name) for field in fields(before)}
    return replace(after, **counts | {"unanswered": after.unanswered})
