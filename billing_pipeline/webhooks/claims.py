"""The dispatcher's claims on stored events: taken with a fence, held while handled, and given up with an outcome.

A claim is committed before any work, so a worker that dies leaves it behind, and it lapses after the SLA.
Only the fence of the last claim may write an outcome.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import psycopg
from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.database.transactions import in_transaction
from billing_pipeline.domain.dispatching import ATTEMPTS_MAX, pause_after
from billing_pipeline.domain.outcomes import WELL, Outcome

milestones = logging.getLogger("billing_pipeline.milestones")


REFUSALS = (
    psycopg.DataError,
    psycopg.IntegrityError,
    psycopg.ProgrammingError,
    psycopg.InternalError,
    psycopg.errors.ProgramLimitExceeded,
    psycopg.errors.StatementTooComplex,
)
"""What the database says about the values, not about itself."""


@dataclass(frozen=True, slots=True)
class Claim:
    """An event that this worker may handle, until another takes it after the SLA."""

    stripe_event_id: str
    fence: int


@dataclass(frozen=True, slots=True)
class ClaimedEvent:
    """A claimed event; its payload is JSON text, and `processing_outcome` is final where it is handled already."""

    stripe_event_id: str
    attempts: int
    event_type: str
    payload_style: str
    created_at: datetime
    tenant_hint: str | None
    payload: str | None
    processing_outcome: str

    @property
    def is_done(self) -> bool:
        """Whether there is nothing left to do."""
        return self.processing_outcome in WELL


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an event could not be handled: a class for triage, and words for a person."""

    error_class: str
    error: str


ABANDONED = Failure("abandoned", "Every worker that took it ended before it was done; what it shows was not written.")


def claim_due(
    connection: Connection[Any],
    *,
    limit: int,
    sla: timedelta,
    now: datetime,
    attempts_max: int = ATTEMPTS_MAX,
    only: Sequence[str] | None = None,
) -> list[Claim]:
    """Claim at most `limit` events that are due, of all or `only` of these; committed.

    One whose claim has lapsed is claimed alone: it may be what killed its worker, and the others of its batch must not
    share its attempts.  After `attempts_max` of them it is parked.
    """
    params = {"now": now, "stuck_before": now - sla, "only": None if only is None else list(only)}

    def work() -> list[Claim]:
        parked = {"attempts_limit": attempts_max, "error_class": ABANDONED.error_class, "error": ABANDONED.error}
        queries.execute(connection, "park_abandoned", params | parked)
        lapsed = queries.fetch(connection, "claim_dispatches", Claim, params | {"lapsed": True, "limit": 1})
        return lapsed or queries.fetch(
            connection, "claim_dispatches", Claim, params | {"lapsed": False, "limit": limit}
        )

    return in_transaction(connection, work, name="The claim of webhook events")


def unfinished(
    connection: Connection[Any], outcome: str, *, only: Sequence[str] | None = None, limit: int
) -> list[str]:
    """Events that are failed or parked, of all or `only` of these, the oldest first."""
    params = {"outcome": outcome, "only": None if only is None else list(only), "limit": limit}
    return [str(row["stripe_event_id"]) for row in queries.fetch_dicts(connection, "unfinished_events", params)]


def put_back(connection: Connection[Any], event_ids: Sequence[str], *, sla: timedelta) -> int:
    """Make the work of unfinished events due now: failed, parked and stuck ones; committed.  Returns how many."""
    params = {"stripe_event_id": list(event_ids), "stuck_age": sla}

    def work() -> int:
        return sum(queries.execute(connection, name, params) for name in ("put_back_dispatches", "dispatch_again"))

    return in_transaction(connection, work, name="Putting webhook events back") if event_ids else 0


def hold(connection: Connection[Any], claims: Sequence[Claim]) -> list[ClaimedEvent]:
    """The events whose claims are still ours, locked until the transaction ends."""
    params = {"ids": [claim.stripe_event_id for claim in claims], "fences": [claim.fence for claim in claims]}
    held = queries.fetch(connection, "hold_claimed", ClaimedEvent, params)
    for event in held:
        milestones.info(
            "Stripe webhook processing started",
            extra={"stripe_event_id": event.stripe_event_id, "event_type": event.event_type, "attempt": event.attempts},
        )
    return held


def finish(connection: Connection[Any], outcomes: Mapping[str, Outcome], *, now: datetime, feeds: bool = False) -> None:
    """Mark events processed or ignored, by id; with `feeds`, the feed learns of the processed ones."""
    if outcomes:
        params = {"ids": list(outcomes), "outcomes": list(outcomes.values()), "now": now, "feeds": feeds}
        queries.execute(connection, "finish_events", params)


def forget(connection: Connection[Any], events: Sequence[ClaimedEvent]) -> None:
    """Give up claims on events that are done already."""
    if events:
        queries.execute(connection, "forget_dispatches", {"ids": [event.stripe_event_id for event in events]})


def fail(
    connection: Connection[Any],
    events: Sequence[ClaimedEvent],
    failures: Mapping[str, Failure],
    *,
    attempts_max: int,
    now: datetime,
) -> int:
    """Postpone each event that failed, or park it after `attempts_max` attempts; return how many are parked."""
    failed = [event for event in events if event.stripe_event_id in failures]
    parked = [event for event in failed if event.attempts >= attempts_max]
    postponed = [event for event in failed if event.attempts < attempts_max]
    for statement, some in (("park_events", parked), ("postpone_events", postponed)):
        if some:
            params = {
                "ids": [event.stripe_event_id for event in some],
                "classes": [failures[event.stripe_event_id].error_class for event in some],
                "errors": [failures[event.stripe_event_id].error for event in some],
                "due": [now + pause_after(event.attempts) for event in some],
                "now": now,
            }
            queries.execute(connection, statement, params)
    return len(parked)
