"""Handles stored events again, because a person says so: chosen by id or by outcome, each reported as it ends.

A replayed event is as if it had just arrived: no attempts, no failure.  Handling is idempotent, so one that had been
processed changes nothing.  `replay_dry_run` shows what would change; `replay_http` delivers the stored bodies again.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.database.transactions import in_transaction
from billing_pipeline.domain.outcomes import WELL
from billing_pipeline.errors import Refused
from billing_pipeline.webhooks.claims import Claim
from billing_pipeline.webhooks.dispatch import Dispatcher
from billing_pipeline.webhooks.events_list import Choice, require_known

BATCH = 20
"""Events taken at once: a person sees progress, and what is taken is soon handled."""


@dataclass(frozen=True, slots=True)
class ChosenEvent:
    """An event that is to be handled again, and where it stands."""

    stripe_event_id: str
    event_type: str
    processing_outcome: str
    attempted_at: datetime | None
    has_payload: bool


@dataclass(frozen=True, slots=True)
class Replayed:
    """What became of an event.  `due_at` is its next try, where one is planned."""

    stripe_event_id: str
    event_type: str
    processing_outcome: str
    error_class: str | None
    processing_error: str | None
    attempts: int
    attempted_at: datetime | None
    due_at: datetime | None

    @property
    def ended_well(self) -> bool:
        """Whether nothing is left to do about it."""
        return self.processing_outcome in WELL


def named_events(connection: Connection[Any], event_ids: Sequence[str]) -> list[ChosenEvent]:
    """The events of these ids, the oldest first.  Raises `UserError` for unknown ones."""
    require_known(connection, event_ids)
    return queries.fetch(connection, "named_events", ChosenEvent, {"ids": list(event_ids)})


def choose_events(connection: Connection[Any], choice: Choice, *, limit: int) -> list[ChosenEvent]:
    """At most so many of the chosen events, the oldest first."""
    parts = {"chosen_events": queries.part("chosen_events")}
    return queries.fetch(connection, "choose_events", ChosenEvent, choice.params() | {"limit": limit}, parts=parts)


def require_payloads(events: Sequence[ChosenEvent]) -> None:
    """Raises `Refused`, naming them, for events whose payload is no longer kept: a replay could only fail them."""
    if gone := [event.stripe_event_id for event in events if not event.has_payload]:
        raise Refused(
            f"The payload is no longer kept of {', '.join(gone)}; they have been handled, and cannot be again. "
            "Nothing was replayed."
        )


def replay(dispatcher: Dispatcher, events: Sequence[ChosenEvent]) -> Iterator[Replayed]:
    """Handle events here and now, batch by batch.  Raises `DatabaseUnavailable`; what was taken then waits its SLA."""
    connection = dispatcher.connection
    for start in range(0, len(events), BATCH):
        ids = [event.stripe_event_id for event in events[start : start + BATCH]]
        dispatcher.handle(take(connection, ids, now=dispatcher.clock()))
        yield from queries.fetch(connection, "outcomes_of_events", Replayed, {"ids": ids})


def take(connection: Connection[Any], event_ids: Sequence[str], *, now: datetime) -> list[Claim]:
    """Put events back to how they arrived, and claim them, in one transaction."""
    params = {"ids": list(event_ids), "now": now}
    claim = partial(queries.fetch, connection, "claim_for_replay", Claim, params)
    return in_transaction(connection, claim, name="The replay's claim of webhook events")
