"""What a replay would change: the events are handled in a transaction that is undone, by the same dispatcher.

Stripe is asked about thin events before the transaction begins.  The rows that events can touch are read twice, as they
are and as they would be; which those are follows from the events' objects.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from psycopg import Connection, IsolationLevel

from billing_pipeline.database import queries
from billing_pipeline.database.transactions import all_or_nothing
from billing_pipeline.domain.event_redaction import redacted
from billing_pipeline.domain.outcomes import Outcome
from billing_pipeline.domain.projections.projected import Projected
from billing_pipeline.errors import BillingError, EventUnreadable
from billing_pipeline.webhooks import entitle
from billing_pipeline.webhooks.claims import REFUSALS
from billing_pipeline.webhooks.dispatch import Dispatcher, ThinHandler, Write
from billing_pipeline.webhooks.handlers import HANDLERS, Question, understood
from billing_pipeline.webhooks.replay import ChosenEvent, Replayed, take

Rows = dict[tuple[str, str], Mapping[str, Any]]
"""Rows as JSON, by table and id."""


@dataclass(frozen=True, slots=True)
class Change:
    """A column of a row that would be another; `before` of a new row and `after` of one that would go are None."""

    table: str
    row_id: str
    column: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class DryRun:
    """How each event would end, the columns that would change, and the payloads, redacted, by event."""

    events: tuple[Replayed, ...]
    changes: tuple[Change, ...]
    payloads: Mapping[str, Any]


@dataclass(slots=True)
class _Reach:
    """The ids of the rows that events can touch, by table."""

    ids: defaultdict[str, set[str]]
    customers: set[str]


def dry_run(dispatcher: Dispatcher, events: Sequence[ChosenEvent]) -> DryRun:
    """Handle events and undo it.  Raises `DatabaseUnavailable` where others change the same rows meanwhile."""
    connection = dispatcher.connection
    ids = [event.stripe_event_id for event in events]
    stored = queries.fetch_dicts(connection, "payloads_of_events", {"ids": ids})
    reach = _reach(stored)
    now = dispatcher.clock()
    trial = replace(
        dispatcher, clock=lambda: now, thin_handlers=_asked_before(dispatcher.thin_handlers, stored), on_changed=None
    )
    found: tuple[Replayed, ...] = ()
    before: Rows = {}
    after: Rows = {}
    # One snapshot, so that every difference is the events' own.
    with all_or_nothing(connection, name="The dry run", isolation=IsolationLevel.REPEATABLE_READ):
        with connection.transaction(force_rollback=True):
            organizations = entitle.organizations_of(connection, sorted(reach.customers))
            failures = dict(_handled(trial, ids, now))
            organizations |= entitle.organizations_of(connection, sorted(reach.customers))
            reach.ids["entitlements"] = organizations
            after = _read(connection, reach)
            found = tuple(_ends(connection, ids, failures))
        before = _read(connection, reach)
    payloads = {str(row["stripe_event_id"]): redacted(row["payload"]) for row in stored}
    return DryRun(found, tuple(_changes(before, after)), payloads)


def _reach(stored: Sequence[Mapping[str, Any]]) -> _Reach:
    reach = _Reach(defaultdict(set), set())
    for row in stored:
        try:
            shown = understood(str(row["event_type"]), row["payload"])
        except EventUnreadable:
            continue
        if isinstance(shown, Projected):
            reach.ids[HANDLERS[shown.kind].table].add(shown.object_id)
            reach.ids["object_refetches"].add(shown.object_id)
            if shown.customer_id:
                reach.ids["customer_organizations"].add(shown.customer_id)
                reach.customers.add(shown.customer_id)
        elif isinstance(shown, Question):
            reach.ids["object_refetches"].add(shown.object_id)
    return reach


def _asked_before(
    handlers: Mapping[str, ThinHandler], stored: Sequence[Mapping[str, Any]]
) -> Mapping[str, ThinHandler]:
    """The same handlers with Stripe's answers about these events, asked now: no call is made in the transaction."""
    answers: dict[str, Write | BillingError] = {}
    for row in stored:
        if (handler := handlers.get(str(row["event_type"]))) is None:
            continue
        event_id = str(row["stripe_event_id"])
        try:
            answers[event_id] = handler(event_id)
        except BillingError as exc:
            answers[event_id] = exc

    def answer(event_id: str) -> Write:
        known = answers[event_id]
        if isinstance(known, BillingError):
            raise known
        return known

    return dict.fromkeys(handlers, answer)


def _handled(trial: Dispatcher, ids: Sequence[str], now: datetime) -> Iterator[tuple[str, str]]:
    """Handle each event for itself; gives those that the database refuses, which breaks off all of a savepoint."""
    for event_id in ids:
        try:
            with trial.connection.transaction():
                trial.handle(take(trial.connection, [event_id], now=now))
        except REFUSALS as exc:
            # The first of them; what the dispatcher then tries meets a transaction that is broken off already.
            first = exc.__context__ if isinstance(exc.__context__, REFUSALS) else exc
            yield event_id, type(first).__name__


def _ends(connection: Connection[Any], ids: Sequence[str], refused: Mapping[str, str]) -> Iterator[Replayed]:
    for end in queries.fetch(connection, "outcomes_of_events", Replayed, {"ids": list(ids)}):
        if (why := refused.get(end.stripe_event_id)) is None:
            yield end
        else:
            error = f"PostgreSQL refused what the event says ({why})."
            yield replace(end, processing_outcome=Outcome.FAILED, error_class="database", processing_error=error)


def _read(connection: Connection[Any], reach: _Reach) -> Rows:
    return {
        (table, str(row["row_id"])): row["content"]
        for table, ids in sorted(reach.ids.items())
        for row in queries.fetch_dicts(connection, f"rows_of_{table}", {"ids": sorted(ids)})
    }


def _changes(before: Rows, after: Rows) -> Iterator[Change]:
    for key in sorted(before.keys() | after.keys()):
        old, new = before.get(key, {}), after.get(key, {})
        for column in dict.fromkeys([*old, *new]):
            if old.get(column) != new.get(column):
                yield Change(*key, column, old.get(column), new.get(column))
