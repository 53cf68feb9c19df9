"""Takes the bodies of old webhook events away, and leaves the events: ids, digests, types and outcomes stay for ever.

Run by hand with `billing-pipeline events purge`.  Events that are not handled keep their bodies, because a replay needs
them; the projections can be made anew only from events whose payload is still there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.database.transactions import in_transaction

BATCH = 1_000


@dataclass(frozen=True, slots=True)
class OldBodies:
    """How many handled events have a body that is old enough to go, and the bytes of the raw ones."""

    events: int
    bytes: int


def old_bodies(connection: Connection[Any], *, received_before: datetime) -> OldBodies:
    """What a purge would take."""
    return queries.fetch(connection, "old_bodies", OldBodies, {"received_before": received_before})[0]


def purge_bodies(
    connection: Connection[Any],
    *,
    received_before: datetime,
    on_progress: Callable[[int], None] = lambda purged: None,
    batch: int = BATCH,
) -> int:
    """Take raw body and payload of handled events received before then; return of how many.  Commits each batch."""
    params = {"received_before": received_before, "limit": batch}
    purge_batch = partial(queries.execute, connection, "purge_bodies", params)
    purged = 0
    while done := in_transaction(connection, purge_batch, name="The purge of old webhook bodies"):
        purged += done
        on_progress(purged)
    return purged
