"""From processed webhook events to rows of the feed: one writer at a time, and then the wake-ups.

Runs beside the dispatcher in `serve`, and in the Dagster job for what that left.  Events come from `feed_candidates`,
which their completion fills, so nothing is skipped however late a transaction commits.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import psycopg
from psycopg import Connection
from psycopg.types.json import Jsonb
from pydantic_core import from_json

from billing_pipeline.database import queries
from billing_pipeline.database.transactions import in_transaction
from billing_pipeline.domain.dispatching import ATTEMPTS_MAX, pause_after
from billing_pipeline.domain.projections.projected import Projected
from billing_pipeline.feed.broadcast import Announce
from billing_pipeline.feed.payload import make_payload

logger = logging.getLogger(__name__)
milestones = logging.getLogger("billing_pipeline.milestones")

BATCH = 200
BROADCASTED, BROADCAST_FAILED, STREAM_FAILED = "broadcasted", "broadcast_failed", "stream_failed"
"""What becomes of an event for those who count: told and woken, told and not woken, and not told at all."""

REFUSALS = (psycopg.DataError, psycopg.IntegrityError, psycopg.ProgrammingError, psycopg.InternalError)
"""What the database says about the values, not about itself."""

Understand = Callable[[str, Mapping[str, Any]], object]
"""What a webhook event of a type shows: a `Projected`, or what the feed does not tell of."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A processed event of which the feed has not decided; `is_recent` where it came within the feed's retention."""

    stripe_event_id: str
    attempts: int
    event_type: str
    tenant_hint: str | None
    created_at: datetime
    payload: str | None
    is_recent: bool


@dataclass(frozen=True, slots=True)
class FedRow:
    """A row of the feed that was just written."""

    feed_id: int
    organization_id: str
    stripe_event_id: str
    event_type: str


@dataclass(frozen=True, slots=True)
class FeedReport:
    """What became of candidates.

    `written` are in the feed now, `waiting` are nobody's yet, `left_out` matter to no organization or are in the feed
    already, `failed` could not be told.
    """

    written: int = 0
    waiting: int = 0
    left_out: int = 0
    failed: int = 0

    def __add__(self, other: FeedReport) -> FeedReport:
        return FeedReport(
            self.written + other.written,
            self.waiting + other.waiting,
            self.left_out + other.left_out,
            self.failed + other.failed,
        )

    @property
    def handled(self) -> int:
        """All of them."""
        return self.written + self.waiting + self.left_out + self.failed


@dataclass(frozen=True, slots=True)
class _Batch:
    candidates: Sequence[Candidate] = ()
    rows: Sequence[FedRow] = ()
    waiting: int = 0
    failed: Mapping[str, str] = field(default_factory=dict)

    def report(self) -> FeedReport:
        rest = len(self.candidates) - len(self.rows) - self.waiting - len(self.failed)
        return FeedReport(len(self.rows), self.waiting, rest, len(self.failed))


