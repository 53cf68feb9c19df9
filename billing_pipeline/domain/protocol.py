"""The times the submission protocol rests on, and the rule that they must fit together.

Settings may change each of them; the check is what keeps a change from becoming a double charge.
The reasoning is in `docs/architecture.md`, section "Time rules".
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

IDENTIFIER_MEMORY = timedelta(hours=24)
"""Stripe: identifiers are unique "within a rolling period of at least 24 hours"."""
PAST_LIMIT = timedelta(days=35)
"""Stripe: a meter event's timestamp lies within the past 35 calendar days."""
CLOCK_ERROR = timedelta(minutes=1)
"""How far the database's clock may be from Stripe's; more freezes sending."""


@dataclass(frozen=True, slots=True)
class ProtocolTimes:
    """Durations; the defaults are the protocol's."""

    safe_send: timedelta = timedelta(hours=20)
    """No send later than this after an entry's first attempt."""
    lateness: timedelta = timedelta(hours=1)
    """How long after leaving us a request may still reach Stripe."""
    settle: timedelta = timedelta(hours=8)
    """How long Stripe's summaries may lag behind what Stripe counted."""
    past_max: timedelta = PAST_LIMIT - timedelta(hours=1)
    """How old a slot may be when it is sent."""
    past_alarm: timedelta = timedelta(days=30)
    """From this age on, an unsent slot is reported."""
    entry_lease: timedelta = timedelta(minutes=2)
    """How long a claim keeps an entry to one worker."""
    request_timeout: timedelta = timedelta(seconds=20)

    @property
    def absence_after(self) -> timedelta:
        """From this long after the last attempt, a summary that shows nothing means nothing was counted."""
        return self.lateness + self.settle

    @property
    def send_within(self) -> timedelta:
        """How long after its claim a request may still start: it must end before somebody else may claim."""
        return self.entry_lease - self.request_timeout - timedelta(seconds=10)

    def faults(self) -> list[str]:
        """Why these times would not be safe; empty when they are."""
        latest = self.safe_send + self.lateness + self.entry_lease + CLOCK_ERROR
        checks = {
            "a resend could reach Stripe after it forgot the identifier: safe send + lateness + entry lease + clock "
            f"error is {latest}, more than {IDENTIFIER_MEMORY}": latest > IDENTIFIER_MEMORY,
            "the entry lease must outlast a request by more than ten seconds": self.send_within <= timedelta(0),
            f"the oldest slot sent must be younger than Stripe's {PAST_LIMIT.days} days": self.past_max >= PAST_LIMIT,
            "the alarm for old slots must come before the limit": self.past_alarm >= self.past_max,
            "lateness must be at least the request timeout": self.lateness < self.request_timeout,
            "summaries must be given at least an hour to settle": self.settle < timedelta(hours=1),
        }
        return [text for text, wrong in checks.items() if wrong]
