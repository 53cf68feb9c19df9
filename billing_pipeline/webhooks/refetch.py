"""Asks Stripe about objects that events could not decide, and writes the answers as versions like any other.

Runs after dispatching, in `serve` and in the Dagster job.  Each answer is stored with its moment, so that the
projections can be made anew from the inbox and these answers alone.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Protocol

from psycopg import Connection
from psycopg.types.json import Jsonb

from billing_pipeline.database import queries
from billing_pipeline.database.transactions import in_transaction
from billing_pipeline.domain.dispatching import pause_after
from billing_pipeline.domain.projections.projected import READ, ObjectKind
from billing_pipeline.errors import BillingError, DatabaseUnavailable
from billing_pipeline.stripe_api.objects import Shown
from billing_pipeline.webhooks.apply import Applied, Seen, apply
from billing_pipeline.webhooks.claims import REFUSALS
from billing_pipeline.webhooks.feature_cache import OnChanged, tell
from billing_pipeline.webhooks.handlers import HANDLERS

logger = logging.getLogger(__name__)

TOO_EARLY = timedelta(seconds=2)
"""Stripe's clock shows whole seconds, so an answer decides about a second once it is over."""


class ReadObject(Protocol):
    """Shows an object as Stripe has it now."""

    def __call__(self, kind: ObjectKind, object_id: str, /) -> Shown: ...


@dataclass(frozen=True, slots=True)
class Refetch:
    """An object to ask about; only an answer later than `not_before` decides."""

    object_id: str
    object_kind: str
    reason: str
    not_before: datetime
    attempts: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What Stripe showed of an object, and the same in our columns."""

    shown: Shown
    seen: Seen


@dataclass(frozen=True, slots=True)
class RefetchReport:
    """How many objects Stripe was asked about, and for how many it did not help yet."""

    settled: int = 0
    waiting: int = 0
    failed: int = 0


def refetch_due(
    connection: Connection[Any],
    read: ReadObject,
    clock: Callable[[], datetime],
    *,
    limit: int = 100,
    on_changed: OnChanged | None = None,
) -> RefetchReport:
    """Ask Stripe about what is due now, at most so many objects.  Raises `DatabaseUnavailable`.

    `on_changed` is told as the dispatcher's is.
    """
    settled = waiting = failed = 0
    for wanted in queries.fetch(connection, "due_refetches", Refetch, {"now": clock(), "limit": limit}):
        try:
            answer = _ask(read, wanted)
            store = partial(_store, connection, wanted, answer, clock())
            applied = in_transaction(connection, store, name="Stripe's answer about an object")
        except DatabaseUnavailable:
            raise
        except (BillingError, *REFUSALS) as exc:
            failed += 1
            _fail(connection, wanted, exc, clock())
            continue
        tell(on_changed, applied.organizations)
        if answer.shown.as_of > wanted.not_before:
            settled += 1
        else:
            waiting += 1
            _postpone(connection, wanted, clock() + TOO_EARLY)
    return RefetchReport(settled, waiting, failed)


def keep_answers(connection: Connection[Any], answers: Sequence[Answer], *, reason: str, now: datetime) -> Applied:
    """Store answers with their moments, and write what they show; inside the caller's transaction."""
    for one in answers:
        about = {"object_id": one.seen.projected.object_id, "object_kind": one.seen.projected.kind.value}
        moment = {"read_at": one.shown.as_of, "now": now, "reason": reason}
        queries.execute(connection, "store_snapshot", about | moment | {"payload": Jsonb(one.shown.payload)})
    return apply(connection, [one.seen for one in answers], [], now=now)


def _ask(read: ReadObject, wanted: Refetch) -> Answer:
    kind = ObjectKind(wanted.object_kind)
    shown = read(kind, wanted.object_id)
    return Answer(shown, Seen(HANDLERS[kind].project(shown.payload), shown.as_of, READ))


def _store(connection: Connection[Any], wanted: Refetch, answer: Answer, now: datetime) -> Applied:
    about = {"object_id": wanted.object_id, "object_kind": wanted.object_kind, "read_at": answer.shown.as_of}
    queries.execute(connection, "finish_refetch", about)
    return keep_answers(connection, [answer], reason=wanted.reason, now=now)


def _fail(connection: Connection[Any], wanted: Refetch, exc: Exception, now: datetime) -> None:
    about = {"object_id": wanted.object_id, "object_kind": wanted.object_kind, "attempt": wanted.attempts + 1}
    if isinstance(exc, BillingError):
        error = str(exc)
        logger.warning("Stripe could not be asked about an object", extra=about)
    else:
        # The driver's own words quote the object.
        error = f"PostgreSQL refused Stripe's answer ({type(exc).__name__})."
        logger.error("Stripe's answer about an object could not be kept", extra=about)
    _postpone(connection, wanted, now + pause_after(wanted.attempts + 1), error)


def _postpone(connection: Connection[Any], wanted: Refetch, due_at: datetime, error: str | None = None) -> None:
    queries.execute(
        connection,
        "postpone_refetch",
        {
            "object_id": wanted.object_id,
            "object_kind": wanted.object_kind,
            "due_at": due_at,
            "failed": int(error is not None),
            "error": error,
        },
    )
