"""A connection to the billing database for a process that stays: opened when needed, and again after it was lost.

It is used by one thread at a time.  Work is tried once more on a new connection where an old one turns out to be dead,
so a restart of PostgreSQL between two batches is no failure of either.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TypeVar

from psycopg import Connection
from psycopg.conninfo import make_conninfo

from billing_pipeline.database.connection import connect
from billing_pipeline.database.primary import require_primary
from billing_pipeline.database.schema_version import require_current_schema
from billing_pipeline.errors import DatabaseUnavailable

Answer = TypeVar("Answer")

SILENCE = {"tcp_user_timeout": "15000", "keepalives_idle": "15", "keepalives_interval": "5", "keepalives_count": "3"}
"""After half a minute without a sign of the server the connection is dead; without this it could hang for hours."""


class LastingConnection:
    """Runs work on a connection to a migrated primary."""

    def __init__(self, database_url: str) -> None:
        self._url = database_url
        self._opening: AbstractContextManager[Connection[Any]] | None = None
        self._connection: Connection[Any] | None = None

    def run(self, work: Callable[[Connection[Any]], Answer]) -> Answer:
        """What `work` returns.  It may run twice, so twice must be the same as once.

        Raises `DatabaseUnavailable` where no connection can be made or kept, `UserError` for another schema.
        """
        if self._connection is not None:
            try:
                return self._attempt(self._connection, work)
            except DatabaseUnavailable:
                pass
        return self._attempt(self._open(), work)

    def close(self) -> None:
        """Close what is open."""
        if (opening := self._forget()) is not None:
            opening.__exit__(None, None, None)

    def _open(self) -> Connection[Any]:
        opening = connect(make_conninfo(self._url, **SILENCE))
        connection = opening.__enter__()
        self._opening, self._connection = opening, connection

        def fits(connection: Connection[Any]) -> None:
            require_primary(connection, self._url)
            require_current_schema(connection)

        self._attempt(connection, fits)
        return connection

    def _attempt(self, connection: Connection[Any], work: Callable[[Connection[Any]], Answer]) -> Answer:
        try:
            return work(connection)
        except BaseException as exc:
            # `connect` closes, and says in words of ours what the driver said; the next work begins anew.
            if (opening := self._forget()) is not None:
                opening.__exit__(type(exc), exc, exc.__traceback__)
            raise

    def _forget(self) -> AbstractContextManager[Connection[Any]] | None:
        opening, self._opening, self._connection = self._opening, None, None
        return opening
