"""Opens psycopg connections to the billing database, always with our search path and UTC.

Used by every flow.  What the server refuses becomes an error of ours here, once: `DatabaseUnavailable` where it does
not answer, `UserError` where a person has to create or grant something.
A URL is parsed before the driver sees it, and nothing of one that is malformed is shown: with a bare @ or / in the
password, what the driver would name as host or database is a part of the password.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import Connection
from psycopg.conninfo import conninfo_to_dict

from billing_pipeline.database.tables import SCHEMA
from billing_pipeline.errors import DatabaseUnavailable, SettingsError, UserError

CONNECT_TIMEOUT_SECONDS = 10
NOT_A_URL = (
    "is not a URL like postgresql://user:password@host:5432/database; "
    "characters such as @ / # % in the password are written %40 %2F %23 %25, "
    "and an option after ? is one that libpq knows, such as ?sslmode=require."
)
"""What is wrong with a malformed URL, and all that is ever said about it."""

LOGIN_MENDS = {
    "password authentication failed": "Correct the user or the password in DATABASE_URL.",
    "no password supplied": "Put the password into DATABASE_URL.",
    '" does not exist': "Create it, or correct DATABASE_URL.",
    "unsupported startup parameter": "A pooler stands before it; how it has to be set is in docs/getting-started.md.",
}
"""What a refused login says, and what to do; a refusal while connecting carries no SQLSTATE to go by."""

MENDS = {
    "42P01": "Create it as docs/getting-started.md shows, or name your own in BILLING_SOURCE_RELATION; what belongs to "
    f"the schema {SCHEMA} comes from `billing-pipeline migrate`.",
    "42703": "The columns that a source needs are in docs/getting-started.md; BILLING_SOURCE_COLUMNS or a view can "
    "supply them.",
    "42501": f"Grant the login SELECT on the source and let it own the schema {SCHEMA}, or use another login.",
}
"""By SQLSTATE: undefined_table, undefined_column and insufficient_privilege are for a person to mend."""

UTC_NAMES = {"UTC", "Etc/UTC", "GMT", "Etc/GMT"}


@contextmanager
def connect(database_url: str) -> Iterator[Connection[tuple[Any, ...]]]:
    """One autocommit connection; transactions are opened by the caller with `connection.transaction()`.

    The session runs in UTC and finds our tables before the team's.
    Raises `DatabaseUnavailable` when the server does not answer, `UserError` when it refuses the login or the block
    needs a table, a column or a right that is not there, `SettingsError` for a URL that cannot be one.
    """
    require_well_formed(database_url)
    try:
        connection = psycopg.connect(
            database_url,
            autocommit=True,
            connect_timeout=CONNECT_TIMEOUT_SECONDS,
            options=f"-csearch_path={SCHEMA},public -cTimeZone=UTC",
            application_name="billing-pipeline",
            # A pooler in transaction mode gives the next transaction another session, without what was prepared here.
            prepare_threshold=None,
        )
    except psycopg.OperationalError as exc:
        if mend := next((mend for words, mend in LOGIN_MENDS.items() if words in str(exc)), None):
            raise UserError(
                f"PostgreSQL refuses the login at {describe(database_url)}: {_refusal(exc)}. {mend}"
            ) from None
        raise DatabaseUnavailable(
            f"PostgreSQL does not answer at {describe(database_url)}: {first_line(exc)}. "
            "Check DATABASE_URL and that the server is up."
        ) from None
    try:
        with connection:
            _require_utc(connection, database_url)
            yield connection
    except psycopg.errors.ReadOnlySqlTransaction as exc:
        raise DatabaseUnavailable(
            f"PostgreSQL at {describe(database_url)} takes no writes: it is a standby, or set to read-only. "
            "Point DATABASE_URL at the primary, or let it write again; then run the command again."
        ) from exc
    except psycopg.OperationalError as exc:
        raise DatabaseUnavailable(
            f"PostgreSQL failed during the work, at {describe(database_url)}: {first_line(exc)}. "
            "What was not committed is undone; run the command again."
        ) from exc
    except Exception as exc:
        # By SQLSTATE and not by class, because psycopg and ADBC carry the one and differ in the other.
        if (mend := MENDS.get(getattr(exc, "sqlstate", None) or "")) is None:
            raise
        raise UserError(f"PostgreSQL at {describe(database_url)} says: {_primary(exc)}. {mend}") from exc


def _require_utc(connection: Connection[tuple[Any, ...]], database_url: str) -> None:
    # A pooler may drop our options.  In a zone whose clock changes, Python's difference of two times is an hour wrong.
    zone = connection.info.parameter_status("TimeZone")
    if zone not in UTC_NAMES:
        raise UserError(
            f"PostgreSQL at {describe(database_url)} gives sessions in {zone} instead of UTC, as a pooler does that "
            "drops a session's options. Run ALTER ROLE ... SET TimeZone = 'UTC' for the login; "
            "docs/getting-started.md has the rest."
        )


def describe(database_url: str) -> str:
    """Host, port and database of a URL, without its password.  Raises `SettingsError` for a URL that cannot be one."""
    require_well_formed(database_url)
    parts = conninfo_to_dict(database_url)
    where = parts.get("host") or "localhost"
    port = f":{parts['port']}" if parts.get("port") else ""
    return f"{where}{port}/{parts.get('dbname', '')}"


def require_well_formed(database_url: str, *, name: str = "The database's address") -> None:
    """Raises `SettingsError`, quoting nothing of it, for what the driver would misread; `name` says which URL."""
    # Raised outside the handler of the driver's error, which quotes the URL and would go along as the context.
    if not _is_well_formed(database_url):
        raise SettingsError(f"{name} {NOT_A_URL}")


def _is_well_formed(database_url: str) -> bool:
    try:
        options = conninfo_to_dict(database_url)
    except (psycopg.ProgrammingError, UnicodeError):
        return False
    ports = str(options.get("port") or "").split(",")
    places = f"{options.get('host') or ''} {options.get('hostaddr') or ''} {options.get('dbname') or ''}"
    return "@" not in places and all((port.isascii() and port.isdigit()) or not port for port in ports)


def _refusal(exc: BaseException) -> str:
    # Before it stands the address, which the sentence has already.
    return first_line(exc).rpartition(" failed: ")[2].removeprefix("FATAL:").strip()


def _primary(exc: BaseException) -> str:
    # ADBC puts its own words before the server's, and the whole statement behind them.
    text = exc.diag.message_primary if isinstance(exc, psycopg.Error) else None
    return (text or first_line(exc).rpartition("ERROR:")[2]).strip()


def first_line(exc: BaseException) -> str:
    """What a driver says, in one line; it names host and user but never the password."""
    return str(exc).strip().splitlines()[0] if str(exc).strip() else type(exc).__name__
