"""Finds events that Stripe lists and never delivered, and stores them as if they had arrived: due at once.

Every type is swept, because the inbox is the whole record of what Stripe said, handled or not.
It goes in spans of a day at most; each that is wholly read is recorded, so a sweep that dies goes on from there.
The next one begins an hour before the last end, because Stripe's list is eventually consistent.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any, Protocol

from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.errors import DeliveryRefused
from billing_pipeline.webhooks.deliveries import Delivery, found_delivery
from billing_pipeline.webhooks.health import last_sweep, open_gap
from billing_pipeline.webhooks.inbox import Origin, Result, Stored, store

logger = logging.getLogger(__name__)

BEHIND = timedelta(minutes=1)
"""Younger events may not be listed yet, or are being delivered."""
OVERLAP = timedelta(hours=1)
SPAN_MAX = timedelta(days=1)


class ListEvents(Protocol):
    """Stripe's events of [since, until), page by page."""

    def __call__(self, *, since: datetime, until: datetime) -> Iterable[Sequence[dict[str, Any]]]: ...


@dataclass(frozen=True, slots=True)
class SweepReport:
    """What was listed, and what of it had never been delivered, by type.

    `gap_from` is set as long as there is a time that nobody swept and Stripe lists no more: only a re-read of the
    objects makes up for it.  `unreadable` are listed events that could not be stored.
    """

    complete_from: datetime
    complete_through: datetime
    listed: int = 0
    missing: Counter[str] = field(default_factory=Counter)
    unreadable: int = 0
    gap_from: datetime | None = None


def sweep(
    connection: Connection[Any],
    lists: Sequence[ListEvents],
    *,
    stripe_now: datetime,
    kept: timedelta,
    stuck_after: timedelta,
    clock: Callable[[], datetime],
    since: datetime | None = None,
    progress: Callable[[SweepReport], None] = lambda report: None,
) -> SweepReport:
    """Store every event that the lists show and the inbox lacks, from the last sweep until a minute ago.

    `since` may go further back, and never leaves out what nobody swept.  `kept` is how long Stripe lists an event.
    `progress` is told after each page.
    Raises `StripeUnavailable`, `StripeRefused` and `DatabaseUnavailable`; what was stored until then stays.
    """
    before = last_sweep(connection)
    oldest = stripe_now - kept
    unswept = before.complete_through - OVERLAP if before else oldest
    start, end = max(min(since or unswept, unswept), oldest), stripe_now - BEHIND
    known = open_gap(connection)
    gap = before.complete_through if before and before.complete_through < oldest else None
    report = SweepReport(start, start, gap_from=known.gap_from if known else gap)
    for span_start, span_end in _spans(start, end):
        span = SweepReport(span_start, span_end)
        for events in lists:
            for page in events(since=span_start, until=span_end):
                span = _stored(connection, page, span, stuck_after)
                progress(_joined(report, span))
        _record(connection, replace(span, gap_from=gap), clock())
        gap = None  # It is the first span's; from there on the spans are without one.
        report = _joined(report, span)
    if report.missing:
        logger.info(
            "Stripe events never delivered were found",
            extra={"events": report.missing.total(), "types": dict(report.missing.most_common(10))},
        )
    return report


def _stored(
    connection: Connection[Any], page: Sequence[dict[str, Any]], span: SweepReport, stuck_after: timedelta
) -> SweepReport:
    deliveries: list[Delivery] = []
    unreadable = 0
    for event in page:
        try:
            deliveries.append(found_delivery(event))
        except DeliveryRefused as exc:
            unreadable += 1
            logger.error("Stripe lists an event that is none", extra={"reason": str(exc)})
    results = store(connection, deliveries, origin=Origin.SWEEP, stuck_after=stuck_after) if deliveries else []
    missing = Counter(
        delivery.envelope.event_type
        for delivery, result in zip(deliveries, results, strict=True)
        if isinstance(result, Stored) and result.result is Result.ACCEPTED
    )
    unreadable += sum(isinstance(result, DeliveryRefused) for result in results)
    return SweepReport(
        span.complete_from,
        span.complete_through,
        span.listed + len(page),
        span.missing + missing,
        span.unreadable + unreadable,
    )


def _joined(report: SweepReport, span: SweepReport) -> SweepReport:
    return SweepReport(
        report.complete_from,
        span.complete_through,
        report.listed + span.listed,
        report.missing + span.missing,
        report.unreadable + span.unreadable,
        report.gap_from,
    )


def _record(connection: Connection[Any], span: SweepReport, now: datetime) -> None:
    queries.execute(
        connection,
        "record_sweep",
        {
            "complete_from": span.complete_from,
            "complete_through": span.complete_through,
            "listed": span.listed,
            "missing": span.missing.total(),
            "unreadable": span.unreadable,
            "gap_start": span.gap_from,
            "now": now,
        },
    )


def _spans(start: datetime, end: datetime) -> Iterator[tuple[datetime, datetime]]:
    while start < end:
        yield start, (until := min(start + SPAN_MAX, end))
        start = until
