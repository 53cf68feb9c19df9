"""Handles stored events, each batch in one transaction with its completion.

Runs inside `serve` for latency and in a Dagster job for what failed, is stuck or was never dispatched; any number at
once.  A batch is written set-based; one that the database refuses is done again event by event, so that a poisoned
event fails alone.
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
from pydantic_core import from_json

from billing_pipeline.database import queries
from billing_pipeline.database.transactions import in_transaction
from billing_pipeline.domain.dispatching import ATTEMPTS_MAX, REQUEST_TIMEOUT, SLA, asking_time
from billing_pipeline.domain.outcomes import Outcome
from billing_pipeline.domain.projections.projected import ObjectKind, Projected
from billing_pipeline.errors import BillingError, EventUnreadable, Unavailable
from billing_pipeline.webhooks.apply import Seen, apply
from billing_pipeline.webhooks.claims import (
    REFUSALS,
    Claim,
    ClaimedEvent,
    Failure,
    claim_due,
    fail,
    finish,
    forget,
    hold,
)
from billing_pipeline.webhooks.feature_cache import OnChanged, tell
from billing_pipeline.webhooks.handlers import Question, understood

logger = logging.getLogger(__name__)
milestones = logging.getLogger("billing_pipeline.milestones")

BATCH = 200
Write = Callable[[Connection[Any], datetime], None]
ThinHandler = Callable[[str], Write]
"""Asks Stripe for a thin event by its id; what it returns writes, inside the transaction of the completion."""

Understood = Projected | Question | Write | Failure | None


@dataclass(frozen=True, slots=True)
class DispatchReport:
    """What became of the events of one or more batches."""

    processed: int = 0
    ignored: int = 0
    failed: int = 0
    parked: int = 0

    def __add__(self, other: DispatchReport) -> DispatchReport:
        return DispatchReport(
            self.processed + other.processed,
            self.ignored + other.ignored,
            self.failed + other.failed,
            self.parked + other.parked,
        )

    @property
    def handled(self) -> int:
        """All of them."""
        return self.processed + self.ignored + self.failed + self.parked


@dataclass(frozen=True, slots=True)
class _Batch:
    """A handled batch, to be told of once it is committed."""

    events: Sequence[ClaimedEvent] = ()
    skipped: Sequence[ClaimedEvent] = ()
    outcomes: Mapping[str, Outcome] = field(default_factory=dict)
    failures: Mapping[str, Failure] = field(default_factory=dict)
    parked: int = 0
    organizations: Sequence[str] = ()

    def report(self) -> DispatchReport:
        ignored = sum(outcome is Outcome.IGNORED for outcome in self.outcomes.values())
        return DispatchReport(len(self.outcomes) - ignored, ignored, len(self.failures) - self.parked, self.parked)


@dataclass(frozen=True, slots=True)
class Dispatcher:
    """A worker with its own connection.  `sla` is how long a claim lasts; `thin_handlers` are by event type, and each
    may wait twice for `request_timeout`.

    `on_changed` is told, after the commit, of organizations whose entitlements may have changed; what it raises is
    logged and changes nothing.  `on_handled` is told each event's type and outcome then.  With `feeds`, the feed
    learns of what is processed.
    """

    connection: Connection[Any]
    clock: Callable[[], datetime]
    sla: timedelta = SLA
    request_timeout: timedelta = REQUEST_TIMEOUT
    attempts_max: int = ATTEMPTS_MAX
    thin_handlers: Mapping[str, ThinHandler] = field(default_factory=dict)
    on_changed: OnChanged | None = None
    on_handled: Callable[[str, Outcome], None] | None = None
    feeds: bool = False

    def run_once(self, *, limit: int = BATCH, only: Sequence[str] | None = None) -> DispatchReport:
        """Claim and handle at most `limit` events that are due, of all or `only` of these.

        Raises `DatabaseUnavailable`; claims then lapse by themselves.
        """
        claims = self._claim(limit, only)
        return self.handle(claims) if claims else DispatchReport()

    def drain(self, *, events_max: int, batch: int = BATCH, only: Sequence[str] | None = None) -> DispatchReport:
        """Handle what is due now, at most so many events, of all or `only` of these."""
        total, left = DispatchReport(), events_max
        # A batch of which all was handled already handles nothing, and more may be due behind it.
        while left > 0 and (claims := self._claim(min(batch, left), only)):
            total += self.handle(claims)
            left -= len(claims)
        return total

    def handle(self, claims: Sequence[Claim]) -> DispatchReport:
        """Handle events that the caller has claimed, such as a replay.  Raises `DatabaseUnavailable`."""
        fetched = self._fetch_thin(claims)
        try:
            batch = in_transaction(self.connection, partial(self._batch, claims, fetched), name="A batch of events")
        except REFUSALS as exc:
            if len(claims) > 1:
                return sum((self.handle([claim]) for claim in claims), DispatchReport())
            why = Failure("database", f"PostgreSQL refused what the event says ({type(exc).__name__}).")
            batch = in_transaction(self.connection, partial(self._refused, claims, why), name="A refused event")
        except (BillingError, psycopg.Error):
            # The database itself: the claims lapse, and the same work may go well later.
            raise
        except Exception as exc:
            if len(claims) > 1:
                return sum((self.handle([claim]) for claim in claims), DispatchReport())
            why = _unexpected(exc)
            batch = in_transaction(self.connection, partial(self._refused, claims, why), name="A failed event")
        _log(batch)
        if self.on_handled:
            for event in batch.events:
                self.on_handled(event.event_type, batch.outcomes.get(event.stripe_event_id, Outcome.FAILED))
        tell(self.on_changed, batch.organizations)
        return batch.report()

    def _claim(self, limit: int, only: Sequence[str] | None) -> list[Claim]:
        return claim_due(
            self.connection,
            limit=limit,
            sla=self.sla,
            attempts_max=self.attempts_max,
            now=self.clock(),
            only=only,
        )

    def _fetch_thin(self, claims: Sequence[Claim]) -> dict[str, Write | Failure]:
        """Ask Stripe before the transaction: no network call is made inside one."""
        if not self.thin_handlers:
            return {}
        params = {"ids": [claim.stripe_event_id for claim in claims], "types": list(self.thin_handlers)}
        found: dict[str, Write | Failure] = {}
        away: Failure | None = None
        asks_until = self.clock() + asking_time(self.sla, self.request_timeout)
        for row in queries.fetch_dicts(self.connection, "thin_among", params):
            event_id = str(row["stripe_event_id"])
            if away is None and self.clock() >= asks_until:
                away = Failure("stripe_unavailable", "Stripe answers so slowly that there was no time to ask about it.")
            try:
                # One patience for all of them: the others of the batch must not wait for a Stripe that hangs.
                found[event_id] = away or self.thin_handlers[str(row["event_type"])](event_id)
            except Unavailable as exc:
                found[event_id] = away = Failure("stripe_unavailable", str(exc))
            except BillingError as exc:
                found[event_id] = Failure("stripe", str(exc))
            except Exception as exc:
                found[event_id] = _unexpected(exc)
        return found

    def _batch(self, claims: Sequence[Claim], fetched: Mapping[str, Write | Failure]) -> _Batch:
        now = self.clock()
        held = hold(self.connection, claims)
        skipped = [event for event in held if event.is_done]
        forget(self.connection, skipped)
        events = [event for event in held if not event.is_done]
        results = {event.stripe_event_id: _understood(event, fetched) for event in events}
        seen, questions = [], []
        for event in events:
            result = results[event.stripe_event_id]
            if isinstance(result, Projected):
                seen.append(Seen(result, event.created_at, event.stripe_event_id))
            elif isinstance(result, Question):
                questions.append((result, event.created_at))
            elif callable(result):
                result(self.connection, now)
        applied = apply(self.connection, seen, questions, now=now)
        for event_id, result in results.items():
            if isinstance(result, Projected) and _is_nobodys(result, applied.customers_of_nobody):
                results[event_id] = _unknown_account(result)
        failures = {event_id: result for event_id, result in results.items() if isinstance(result, Failure)}
        outcomes = {
            event_id: Outcome.IGNORED if result is None else Outcome.PROCESSED
            for event_id, result in results.items()
            if event_id not in failures
        }
        finish(self.connection, outcomes, now=now, feeds=self.feeds)
        parked = fail(self.connection, events, failures, attempts_max=self.attempts_max, now=now)
        return _Batch(events, skipped, outcomes, failures, parked, applied.organizations)

    def _refused(self, claims: Sequence[Claim], why: Failure) -> _Batch:
        events = hold(self.connection, claims)
        failures = {event.stripe_event_id: why for event in events}
        parked = fail(self.connection, events, failures, attempts_max=self.attempts_max, now=self.clock())
        return _Batch(events, failures=failures, parked=parked)


def _understood(event: ClaimedEvent, fetched: Mapping[str, Write | Failure]) -> Understood:
    if event.stripe_event_id in fetched:
        return fetched[event.stripe_event_id]
    if event.payload is None:
        return Failure("no_payload", "Its payload is no longer kept, so it cannot be handled again.")
    try:
        return understood(event.event_type, from_json(event.payload))
    except EventUnreadable as exc:
        return Failure("unreadable", str(exc))
    except Exception as exc:
        return _unexpected(exc)


def _unexpected(exc: Exception) -> Failure:
    # Its words may quote the event.
    return Failure("unexpected", f"This program failed at it ({type(exc).__name__}); what it shows was not written.")


def _is_nobodys(shown: Projected, customers_of_nobody: frozenset[str]) -> bool:
    buys = shown.kind is ObjectKind.CHECKOUT_SESSION and shown.columns["mode"] == "subscription"
    return shown.customer_id in customers_of_nobody and (buys or shown.kind is ObjectKind.SUBSCRIPTION)


def _unknown_account(shown: Projected) -> Failure:
    return Failure(
        "unknown_account",
        f"What it shows is kept, but Stripe's customer {shown.customer_id} belongs to no organization, so nobody's "
        "entitlements follow. Insert it into customer_mappings, then replay the event.",
    )


def _log(batch: _Batch) -> None:
    for event in batch.skipped:
        milestones.info("Stripe webhook processing skipped (already processed)", extra=_about(event))
    for event in batch.events:
        about = _about(event)
        if failure := batch.failures.get(event.stripe_event_id):
            logger.warning("Stripe webhook processing failed", extra={**about, "error_class": failure.error_class})
        elif batch.outcomes[event.stripe_event_id] is Outcome.IGNORED:
            milestones.info("Stripe webhook event ignored", extra=about)
        else:
            milestones.info("Stripe webhook processing completed", extra=about)
            milestones.info("Webhook processed: event_id=%s", event.stripe_event_id)


def _about(event: ClaimedEvent) -> dict[str, object]:
    return {
        "stripe_event_id": event.stripe_event_id,
        "event_type": event.event_type,
        "tenant_hint": event.tenant_hint,
        "attempt": event.attempts,
    }
