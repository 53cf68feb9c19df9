"""Brings a database to this version's schema, by Alembic without its ini file.

One transaction does all of it, so a failing migration leaves the database as it was; an advisory lock lets one
caller at a time in.  The embedded default is migrated by the commands that use it, any other database only by
`billing-pipeline migrate`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psycopg
from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Connection, NullPool, create_engine
from sqlalchemy.exc import DBAPIError, ProgrammingError

from billing_pipeline.database import connection as database_connection
from billing_pipeline.database.schema_version import missing_revisions
from billing_pipeline.database.tables import SCHEMA, source_metadata
from billing_pipeline.errors import UserError

MIGRATION_LOCK = 0x62696C6C
"""The key of the advisory lock: 'bill' in ASCII."""


def migrate(database_url: str, *, create_source: bool) -> list[str]:
    """Apply what is missing; returns the revisions applied, oldest first.

    With `create_source`, also creates `public.billable_events`, which otherwise belongs to the upstream team.
    Raises `UserError` where the login may not change the schema, or the schema is newer than this version.
    """
    with _connect(database_url) as connection, _refusals_told(), connection.begin():
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(%s)", (MIGRATION_LOCK,))
        pending = _pending(connection)
        if pending:
            _create_schema(connection)
            command.upgrade(_config(connection), "head")
        if create_source:
            create_default_source(connection)
    return pending


def start_over(database_url: str) -> None:
    """Drop everything of ours and the default source, then migrate: for the demo's sandbox only."""
    with _connect(database_url) as connection, _refusals_told(), connection.begin():
        connection.exec_driver_sql(f"DROP SCHEMA IF EXISTS {SCHEMA} CASCADE")
        source_metadata.drop_all(connection)
    migrate(database_url, create_source=True)


def pending_revisions(database_url: str) -> list[str]:
    """The revisions that `migrate` would apply, oldest first; changes nothing."""
    with _connect(database_url) as connection:
        return _pending(connection)


def create_default_source(connection: Connection) -> None:
    """Create `public.billable_events` where it is absent: for the embedded default, the demo and tests."""
    source_metadata.create_all(connection)


def _pending(connection: Connection) -> list[str]:
    context = MigrationContext.configure(connection, opts={"version_table_schema": SCHEMA})
    return missing_revisions(context.get_current_revision())


def _create_schema(connection: Connection) -> None:
    # Looked up first: IF NOT EXISTS asks for the right to create even where there is nothing to create.
    found = connection.exec_driver_sql("SELECT to_regnamespace(%s)", (SCHEMA,)).scalar()
    if found is None:
        connection.exec_driver_sql(f"CREATE SCHEMA {SCHEMA}")


@contextmanager
def _refusals_told() -> Iterator[None]:
    try:
        yield
    except (psycopg.ProgrammingError, ProgrammingError) as exc:
        refusal = exc.orig if isinstance(exc, ProgrammingError) else exc
        raise UserError(
            f"The schema cannot be brought to this version, and nothing was changed: {str(refusal).splitlines()[0]}. "
            "Migrate with a login that owns the schema billing_pipeline, and move away what stands in its place."
        ) from exc


@contextmanager
def _connect(database_url: str) -> Iterator[Connection]:
    # Through our own connect, so that a server that does not answer is told in one sentence here too.
    with database_connection.connect(database_url) as session:
        session.autocommit = False
        engine = create_engine("postgresql+psycopg://", creator=lambda: session, poolclass=NullPool)
        try:
            with engine.connect() as connection:
                yield connection
        except DBAPIError as exc:
            raise (exc.orig or exc) from exc  # unwrapped, for our connect to tell


def _config(connection: Connection) -> Config:
    config = Config()
    # configparser expands %, and a path may hold one.
    folder = str(Path(__file__).with_name("migrations")).replace("%", "%%")
    config.set_main_option("script_location", folder)
    config.set_main_option("path_separator", "os")
    config.attributes["connection"] = connection
    return config