@dataclass(frozen=True, slots=True)
class FeedWriter:
    """A writer with its own connection.  `kept` is the feed's retention: what came before it is not told any more.

    `announce` wakes readers after the commit.  `on_told` is told each event's type and BROADCASTED, BROADCAST_FAILED or
    STREAM_FAILED.
    """

    connection: Connection[Any]
    clock: Callable[[], datetime]
    understand: Understand
    kept: timedelta
    announce: Announce
    on_told: Callable[[str, str], None] = lambda event_type, result: None

    def run_once(self, *, limit: int = BATCH) -> FeedReport:
        """Decide about at most so many candidates; about none while another writer is at it.

        Raises `DatabaseUnavailable`; nothing is lost by it.
        """
        try:
            batch = in_transaction(self.connection, partial(self._batch, limit), name="A batch of the feed")
        except REFUSALS as exc:
            if limit > 1:
                return sum((self.run_once(limit=1) for _ in range(limit)), FeedReport())
            refuse = partial(self._give_up, type(exc).__name__)
            batch = in_transaction(self.connection, refuse, name="An event that the feed cannot hold")
        self._tell(batch)
        return batch.report()

    def drain(self, *, events_max: int) -> FeedReport:
        """Decide about what is due now, at most so many."""
        total = FeedReport()
        while total.handled < events_max:
            done = self.run_once(limit=min(BATCH, events_max - total.handled))
            if not done.handled:
                break
            total += done
        return total

    def _batch(self, limit: int) -> _Batch:
        now = self.clock()
        if not (candidates := self._due(limit, now)):
            return _Batch()
        shown, failed = self._shown([one for one in candidates if one.is_recent])
        whose = self._whose(candidates, shown)
        told = [one for one in candidates if one.stripe_event_id in whose]
        rows, unfit = self._write(told, shown, whose, now)
        failed |= unfit
        nobodys = [one for one in candidates if one.stripe_event_id in shown and one.stripe_event_id not in whose]
        waiting = [one for one in nobodys if one.attempts + 1 < ATTEMPTS_MAX]
        self._postpone(waiting, now)
        settled = {one.stripe_event_id for one in candidates} - {one.stripe_event_id for one in waiting}
        queries.execute(self.connection, "settle_candidates", {"ids": sorted(settled)})
        return _Batch(candidates, rows, len(waiting), failed)

    def _give_up(self, why: str) -> _Batch:
        candidates = self._due(1, self.clock())
        ids = [one.stripe_event_id for one in candidates]
        queries.execute(self.connection, "settle_candidates", {"ids": ids})
        return _Batch(candidates, failed=dict.fromkeys(ids, why))

    def _due(self, limit: int, now: datetime) -> list[Candidate]:
        [lock] = queries.fetch_dicts(self.connection, "lock_feed")
        if not lock["is_ours"]:
            return []
        params = {"now": now, "kept_since": now - self.kept, "limit": limit}
        found = queries.fetch(self.connection, "due_candidates", Candidate, params)
        return sorted(found, key=lambda one: (one.created_at, one.stripe_event_id))

    def _shown(self, candidates: Sequence[Candidate]) -> tuple[dict[str, Projected], dict[str, str]]:
        """What each event shows of a customer, by id; and why it cannot be read, by id."""
        shown, failed = dict[str, Projected](), dict[str, str]()
        for one in candidates:
            if one.payload is None:
                failed[one.stripe_event_id] = "no_payload"
                continue
            try:
                found = self.understand(one.event_type, from_json(one.payload))
            except Exception as exc:
                # Its words may quote the event.
                failed[one.stripe_event_id] = type(exc).__name__
                continue
            if isinstance(found, Projected) and found.customer_id:
                shown[one.stripe_event_id] = found
        return shown, failed

    def _whose(self, candidates: Sequence[Candidate], shown: Mapping[str, Projected]) -> dict[str, str]:
        of_customers = [one for one in candidates if one.stripe_event_id in shown]
        params = {
            "ids": [one.stripe_event_id for one in of_customers],
            "customers": [shown[one.stripe_event_id].customer_id for one in of_customers],
            "moments": [one.created_at for one in of_customers],
        }
        found = queries.fetch_dicts(self.connection, "organizations_at", params) if of_customers else []
        return {str(row["stripe_event_id"]): str(row["organization_id"]) for row in found if row["organization_id"]}

    def _write(
        self, told: Sequence[Candidate], shown: Mapping[str, Projected], whose: Mapping[str, str], now: datetime
    ) -> tuple[list[FedRow], dict[str, str]]:
        payloads, failed = dict[str, Any](), dict[str, str]()
        for one in told:
            event_id = one.stripe_event_id
            try:
                payloads[event_id] = make_payload(
                    shown[event_id],
                    organization_id=whose[event_id],
                    stripe_event_id=event_id,
                    event_type=one.event_type,
                    occurred_at=one.created_at,
                )
            except Exception as exc:
                failed[event_id] = type(exc).__name__
        written = [one for one in told if one.stripe_event_id in payloads]
        params = {
            "organizations": [whose[one.stripe_event_id] for one in written],
            "ids": [one.stripe_event_id for one in written],
            "types": [one.event_type for one in written],
            "payloads": [Jsonb(payloads[one.stripe_event_id]) for one in written],
            "now": now,
        }
        return (queries.fetch(self.connection, "write_feed", FedRow, params) if written else []), failed

    def _postpone(self, waiting: Sequence[Candidate], now: datetime) -> None:
        if waiting:
            due = [now + pause_after(one.attempts + 1) for one in waiting]
            params = {"ids": [one.stripe_event_id for one in waiting], "due": due}
            queries.execute(self.connection, "postpone_candidates", params)

    def _tell(self, batch: _Batch) -> None:
        by_id = {one.stripe_event_id: one for one in batch.candidates}
        for event_id, why in batch.failed.items():
            logger.warning("Billing event could not be told", extra={**_about(by_id[event_id]), "error_class": why})
            self.on_told(by_id[event_id].event_type, STREAM_FAILED)
        if not batch.rows:
            return
        woken = self.announce({row.organization_id: row.feed_id for row in batch.rows})
        for row in batch.rows:
            about = {"organization_id": row.organization_id, "feed_id": row.feed_id, "woken": woken}
            milestones.info("Billing event told", extra={**_about(by_id[row.stripe_event_id]), **about})
            self.on_told(row.event_type, BROADCASTED if woken else BROADCAST_FAILED)


def _about(candidate: Candidate) -> dict[str, object]:
    return {
        "stripe_event_id": candidate.stripe_event_id,
        "event_type": candidate.event_type,
        "tenant_hint": candidate.tenant_hint,
    }
