"""Answers the web app's questions on connections of their own, so that a slow one holds up no delivery.

Each question has a few seconds, in the database and here; who gets no answer asks again.
Connections are opened by the first questions and kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from queue import LifoQueue
from typing import Any, Self, TypeVar

from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.database.lasting_connection import LastingConnection
from billing_pipeline.errors import DatabaseUnavailable

Answer = TypeVar("Answer")

CONNECTIONS = 4
ANSWER_SECONDS = 5


class Questions:
    """Answers for as long as its `async with` block runs."""

    def __init__(self, database_url: str) -> None:
        self._threads = ThreadPoolExecutor(CONNECTIONS, "webhook-questions")
        # As many as threads; the last one used comes first, so that few are open where few are needed.
        self._idle: LifoQueue[LastingConnection] = LifoQueue()
        for _ in range(CONNECTIONS):
            self._idle.put(LastingConnection(database_url))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await asyncio.get_running_loop().run_in_executor(None, self._close)

    async def ask(self, question: Callable[[Connection[Any]], Answer]) -> Answer:
        """What a read returns.  Raises like `LastingConnection.run`, and `DatabaseUnavailable` if it is late."""
        asked = asyncio.get_running_loop().run_in_executor(self._threads, self._answer, question)
        try:
            return await asyncio.wait_for(asked, ANSWER_SECONDS)
        except TimeoutError:
            raise DatabaseUnavailable(f"PostgreSQL has not answered for {ANSWER_SECONDS} seconds.") from None

    def _answer(self, question: Callable[[Connection[Any]], Answer]) -> Answer:
        def bounded(connection: Connection[Any]) -> Answer:
            # Of this transaction only: a pooler gives the session to strangers.
            with connection.transaction():
                queries.fetch_dicts(connection, "answer_within", {"limit": f"{ANSWER_SECONDS}s"})
                return question(connection)

        connection = self._idle.get_nowait()
        try:
            return connection.run(bounded)
        finally:
            self._idle.put(connection)

    def _close(self) -> None:
        self._threads.shutdown(cancel_futures=True)
        while not self._idle.empty():
            self._idle.get_nowait().close()
