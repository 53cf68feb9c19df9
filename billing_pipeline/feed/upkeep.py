"""Keeps the feed whole and short: finds processed events that it lacks, and lets old rows go.

Runs in the Dagster asset.  An event is told only while its own arrival is within the retention, and a row goes only
when its writing is out of it, so no event is told twice however often it is replayed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.database.transactions import in_transaction
from billing_pipeline.feed.payload import faults_of

BATCH = 1_000


@dataclass(frozen=True, slots=True)
class KeptRow:
    """A row of the feed as it is kept."""

    feed_id: int
    organization_id: str
    stripe_event_id: str
    event_type: str
    payload: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Misfit:
    """A row whose payload breaks the schema, and where."""

    feed_id: int
    stripe_event_id: str
    event_type: str
    faults: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Fitness:
    """How many payloads were looked at, how many do not fit the schema, and the first of those."""

    looked_at: int
    misfits: int
    samples: tuple[Misfit, ...]


def find_unfed(connection: Connection[Any], *, received_since: datetime, now: datetime) -> int:
    """Make candidates of processed events that the feed lacks; committed.  Returns how many."""
    params = {"received_since": received_since, "now": now}
    return in_transaction(
        connection, partial(queries.execute, connection, "find_unfed", params), name="The search for untold events"
    )


def purge_feed(connection: Connection[Any], *, fed_before: datetime, batch: int = BATCH) -> int:
    """Delete rows that were written before then, but never the newest of all; commits each batch."""
    params = {"fed_before": fed_before, "limit": batch}
    purge_batch = partial(queries.execute, connection, "purge_feed", params)
    purged = 0
    while done := in_transaction(connection, purge_batch, name="The purge of the feed"):
        purged += done
    return purged


def kept_rows(
    connection: Connection[Any], *, fed_since: datetime, after: int = 0, batch: int = BATCH
) -> Iterator[KeptRow]:
    """The feed of everybody since then, in order; a page of it is in memory."""
    while page := queries.fetch(
        connection, "feed_payloads", KeptRow, {"after": after, "fed_since": fed_since, "limit": batch}
    ):
        yield from page
        after = page[-1].feed_id


def judge_payloads(connection: Connection[Any], *, fed_since: datetime, samples_max: int = 100) -> Fitness:
    """Hold every payload since then against the schema."""
    looked_at = misfits = 0
    samples: list[Misfit] = []
    for row in kept_rows(connection, fed_since=fed_since):
        looked_at += 1
        if faults := faults_of(row.payload):
            misfits += 1
            if len(samples) < samples_max:
                samples.append(Misfit(row.feed_id, row.stripe_event_id, row.event_type, tuple(faults)))
    return Fitness(looked_at, misfits, tuple(samples))
