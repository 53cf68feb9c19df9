"""What the service levels of the webhooks' flow are judged by; reads only.

Used by the Dagster checks and the sensor.  Rates are over what was stored: a stranger's bad signatures must not move
them, so those have a count of their own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.domain.projections.invoices import TRANSITIONS

DAY = timedelta(hours=24)
HOUR = timedelta(hours=1)
LISTED = timedelta(days=30)
"""How long Stripe lists an event."""


@dataclass(frozen=True, slots=True)
class Unhandled:
    """Events that failed in one way; `parked` ones wait for a person, `failed` ones for their next attempt."""

    processing_outcome: str
    error_class: str
    events: int
    oldest_at: datetime
    samples: list[str]


@dataclass(frozen=True, slots=True)
class Stuck:
    """An event whose worker did not come back, or that nobody took; `events` is how many there are in all."""

    stripe_event_id: str
    event_type: str
    attempts: int
    since_at: datetime
    is_claimed: bool
    events: int


@dataclass(frozen=True, slots=True)
class Handled:
    """Of the events of a day that had their time, those that ended well."""

    events: int
    handled: int


@dataclass(frozen=True, slots=True)
class Sweep:
    """The last sweep of Stripe's list: every event of that span is in the inbox."""

    complete_from: datetime
    complete_through: datetime
    events_listed: int
    events_missing: int
    finished_at: datetime


@dataclass(frozen=True, slots=True)
class Gap:
    """What no sweep has read and Stripe lists no more: events of [gap_from, gap_until)."""

    gap_from: datetime
    gap_until: datetime


@dataclass(frozen=True, slots=True)
class InvoiceStep:
    """How many events say that an invoice went from one state to another, and one of them."""

    was: str
    became: str | None
    events: int
    sample: str

    @property
    def is_legal(self) -> bool:
        """Whether Stripe's states allow it."""
        return self.became in TRANSITIONS.get(self.was, ()) or self.became == self.was


@dataclass(frozen=True, slots=True)
class Waiting:
    """An event that is due, and how often it was tried."""

    stripe_event_id: str
    attempts: int


@dataclass(frozen=True, slots=True)
class InboxCounts:
    """How much is in the inbox (an estimate), how much of it waits, and when the newest came."""

    events_estimated: int
    waiting: int
    newest_at: datetime | None


def unhandled(connection: Connection[Any]) -> list[Unhandled]:
    """What failed and what is parked, the parked first."""
    return queries.fetch(connection, "unhandled_events", Unhandled)


def stuck(connection: Connection[Any], *, sla: timedelta, now: datetime, limit: int) -> list[Stuck]:
    """The oldest work that was not ended within the SLA."""
    return queries.fetch(connection, "stuck_events", Stuck, {"stuck_before": now - sla, "limit": limit})


def handled(connection: Connection[Any], *, sla: timedelta, now: datetime) -> Handled:
    """How the last 24 hours' events ended."""
    [found] = queries.fetch(connection, "handling_rate", Handled, {"since": now - DAY, "stuck_before": now - sla})
    return found


def deliveries(connection: Connection[Any], *, now: datetime) -> Mapping[str, int]:
    """Signed deliveries of the last 24 hours by result: accepted, duplicate, requeued."""
    found = queries.fetch_dicts(connection, "delivery_sums", {"since": now - DAY})
    return {str(row["result"]): int(row["deliveries"]) for row in found}


def refused(connection: Connection[Any], *, now: datetime) -> Mapping[str, int]:
    """Deliveries of the last hour that were refused for their signature, by reason."""
    found = queries.fetch_dicts(connection, "refused_deliveries", {"since": now - HOUR})
    return {str(row["reason"]): int(row["deliveries"]) for row in found}


def last_sweep(connection: Connection[Any]) -> Sweep | None:
    """The sweep that came furthest."""
    return next(iter(queries.fetch(connection, "last_sweep", Sweep)), None)


def open_gap(connection: Connection[Any]) -> Gap | None:
    """From the first to the last moment that only a re-read of the objects makes up for; None where all was swept."""
    gaps = queries.fetch_dicts(connection, "open_gaps")
    return Gap(gaps[0]["gap_start"], max(gap["gap_end"] for gap in gaps)) if gaps else None


def unreadable_since(connection: Connection[Any], *, now: datetime) -> datetime | None:
    """The start of the first span with events that could not be stored and that Stripe still lists."""
    [found] = queries.fetch_dicts(connection, "unreadable_spans", {"listed_since": now - LISTED})
    since: datetime | None = found["since_at"]
    return since


def invoice_steps(connection: Connection[Any], *, now: datetime) -> list[InvoiceStep]:
    """From which state to which the last 24 hours' events say that invoices went."""
    return queries.fetch(connection, "invoice_steps", InvoiceStep, {"since": now - DAY})


def to_launch(
    connection: Connection[Any], *, grace: timedelta, sla: timedelta, now: datetime, limit: int
) -> list[Waiting]:
    """Events that were due before the grace and that no worker has now, the longest due first."""
    params = {"due_before": now - grace, "stuck_before": now - sla, "limit": limit}
    return queries.fetch(connection, "dispatches_to_launch", Waiting, params)


def inbox_counts(connection: Connection[Any]) -> InboxCounts:
    """How much there is and how much waits."""
    [found] = queries.fetch(connection, "inbox_counts", InboxCounts)
    return found
