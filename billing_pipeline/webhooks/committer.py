"""Lets requests that wait together share a commit: between the endpoint and the inbox.

While one batch is being committed the next gathers, so nobody waits for company, and under load a commit's cost is
divided among many.  A request is answered after its own commit and never before.
Each connection has a thread of its own; the event loop only hands over and back.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Self, TypeVar

from psycopg import Connection

from billing_pipeline.database.lasting_connection import LastingConnection
from billing_pipeline.errors import BillingError, DatabaseUnavailable, DeliveryRefused, Unavailable
from billing_pipeline.webhooks.deliveries import Delivery
from billing_pipeline.webhooks.inbox import Origin, Stored, count_signature_failures, store
from billing_pipeline.webhooks.refusal_log import RefusalLog

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

WAITING_MAX = 2_000
WAITING_BYTES_MAX = 64 << 20
"""Beyond either a request is turned away at once, and Stripe sends it again later."""

CROWD = 16
BATCH_MAX = 200
BATCH_BYTES_MAX = 8 << 20
ASKING_SECONDS = 20

HOUSEKEEPING_SECONDS = 2


@dataclass(slots=True)
class _Waiting:
    delivery: Delivery
    answer: asyncio.Future[Stored]

    @property
    def size(self) -> int:
        return len(self.delivery.raw_body or b"")


@dataclass
class _Lane:
    """One connection and its thread."""

    connection: LastingConnection
    thread: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(1, "webhook-inbox"))


class Committer:
    """Stores deliveries for as long as its `async with` block runs; afterwards all of them are answered."""

    def __init__(self, database_url: str, *, stuck_after: timedelta, connections: int = 1) -> None:
        self._stuck_after = stuck_after
        self._lanes = [_Lane(LastingConnection(database_url)) for _ in range(connections)]
        self._waiting: deque[_Waiting] = deque()
        self._waiting_bytes = 0
        self._under_way = 0
        self._wanted = asyncio.Event()
        self._failures: Counter[tuple[datetime, str]] = Counter()
        self._refusals = RefusalLog()
        self._closing = False
        self._tasks: list[asyncio.Task[None]] = []
        self._housekeeping: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._commit_batches(lane)) for lane in self._lanes]
        self._housekeeping = asyncio.create_task(self._keep_house())
        return self

    async def __aexit__(self, *_: object) -> None:
        # Whoever waits is still answered.
        self._closing = True
        self._wanted.set()
        await asyncio.gather(*self._tasks)
        if self._housekeeping is not None:
            self._housekeeping.cancel()
        self._refusals.tell_all()
        await self._flush_failures()
        for lane in self._lanes:
            lane.thread.submit(lane.connection.close)
            lane.thread.shutdown()

    async def store(self, delivery: Delivery, *, until: float) -> Stored:
        """What became of the delivery, once that is committed; waited for `until` the event loop's clock says so.

        Raises `Unavailable` where it could not be stored, or where nobody knows yet whether it is, and
        `DeliveryRefused` for what PostgreSQL cannot hold.
        """
        loop = asyncio.get_running_loop()
        waiting = _Waiting(delivery, loop.create_future())
        if len(self._waiting) >= WAITING_MAX or self._waiting_bytes + waiting.size > WAITING_BYTES_MAX or self._closing:
            raise Unavailable("More deliveries wait than the intake holds; Stripe sends this one again.")
        self._waiting.append(waiting)
        self._waiting_bytes += waiting.size
        self._wanted.set()
        # Not `asyncio.timeout`, which costs three times as much, once a delivery.
        late = loop.call_at(
            until, _answer, waiting, Unavailable("The delivery waited too long; Stripe sends it again.")
        )
        try:
            return await waiting.answer
        finally:
            late.cancel()

    def is_crowded(self) -> bool:
        """Whether deliveries are unanswered in numbers, so that whatever else is to be done should wait for them.

        Those whose commit is under way count: while they are written, the next ones need the interpreter.
        """
        return len(self._waiting) + self._under_way > CROWD

    async def ask(self, question: Callable[[Connection[Any]], Answer], *, seconds: float | None = None) -> Answer:
        """What a read returns, between two batches; raises like `LastingConnection.run`, and `Unavailable` if late."""
        seconds = ASKING_SECONDS if seconds is None else seconds
        lane = self._lanes[0]
        asked = asyncio.get_running_loop().run_in_executor(lane.thread, partial(lane.connection.run, question))
        try:
            return await asyncio.wait_for(asked, seconds)
        except TimeoutError:
            raise DatabaseUnavailable(f"PostgreSQL has not answered for {seconds} seconds.") from None

    def signature_failed(self, reason: str, *, now: datetime) -> None:
        """Tell of a refused delivery and count it; the count is written within seconds, or lost by a kill before."""
        self._refusals.refused(reason, now=asyncio.get_running_loop().time())
        self._failures[now.replace(second=0, microsecond=0), reason] += 1

    async def _commit_batches(self, lane: _Lane) -> None:
        while True:
            if not self._waiting:
                if self._closing:
                    return
                self._wanted.clear()
                await self._wanted.wait()
                continue
            if not (batch := self._next_batch()):
                continue
            self._under_way += len(batch)
            try:
                results = await self._store(lane, [waiting.delivery for waiting in batch])
            except Exception as exc:
                _tell(exc, len(batch))
                for waiting in batch:
                    _answer(waiting, Unavailable("The delivery could not be stored; Stripe sends it again."))
            else:
                for waiting, result in zip(batch, results, strict=True):
                    _answer(waiting, result)
            finally:
                self._under_way -= len(batch)

    def _next_batch(self) -> list[_Waiting]:
        batch: list[_Waiting] = []
        size = 0
        while self._waiting and len(batch) < BATCH_MAX and size < BATCH_BYTES_MAX:
            waiting = self._waiting.popleft()
            self._waiting_bytes -= waiting.size
            # Who was told to come again is not stored behind his back.
            if not waiting.answer.done():
                batch.append(waiting)
                size += waiting.size
        return batch

    async def _store(self, lane: _Lane, deliveries: list[Delivery]) -> list[Stored | DeliveryRefused]:
        def work(connection: Connection[Any]) -> list[Stored | DeliveryRefused]:
            return store(connection, deliveries, origin=Origin.WEBHOOK, stuck_after=self._stuck_after)

        return await asyncio.get_running_loop().run_in_executor(lane.thread, lane.connection.run, work)

    async def _keep_house(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await asyncio.sleep(HOUSEKEEPING_SECONDS)
            self._refusals.tell(now=loop.time())
            await self._flush_failures()

    async def _flush_failures(self) -> None:
        if not self._failures:
            return
        failures, self._failures = self._failures, Counter()
        lane, count = self._lanes[0], partial(_count_failures, failures=failures)
        try:
            # For as long as it takes: what was given up might be written all the same, and then be counted twice.
            await asyncio.get_running_loop().run_in_executor(lane.thread, lane.connection.run, count)
        except Exception as exc:
            # Only counts: the next round takes them along.
            self._failures.update(failures)
            logger.warning("Signature failures not counted yet: %s", type(exc).__name__)


def _count_failures(connection: Connection[Any], *, failures: Counter[tuple[datetime, str]]) -> None:
    count_signature_failures(connection, failures)


def _answer(waiting: _Waiting, result: Stored | BillingError) -> None:
    if waiting.answer.done():
        return
    if isinstance(result, Stored):
        waiting.answer.set_result(result)
    else:
        waiting.answer.set_exception(result)


def _tell(exc: Exception, deliveries: int) -> None:
    # The driver's own words may quote what was to be stored; ours do not.
    told = str(exc) if isinstance(exc, BillingError) else f"{type(exc).__name__} {getattr(exc, 'sqlstate', '') or ''}"
    logger.error("Stripe webhook not stored: %s", told.strip(), extra={"deliveries": deliveries})
