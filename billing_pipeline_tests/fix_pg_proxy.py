"""A proxy between a worker and PostgreSQL that stops at a chosen statement, or loses the answer to it.

A place in a flush is named by the statement of `database/sql` that runs there, so no test needs a switch in the
product.  It knows just enough of the protocol: a statement's text goes to the server as it is, and the server is
done when it says that it is ready for the next.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from urllib.parse import quote

import pytest
from psycopg.conninfo import conninfo_to_dict

from billing_pipeline.database import queries
from billing_pipeline_tests.tcp_server import running_tcp_server

CHUNK = 1 << 16
READY = b"Z\x00\x00\x00\x05"
"""ReadyForQuery, but for its last byte: I outside a transaction, where what was sent is committed, T inside one."""


class Loss(StrEnum):
    """What happens at the chosen place."""

    HOLD = "hold"  # the server never sees it, and the client waits until it is killed or let go
    CUT = "cut"  # the server does it and commits; instead of hearing so, the client sees the connection close


@dataclass(frozen=True)
class _Place:
    text: bytes
    loss: Loss
    commit_after: bool


class PostgresProxy:
    """Serves `url`; `at` says where the next connection that comes there meets its end."""

    def __init__(self, database_url: str) -> None:
        self._options = conninfo_to_dict(database_url)
        self._place: _Place | None = None
        self.port = 0
        self._let_go = threading.Event()
        self.reached = threading.Event()

    @property
    def url(self) -> str:
        """The same database through the proxy."""
        user, password = (quote(str(self._options.get(key) or ""), safe="") for key in ("user", "password"))
        login = f"{user}:{password}" if password else user
        return f"postgresql://{login}@127.0.0.1:{self.port}/{self._options['dbname']}?sslmode=disable"

    def at(self, statement: str, loss: Loss, *, commit_after: bool = False) -> None:
        """Once, at the named statement; HOLD can wait for the COMMIT of its transaction, which CUT always does."""
        text = queries.statements()[statement]
        # What comes before the first parameter is sent as it is written.
        fixed = min((text.index(mark) for mark in ("%(", "%%", "{") if mark in text), default=len(text))
        assert fixed > 20, f"{statement} begins with a parameter; it cannot be recognized"
        self.reached.clear()
        self._let_go.clear()
        self._place = _Place(text[:fixed].encode(), loss, commit_after)

    def let_go(self) -> None:
        """Let the held statement through."""
        self._let_go.set()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one connection's bytes both ways."""
        from_server, to_server = await self._connect()
        awaited = asyncio.Event()
        ways = [
            asyncio.create_task(self._up(reader, to_server, awaited)),
            asyncio.create_task(self._down(from_server, writer, awaited)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            pass  # the test is over
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            writer.close()
            to_server.close()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = str(self._options.get("host") or "localhost"), int(self._options.get("port") or 5432)
        if host.startswith("/"):
            return await asyncio.open_unix_connection(f"{host}/.s.PGSQL.{port}")
        return await asyncio.open_connection(host, port)

    async def _up(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, awaited: asyncio.Event) -> None:
        seen, place = b"", None
        while chunk := await reader.read(CHUNK):
            seen = seen[-4096:] + chunk
            if place is None and self._place is not None and self._place.text in seen:
                place, self._place = self._place, None
                if place.loss is Loss.CUT:
                    awaited.set()
            if place is not None and place.loss is Loss.HOLD and (not place.commit_after or b"COMMIT\x00" in chunk):
                place = None
                self.reached.set()
                while not self._let_go.is_set():
                    if reader.at_eof():
                        return  # the client is dead, and the server must hear of it
                    await asyncio.sleep(0.01)
            writer.write(chunk)
            await writer.drain()

    async def _down(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, awaited: asyncio.Event) -> None:
        kept = b""
        while chunk := await reader.read(CHUNK):
            kept += chunk
            if awaited.is_set():
                if kept.endswith(READY + b"I"):
                    self.reached.set()
                    return
                if not kept.endswith(READY + b"T"):
                    continue  # the answer goes on
            writer.write(kept)
            await writer.drain()
            kept = b""


@contextmanager
def postgres_proxy(database_url: str) -> Iterator[PostgresProxy]:
    """A proxy in front of the database's server."""
    proxy = PostgresProxy(database_url)
    with running_tcp_server(proxy.handle) as proxy.port:
        try:
            yield proxy
        finally:
            proxy.let_go()


@pytest.fixture
def pg_proxy(database_url: str) -> Iterator[PostgresProxy]:
    """A proxy in front of this test's database."""
    with postgres_proxy(database_url) as running:
        yield running
