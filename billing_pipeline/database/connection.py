"""Opens psycopg connections to the billing database, always with our search path and UTC.

Used by every flow.  A server that does not answer becomes `DatabaseUnavailable` here, once.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict

from billing_pipeline.database.tables import SCHEMA
from billing_pipeline.errors import DatabaseUnavailable

CONNECT_TIMEOUT_SECONDS = 10


@contextmanager
def connect(database_url: str) -> Iterator[Connection[tuple[Any, ...]]]:
    """One autocommit connection; transactions are opened by the caller with `connection.transaction()`.

    The session runs in UTC and finds our tables before the team's.
    Raises `DatabaseUnavailable` when the server does not answer or refuses the login.
    """
    try:
        connection = psycopg.connect(
            database_url,
            autocommit=True,
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            options=f"-csearch_path={SCHEMA},public -cTimeZone=UTC",
            application_name="billing-pipeline",
        )
    except psycopg.OperationalError as exc:
        raise DatabaseUnavailable(
            f"PostgreSQL does not answer at {describe(database_url)}: {_first_line(exc)}. "
            "Check DATABASE_URL and that the server is up."
        ) from None
    try:
        with connection:
            yield connection
    except psycopg.OperationalError as exc:
        raise DatabaseUnavailable(
            f"PostgreSQL failed during the work, at {describe(database_url)}: {_first_line(exc)}. "
            "What was not committed is undone; run the command again."
        ) from exc


def describe(database_url: str) -> str:
    """Host, port and database of a URL, without its password."""
    parts = conninfo_to_dict(database_url)
    where = parts.get("host") or "localhost"
    port = f":{parts['port']}" if parts.get("port") else ""
    return f"{where}{port}/{parts.get('dbname', '')}"


def _first_line(exc: BaseException) -> str:
    # The driver's text names host and user but never the password.
    return str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
