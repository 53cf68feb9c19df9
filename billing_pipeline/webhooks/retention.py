"""Takes old payloads away: of handled webhook events with their raw bodies, and of what Stripe showed when asked.

What they are about stays for ever: ids, digests, types, times and outcomes.  Run by hand with
`billing-pipeline events purge`, or daily by Dagster.  Events that are not handled keep their bodies, because a replay
needs them; the projections can be made anew only from payloads that are still there.
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
    """How many handled events have a body that is old enough to go, the bytes of the raw ones, and how many answers."""

    events: int
    bytes: int
    answers: int


@dataclass(frozen=True, slots=True)
class Purged:
    """Of how many events and of how many answers of Stripe's the payload went."""

    events: int
    answers: int


def old_bodies(connection: Connection[Any], *, received_before: datetime) -> OldBodies:
    """What a purge would take."""
    return queries.fetch(connection, "old_bodies", OldBodies, {"received_before": received_before})[0]


def purge_bodies(
    connection: Connection[Any],
    *,
    received_before: datetime,
    on_progress: Callable[[int], None] = lambda purged: None,
    batch: int = BATCH,
) -> Purged:
    """Take raw body and payload of handled events and answers received before then; commits each batch.

    `on_progress` is told how many are gone so far.
    """
    params = {"received_before": received_before, "limit": batch}
    gone = {"purge_bodies": 0, "purge_answers": 0}
    for statement in gone:
        purge_batch = partial(queries.execute, connection, statement, params)
        while done := in_transaction(connection, purge_batch, name="The purge of old webhook bodies"):
            gone[statement] += done
            on_progress(sum(gone.values()))
    return Purged(events=gone["purge_bodies"], answers=gone["purge_answers"])
