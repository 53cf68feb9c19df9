"""Reads all of Stripe's objects anew, for what no event tells: a gap of more than 30 days, or an event never made.

Each answer that differs from what is kept is stored with its moment and written as a version like any other, so the
projections can still be made anew from what is stored.  One page at a time; doing it again changes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Protocol

from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.database.projections import digests
from billing_pipeline.database.transactions import in_transaction
from billing_pipeline.domain.projections.projected import READ, ObjectKind
from billing_pipeline.errors import EventUnreadable
from billing_pipeline.stripe_api.objects import Shown
from billing_pipeline.webhooks import entitle
from billing_pipeline.webhooks.apply import Seen
from billing_pipeline.webhooks.feature_cache import OnChanged, tell
from billing_pipeline.webhooks.handlers import HANDLERS
from billing_pipeline.webhooks.refetch import Answer, ReadObject, keep_answers

logger = logging.getLogger(__name__)

REASON = "reread"
PAGED = (ObjectKind.CUSTOMER, ObjectKind.SUBSCRIPTION, ObjectKind.INVOICE)
SUMMARIES_AT_ONCE = 100


class ListObjects(Protocol):
    """Stripe's objects of a kind, page by page."""

    def __call__(self, kind: ObjectKind, /) -> Iterable[Sequence[Shown]]: ...


@dataclass(frozen=True, slots=True)
class RereadReport:
    """How many objects Stripe showed, and how many of them were not kept as they are, by kind."""

    read: dict[str, int] = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)
    unreadable: int = 0


def reread(
    connection: Connection[Any],
    lists: ListObjects,
    read: ReadObject,
    clock: Callable[[], datetime],
    *,
    progress: Callable[[str, int], None] = lambda kind, objects: None,
    on_changed: OnChanged | None = None,
) -> RereadReport:
    """Bring what is kept to what Stripe shows now.  `progress` is told the kind and how many were read of it,
    `on_changed` what the dispatcher's is told.

    Where every object could be read, the gaps that sweeps had found before are closed.
    Raises `StripeUnavailable`, `StripeRefused` and `DatabaseUnavailable`; the pages until then are kept.
    """
    gaps = [gap["sweep_id"] for gap in queries.fetch_dicts(connection, "open_gaps")]
    seen: dict[str, int] = {}
    changed: dict[str, int] = {}
    unreadable = 0
    for kind in (*PAGED, ObjectKind.FEATURE_SUMMARY):
        seen[kind.value] = changed[kind.value] = 0
        pages = lists(kind) if kind in PAGED else _summaries(connection, read)
        for page in pages:
            answers, broken = _readable(kind, page)
            new = _new(connection, kind, answers)
            if new:
                keep = partial(keep_answers, connection, new, reason=REASON, now=clock())
                applied = in_transaction(connection, keep, name="What Stripe shows of its objects")
                tell(on_changed, applied.organizations)
            seen[kind.value] += len(page)
            changed[kind.value] += len(new)
            unreadable += broken
            progress(kind.value, seen[kind.value])
    if gaps and not unreadable:
        queries.execute(connection, "close_gaps", {"ids": gaps, "now": clock()})
    logger.info("Stripe's objects read again", extra={"read": seen, "changed": changed})
    return RereadReport(seen, changed, unreadable)


def _readable(kind: ObjectKind, page: Sequence[Shown]) -> tuple[list[Answer], int]:
    answers = []
    for shown in page:
        try:
            seen = Seen(HANDLERS[kind].project(shown.payload), shown.as_of, READ)
        except EventUnreadable as exc:
            logger.error("Stripe shows an object that cannot be read", extra={"kind": kind.value, "reason": str(exc)})
            continue
        answers.append(Answer(shown, seen))
    return answers, len(page) - len(answers)


def _new(connection: Connection[Any], kind: ObjectKind, answers: Sequence[Answer]) -> list[Answer]:
    # What is kept as it is shown is not stored again, or every re-read would store the whole account.
    kept = digests(connection, HANDLERS[kind].table, [one.seen.projected.object_id for one in answers])
    return [one for one in answers if kept.get(one.seen.projected.object_id) != one.seen.projected.digest]


def _summaries(connection: Connection[Any], read: ReadObject) -> Iterator[list[Shown]]:
    """Features are shown by customer only: those that are known by now, some at once."""
    after = ""
    while customers := entitle.customers_after(connection, after=after, limit=SUMMARIES_AT_ONCE):
        yield [read(ObjectKind.FEATURE_SUMMARY, customer) for customer in customers]
        after = customers[-1]
