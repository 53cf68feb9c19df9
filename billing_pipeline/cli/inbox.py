"""The inbox of webhook events, opened for a command: its database, the settings, and the database's clock.

Not the usage flow: whoever looks for an event at 3 a.m. needs no catalogue and no Stripe.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from psycopg import Connection

    from billing_pipeline.settings import Settings


@dataclass(frozen=True, slots=True)
class Inbox:
    """What a command about webhook events works with."""

    connection: Connection[Any]
    settings: Settings
    clock: Callable[[], datetime]


@contextmanager
def open_inbox(*, only_reads: bool = False) -> Iterator[Inbox]:
    """The inbox over a connection of its own.  Raises what opening the ledger raises."""
    from billing_pipeline.cli.local_stack import ready_database
    from billing_pipeline.database.clock import DatabaseClock
    from billing_pipeline.database.connection import connect
    from billing_pipeline.database.primary import require_primary
    from billing_pipeline.database.schema_version import require_current_schema
    from billing_pipeline.settings import load_settings

    # The command itself says what became of each event; a worker's log lines would only repeat it.
    logging.getLogger("billing_pipeline").addHandler(logging.NullHandler())
    settings = load_settings()
    database_url = ready_database(settings)
    with connect(database_url) as connection:
        if not only_reads:
            require_primary(connection, database_url)
        require_current_schema(connection)
        yield Inbox(connection, settings, DatabaseClock(connection))
