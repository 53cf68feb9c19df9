"""Threads that handle what is stored, beside the intake: one dispatches, one asks Stripe.

They share nothing with the requests.  Whatever stops them (a kill, a database that restarts) leaves claims that lapse;
another `serve` or the Dagster job takes those over.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from psycopg import Connection

from billing_pipeline.database.lasting_connection import LastingConnection
from billing_pipeline.errors import BillingError

logger = logging.getLogger(__name__)

IDLE_SECONDS = 0.1
"""Between two looks at an empty list: what a delivery waits at most before it is handled."""

PAUSE_SECONDS = 2.0
"""After a failure."""

TURN_SECONDS = 1.0
"""While deliveries crowd, handling waits, but never longer than this: what is stored is safe, what is not is late."""

Step = Callable[[Connection[Any]], int]
"""Does some of what there is to do and returns how much that was; twice must be the same as once."""


class Worker(threading.Thread):
    """Repeats a step on a connection of its own until it is stopped."""

    def __init__(self, name: str, database_url: str, step: Step, is_crowded: Callable[[], bool]) -> None:
        super().__init__(name=name, daemon=True)
        self._connection = LastingConnection(database_url)
        self._step = step
        self._is_crowded = is_crowded
        self._last_turn = 0.0
        self._stopping = threading.Event()

    def run(self) -> None:
        while not self._stopping.is_set():
            self._stopping.wait(self._once())
        self._connection.close()

    def stop(self) -> None:
        """Ask it to end after the step that it is in."""
        self._stopping.set()

    def _once(self) -> float:
        """How long to wait before the next step."""
        if self._is_crowded() and time.monotonic() < self._last_turn + TURN_SECONDS:
            return IDLE_SECONDS
        self._last_turn = time.monotonic()
        try:
            return 0 if self._connection.run(self._step) else IDLE_SECONDS
        except BillingError as exc:
            logger.warning("%s waits: %s", self.name, exc)
        except Exception as exc:
            # The driver's own words may quote values; a worker that ended would leave everything to the Dagster job.
            logger.error("%s failed: %s", self.name, type(exc).__name__)
        return PAUSE_SECONDS


@contextmanager
def working(
    database_url: str, steps: Mapping[str, Step], *, is_crowded: Callable[[], bool], patience: float = 20
) -> Iterator[None]:
    """Workers by name, for as long as the block runs; at its end they have `patience` seconds for their steps.

    `is_crowded` says whether deliveries wait in numbers.
    """
    workers = [Worker(name, database_url, step, is_crowded) for name, step in steps.items()]
    for worker in workers:
        worker.start()
    try:
        yield
    finally:
        for worker in workers:
            worker.stop()
        until = time.monotonic() + patience
        for worker in workers:
            worker.join(max(0.0, until - time.monotonic()))
