"""Wakes the streams of one process when their organization's feed may have something new.

One connection to PostgreSQL and one to Redis serve any number of streams.  A stream that sleeps costs nothing but its
heartbeat: Redis says who has something new, and without Redis one question for all organizations finds it.
The table is asked all the same every few seconds, because pub/sub forgets what nobody heard.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any, Self, TypeVar

from psycopg import Connection

from billing_pipeline.database.lasting_connection import LastingConnection
from billing_pipeline.errors import DatabaseUnavailable
from billing_pipeline.feed.broadcast import CHANNEL_PREFIX, channel_of
from billing_pipeline.feed.read import Beginning, FeedRow, begin, ends_of, heads_of, rows_after

logger = logging.getLogger(__name__)

Answer = TypeVar("Answer")

POLL_SECONDS = 2.0
"""What a stream waits at most for a row where Redis is away."""

PATIENCE_SECONDS = 20
REDIS_PAUSE_SECONDS = 2.0
REDIS_PING_SECONDS = 30
STREAMS_MAX = 500
"""Well below the connections that `serve` takes, so that streams never keep Stripe out."""

STREAMS_OF_ORGANIZATION_MAX = 50


class Full(Exception):
    """No further stream is taken; `of_organization` says whether only this organization has too many."""

    def __init__(self, *, of_organization: bool) -> None:
        super().__init__("too many streams")
        self.of_organization = of_organization


class Seat:
    """One stream's place: it sleeps here until there may be something new, or the process ends."""

    def __init__(self) -> None:
        self._news = asyncio.Event()
        self.is_over = False

    async def sleep(self, seconds: float) -> bool:
        """Whether it was woken, within so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            return False
        self._news.clear()
        return True

    def wake(self) -> None:
        """There may be something new."""
        self._news.set()


class Hub:
    """Serves streams for as long as its `async with` block runs; `redis_url` may hold a password."""

    def __init__(self, database_url: str, redis_url: str, *, poll_seconds: float = POLL_SECONDS) -> None:
        self._connection = LastingConnection(database_url)
        self._thread = ThreadPoolExecutor(1, "billing-feed")
        self._redis_url = redis_url
        self._poll_seconds = poll_seconds
        self._seats: defaultdict[str, set[Seat]] = defaultdict(set)
        self._heads: dict[str, int] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._is_over = False

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._poll()), asyncio.create_task(self._listen())]
        return self

    async def __aexit__(self, *_: object) -> None:
        self.end()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._thread.submit(self._connection.close)
        self._thread.shutdown()

    @property
    def streams(self) -> int:
        """How many there are."""
        return sum(map(len, self._seats.values()))

    @contextmanager
    def seat(self, organization_id: str) -> Iterator[Seat]:
        """A stream's place for the length of the block.  Raises `Full`."""
        seats = self._seats.get(organization_id, ())
        if self._is_over or self.streams >= STREAMS_MAX:
            raise Full(of_organization=False)
        if len(seats) >= STREAMS_OF_ORGANIZATION_MAX:
            raise Full(of_organization=True)
        seat = Seat()
        self._seats[organization_id].add(seat)
        try:
            yield seat
        finally:
            self._seats[organization_id].discard(seat)
            if not self._seats[organization_id]:
                del self._seats[organization_id]
                self._heads.pop(organization_id, None)

    async def begin(self, organization_id: str, last_seen: int | None) -> Beginning:
        """Where a stream goes on.  Raises `DatabaseUnavailable`."""
        return begin(last_seen, await self._ask(partial(_ends, organization_id=organization_id)))

    async def rows(self, organization_id: str, after: int) -> list[FeedRow]:
        """The next page of an organization's rows.  Raises `DatabaseUnavailable`."""
        return await self._ask(partial(rows_after, organization_id=organization_id, after=after))

    def end(self) -> None:
        """Let every stream end by itself now, and take no other."""
        self._is_over = True
        for seats in self._seats.values():
            for seat in seats:
                seat.is_over = True
                seat.wake()

    async def _ask(self, question: Callable[[Connection[Any]], Answer]) -> Answer:
        asked = asyncio.get_running_loop().run_in_executor(self._thread, partial(self._connection.run, question))
        try:
            return await asyncio.wait_for(asked, PATIENCE_SECONDS)
        except TimeoutError:
            raise DatabaseUnavailable(f"PostgreSQL has not answered for {PATIENCE_SECONDS} seconds.") from None

    def _wake(self, organization_id: str) -> None:
        for seat in self._seats.get(organization_id, ()):
            seat.wake()

    async def _poll(self) -> None:
        while True:
            await asyncio.sleep(self._poll_seconds)
            if not self._seats:
                continue
            try:
                heads = await self._ask(partial(heads_of, organizations=list(self._seats)))
            except Exception as exc:
                logger.warning("The feed could not be read: %s", _said(exc))
                continue
            for organization_id, head in heads.items():
                if organization_id in self._seats and self._heads.get(organization_id) != head:
                    self._heads[organization_id] = head
                    self._wake(organization_id)

    async def _listen(self) -> None:
        is_known = False
        while True:
            try:
                async for organization_id in self._wake_ups():
                    is_known = False
                    self._wake(organization_id)
            except Exception as exc:
                # Once for each outage; the library's own words may hold the address with its password.
                if not is_known:
                    logger.warning("The feed hears nothing from Redis", extra={"error_type": type(exc).__name__})
                is_known = True
            await asyncio.sleep(REDIS_PAUSE_SECONDS)

    async def _wake_ups(self) -> Any:
        import redis.asyncio

        client: Any = redis.asyncio.Redis.from_url(
            self._redis_url,
            client_name="billing-pipeline",
            decode_responses=True,
            health_check_interval=REDIS_PING_SECONDS,
            socket_connect_timeout=PATIENCE_SECONDS,
        )
        async with client, client.pubsub(ignore_subscribe_messages=True) as listening:
            # One pattern for all, so that streams come and go without a word to Redis.
            await listening.psubscribe(channel_of("*"))
            while True:
                message = await listening.get_message(timeout=REDIS_PING_SECONDS)
                if message is not None:
                    yield str(message["channel"]).removeprefix(CHANNEL_PREFIX)


def _ends(connection: Connection[Any], *, organization_id: str) -> Any:
    return ends_of(connection, organization_id)


def _said(exc: Exception) -> str:
    return str(exc) if isinstance(exc, DatabaseUnavailable) else type(exc).__name__
