"""A transaction that can change nothing, for whoever only looks, on a connection of its own.

PostgreSQL refuses every write in it, so what asks here need not be trusted not to.  It also waits for nobody long:
whoever looks at 3 a.m. wants to hear that something is locked, not to wait for it.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.database.connection import connect

STATEMENT_MS_MAX = 60_000
"""How long one question may take."""
LOCK_MS_MAX = 5_000
"""How long it waits for another's lock."""


@contextmanager
def read_only(database_url: str) -> Iterator[Connection[Any]]:
    """A connection whose one transaction is READ ONLY and rolled back at the end.

    Raises what `connect` raises; a question that takes too long is a `DatabaseUnavailable`.
    """
    with connect(database_url) as connection:
        connection.read_only = True
        with connection.transaction(force_rollback=True):
            waits = {"statement_timeout": str(STATEMENT_MS_MAX), "lock_timeout": str(LOCK_MS_MAX)}
            # For this transaction alone: behind a pooler the session is the next one's too.
            queries.execute(connection, "wait_no_longer_than", waits)
            yield connection
