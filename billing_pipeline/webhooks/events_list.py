"""The inbox as a person looks for events in it: chosen by what they are, paged from the newest to the oldest.

`events_show` tells everything about one of them, `replay` handles a choice of them again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.domain.outcomes import HandlerName, Outcome
from billing_pipeline.domain.projections.projected import ObjectKind
from billing_pipeline.errors import UserError
from billing_pipeline.webhooks.handlers import HANDLERS

COUNTED_MAX = 10_000
"""More than so many are only said to be more."""


KINDS = {
    HandlerName.CUSTOMER: ObjectKind.CUSTOMER,
    HandlerName.SUBSCRIPTION: ObjectKind.SUBSCRIPTION,
    HandlerName.INVOICE: ObjectKind.INVOICE,
    HandlerName.CHECKOUT: ObjectKind.CHECKOUT_SESSION,
    HandlerName.FEATURES: ObjectKind.FEATURE_SUMMARY,
}


@dataclass(frozen=True, slots=True)
class Choice:
    """Which events are meant; what is None or empty leaves nothing out."""

    outcomes: Sequence[Outcome] = ()
    event_type: str | None = None
    handler: HandlerName | None = None
    organization_id: str | None = None

    def params(self) -> dict[str, Any]:
        """The values of the SQL part `chosen_events`."""
        names = HANDLERS[KINDS[self.handler]].types if self.handler in KINDS else ()
        return {
            "statuses": [outcome.value for outcome in self.outcomes] or None,
            "event_type": self.event_type,
            "types": None if self.handler is None else [name for name in names if not name.endswith(".")],
            "beginnings": [name for name in names if name.endswith(".")],
            "thin": self.handler is HandlerName.THIN,
            "organization_id": self.organization_id,
        }


@dataclass(frozen=True, slots=True)
class ListedEvent:
    """An event in one line.  `due_at` is its next try, None where none is planned."""

    stripe_event_id: str
    event_type: str
    payload_style: str
    object_id: str | None
    tenant_hint: str | None
    received_at: datetime
    processing_outcome: str
    attempts: int
    due_at: datetime | None
    error_class: str | None
    has_notes: bool


@dataclass(frozen=True, slots=True)
class EventPage:
    """Some events, the newest first, and how many more there are, counted up to `COUNTED_MAX` + 1."""

    events: tuple[ListedEvent, ...]
    more: int


def list_events(connection: Connection[Any], choice: Choice, *, limit: int, after: str | None = None) -> EventPage:
    """A page of the chosen events, beginning behind the event `after`.  Raises `UserError` for one that is unknown."""
    if after is not None:
        require_known(connection, [after])
    parts = {"chosen_events": queries.part("chosen_events")}
    params = choice.params() | {"after": after, "limit": limit}
    events = queries.fetch(connection, "list_events", ListedEvent, params, parts=parts)
    if len(events) < limit:
        return EventPage(tuple(events), 0)
    rest = params | {"after": events[-1].stripe_event_id, "limit": COUNTED_MAX + 1}
    more = queries.fetch_dicts(connection, "count_events_after", rest, parts=parts)[0]["events"]
    return EventPage(tuple(events), int(more))


def require_known(connection: Connection[Any], event_ids: Sequence[str]) -> None:
    """Raises `UserError`, naming them, for ids that are not in the inbox."""
    known = {row["stripe_event_id"] for row in queries.fetch_dicts(connection, "known_events", {"ids": [*event_ids]})}
    if unknown := [event_id for event_id in dict.fromkeys(event_ids) if event_id not in known]:
        raise UserError(
            f"Not in the inbox: {', '.join(unknown)}. Nothing was done. `billing-pipeline events list` shows what is; "
            "what was never delivered comes with the next sweep of Stripe's events."
        )
