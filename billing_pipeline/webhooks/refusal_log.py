"""Says in the log which deliveries are refused for their signature, without a line for each: anybody can send them.

The first of a reason is told at once, because it may be a wrong secret; how many followed is told once a minute.
Every one is counted, in `signature_failures` and for Prometheus.
"""

from __future__ import annotations

import logging
from collections import Counter

logger = logging.getLogger(__name__)

QUIET_SECONDS = 60


class RefusalLog:
    """Times are in seconds of any clock that never goes back."""

    def __init__(self) -> None:
        self._quiet_until: dict[str, float] = {}
        self._untold: Counter[str] = Counter()

    def refused(self, reason: str, *, now: float) -> None:
        """Tell of a refused delivery, now or with others of its minute."""
        if reason in self._quiet_until:
            self._untold[reason] += 1
        else:
            self._quiet_until[reason] = now + QUIET_SECONDS
            logger.error("Signature verification failed: %s", reason)

    def tell(self, *, now: float) -> None:
        """Tell of the reasons whose minute is over; to be called every few seconds."""
        for reason in [reason for reason, until in self._quiet_until.items() if until <= now]:
            if self._untold[reason]:
                self._tell(reason)
                self._quiet_until[reason] = now + QUIET_SECONDS
            else:
                del self._quiet_until[reason]

    def tell_all(self) -> None:
        """Tell of everything that is untold, at the end."""
        for reason in +self._untold:
            self._tell(reason)

    def _tell(self, reason: str) -> None:
        logger.error("Signature verification failed: %s, %s more within a minute", reason, f"{self._untold[reason]:,}")
        del self._untold[reason]
