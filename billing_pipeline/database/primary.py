"""Says early that a database takes no writes: a standby, or one that is set to read-only.

Asked whenever a flow is opened that may write.  A standby also lags: its source would be counted short, and what it
shows of the ledger may have been sent since.
"""

from __future__ import annotations

from typing import Any

from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.database.connection import describe
from billing_pipeline.errors import DatabaseUnavailable


def require_primary(connection: Connection[Any], database_url: str) -> None:
    """Raises `DatabaseUnavailable` for a standby, and for a session that is read-only by default."""
    found = queries.fetch_dicts(connection, "what_keeps_from_writing")[0]
    if found["in_recovery"]:
        raise DatabaseUnavailable(
            f"PostgreSQL at {describe(database_url)} is a standby: it takes no writes, and what it shows may lag. "
            "A flush reads its source and writes its ledger on the primary; point DATABASE_URL there."
        )
    if found["read_only"]:
        raise DatabaseUnavailable(
            f"PostgreSQL at {describe(database_url)} takes no writes: default_transaction_read_only is on for this "
            "database or login. Turn it off, or point DATABASE_URL at the primary; then run the command again."
        )
