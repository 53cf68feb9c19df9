"""Stores webhook events: each once, with the dispatcher's work, in one statement of the whole batch.

Behind it an event cannot be lost any more, so only then is its delivery answered.
The sweep stores what was never delivered with the same function.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

import psycopg
from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.database.transactions import in_statement, in_transaction
from billing_pipeline.domain.envelope import Envelope
from billing_pipeline.domain.outcomes import WELL
from billing_pipeline.errors import DeliveryRefused
from billing_pipeline.webhooks.deliveries import Delivery

logger = logging.getLogger(__name__)

ENVELOPE_COLUMNS = tuple(field.name for field in fields(Envelope) if field.name != "created_at")

UNSTORABLE = ("22", "54")
"""SQLSTATE classes of what PostgreSQL cannot hold: bad data, and what goes beyond its limits, such as nesting."""


class Origin(StrEnum):
    """How an event came to us."""

    WEBHOOK = "webhook"
    SWEEP = "sweep"


class Result(StrEnum):
    """What a delivery was: new, a repetition, or a repetition that puts the event's work back."""

    ACCEPTED = "accepted"
    DUPLICATE = "duplicate"
    REQUEUED = "requeued"


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of a delivery.  `found` is the outcome that a repeated event had, None where it is new."""

    result: Result
    found: str | None = None
    other_body: bool = False


def store(
    connection: Connection[Any], deliveries: Sequence[Delivery], *, origin: Origin, stuck_after: timedelta
) -> list[Stored | DeliveryRefused]:
    """Store a batch, committed; says of each delivery, in their order, what became of it.

    A delivered repetition of a failed or parked event, or of one that a worker has held for longer than `stuck_after`,
    makes its work due now.  What PostgreSQL cannot hold is refused (invalid_payload) and keeps nothing else from
    being stored.  Raises what the connection raises; then what is new may be stored, and comes as a repetition.
    """
    # Of deliveries of one event in the same batch the first is stored, and the others repeat it.
    firsts: dict[str, Delivery] = {}
    for delivery in deliveries:
        firsts.setdefault(delivery.envelope.stripe_event_id, delivery)
    columns = _columns(firsts.values()) | {"origin": origin}

    def store_new() -> set[str]:
        return _ids(queries.fetch_dicts(connection, "store_events", columns))

    try:
        new = in_statement(connection, store_new, name="Storing webhook events")
    except psycopg.Error as exc:
        if (exc.sqlstate or "")[:2] not in UNSTORABLE:
            raise
        if len(deliveries) == 1:
            return [DeliveryRefused("invalid_payload", f"PostgreSQL cannot hold the event ({exc.sqlstate}).")]
        # One of them is the reason; each alone, the others are stored.
        return [
            stored
            for delivery in deliveries
            for stored in store(connection, [delivery], origin=origin, stuck_after=stuck_after)
        ]
    return list(_results(connection, deliveries, new, origin, stuck_after))


def count_signature_failures(connection: Connection[Any], failures: Counter[tuple[datetime, str]]) -> None:
    """Add to the counts of refused deliveries, by minute and reason."""
    minutes, reasons = zip(*failures, strict=True) if failures else ((), ())
    counts = {"minute": list(minutes), "reason": list(reasons), "deliveries": list(failures.values())}
    queries.execute(connection, "count_signature_failures", counts)


def _results(
    connection: Connection[Any], deliveries: Sequence[Delivery], new: set[str], origin: Origin, stuck_after: timedelta
) -> list[Stored]:
    """What became of each, in their order, where the events in `new` have just been stored."""
    results: list[Stored] = []
    repeated: dict[int, Delivery] = {}
    for place, delivery in enumerate(deliveries):
        if (stripe_event_id := delivery.envelope.stripe_event_id) in new:
            new.remove(stripe_event_id)
        else:
            repeated[place] = delivery
        results.append(Stored(Result.ACCEPTED))
    if repeated:

        def repeat() -> list[Stored]:
            return _repetitions(connection, list(repeated.values()), origin, stuck_after)

        repetitions = in_transaction(connection, repeat, name="Repeating webhook events")
        for place, repetition in zip(repeated, repetitions, strict=True):
            results[place] = repetition
    return results


def _repetitions(
    connection: Connection[Any], repeated: Sequence[Delivery], origin: Origin, stuck_after: timedelta
) -> list[Stored]:
    """What became of deliveries whose events are stored already."""
    queries.execute(connection, "commit_durably")
    ids = [delivery.envelope.stripe_event_id for delivery in repeated]
    bodies = [delivery.raw_body for delivery in repeated]
    rows = queries.fetch_dicts(connection, "repeated_events", {"stripe_event_id": ids, "raw_body": bodies})
    requeued: set[str] = set()
    if origin is Origin.WEBHOOK and any(row["processing_outcome"] not in WELL for row in rows):
        unfinished = {"stripe_event_id": sorted(set(ids)), "stuck_age": stuck_after}
        requeued |= _ids(queries.fetch_dicts(connection, "put_back_dispatches", unfinished))
        requeued |= _ids(queries.fetch_dicts(connection, "dispatch_again", unfinished))
    results = [
        Stored(
            Result.REQUEUED if row["stripe_event_id"] in requeued else Result.DUPLICATE,
            found=row["processing_outcome"],
            other_body=row["other_body"],
        )
        for row in rows
    ]
    if origin is Origin.WEBHOOK:
        _count(connection, repeated, results)
    return results


def _count(connection: Connection[Any], deliveries: Sequence[Delivery], results: Sequence[Stored]) -> None:
    counts = Counter(
        (delivery.envelope.event_type, stored.result.value)
        for delivery, stored in zip(deliveries, results, strict=True)
    )
    types, labels = zip(*counts, strict=True)
    counted = {"event_type": list(types), "result": list(labels), "deliveries": list(counts.values())}
    queries.execute(connection, "count_deliveries", counted)


def _columns(deliveries: Iterable[Delivery]) -> dict[str, list[Any]]:
    """The deliveries column by column, as the statement unnests them."""
    rows = list(deliveries)
    columns = {name: [getattr(row.envelope, name) for row in rows] for name in ENVELOPE_COLUMNS}
    columns["payload_style"] = [row.envelope.payload_style.value for row in rows]
    columns["created"] = [row.envelope.created_at for row in rows]
    return columns | {name: [getattr(row, name) for row in rows] for name in ("raw_body", "payload", "matched_secret")}


def _ids(rows: Iterable[dict[str, Any]]) -> set[str]:
    return {row["stripe_event_id"] for row in rows}
