"""The one clock of the ledger: the database's.

First attempts, leases and deadlines are compared across processes and machines; a worker whose own clock is wrong
must not be able to send late.  Stages take a clock as an argument, so that tests can bring their own.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from psycopg import Connection

from billing_pipeline.database import queries


class DatabaseClock:
    """Calling it asks the database for the time, in UTC."""

    def __init__(self, connection: Connection[Any]) -> None:
        self._connection = connection

    def __call__(self) -> datetime:
        now: datetime = queries.fetch_dicts(self._connection, "database_clock")[0]["now"]
        return now
