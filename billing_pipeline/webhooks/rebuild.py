"""Makes every projection anew from the inbox and Stripe's stored answers, beside the live one, and compares the two.

The same handlers and statements that write live rows write the copy, so a difference is a row that was changed past
them, or one that an earlier version of them wrote.  One transaction sees events and rows as of one moment, so nothing
that the dispatcher does meanwhile shows as a difference.
On request the live rows are put right, in a transaction in which nobody else writes them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import islice
from typing import Any, TypeVar
from uuid import uuid4

from psycopg import Connection, IsolationLevel

from billing_pipeline.database import queries, shadow
from billing_pipeline.database.projections import keep_greatest
from billing_pipeline.database.shadow import Compared, Difference
from billing_pipeline.database.transactions import all_or_nothing, in_transaction
from billing_pipeline.domain.projections.projected import READ, ObjectKind, Projected
from billing_pipeline.errors import EventUnreadable, Refused
from billing_pipeline.webhooks import entitle
from billing_pipeline.webhooks.apply import Seen, rows_by_table
from billing_pipeline.webhooks.claims import REFUSALS
from billing_pipeline.webhooks.feature_cache import OnChanged, tell
from billing_pipeline.webhooks.handlers import HANDLERS, TYPE_PATTERNS, understood

logger = logging.getLogger(__name__)

Row = TypeVar("Row")

KINDS = {handler.table: kind.value for kind, handler in HANDLERS.items()}
BATCH = 2_000
DIFFERENCES_TOLD = 100
EVER = datetime(1970, 1, 1, tzinfo=UTC)
LONGEST_TRANSACTION = timedelta(hours=1)
"""How long before our moment a transaction of the dispatcher may have begun that had not ended then."""


@dataclass(frozen=True, slots=True)
class StoredEvent:
    """An event as it is kept."""

    stripe_event_id: str
    event_type: str
    created_at: datetime
    payload: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StoredAnswer:
    """What Stripe showed of an object when asked, at its second `read_at`."""

    object_kind: str
    object_id: str
    read_at: datetime
    payload: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Replayed:
    """How many events that change something were read, and how many answers.

    `unreadable` are events, and objects asked for, of which nothing could be made now.
    """

    events: int = 0
    answers: int = 0
    unreadable: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RebuildReport:
    """What was replayed, how each table compares, and the first differences.

    `taken_over` rows come from events and answers whose payload is gone (`payloads_gone` in all); they are as they
    were.
    `put_right` is how many live rows were changed, None where nobody asked for it.
    """

    replayed: Replayed
    payloads_gone: int
    taken_over: int
    tables: tuple[Compared, ...]
    differences: tuple[Difference, ...]
    put_right: int | None = None
    organizations: tuple[str, ...] = ()

    @property
    def differ(self) -> int:
        """How many rows are not the same live and rebuilt."""
        return sum(table.differ for table in self.tables)


def rebuild(
    connection: Connection[Any],
    clock: Callable[[], datetime],
    *,
    apply: bool = False,
    progress: Callable[[int], None] = lambda events: None,
    on_changed: OnChanged | None = None,
) -> RebuildReport:
    """Rebuild and compare; with `apply`, make the live rows what was rebuilt.  `progress` is told events replayed,
    `on_changed` whose entitlements changed.

    Raises `Refused` while another rebuild is under way, or where `apply` would drop what events say that this version
    cannot read; and `DatabaseUnavailable`.
    """
    holder = f"rebuild {uuid4()}"
    if not shadow.only_one(connection, holder, now=clock()):
        raise Refused(
            "Another rebuild is under way in this database, or was killed within the last hour; nothing was done. "
            "Wait for it to end."
        )
    try:
        since = clock() - LONGEST_TRANSACTION
        report = _compared(connection, clock(), progress)
        if apply and report.differ:
            _require_all_read(report.replayed)
            report = in_transaction(
                connection, partial(_put_right, connection, report, since, clock), name="Putting projections right"
            )
            tell(on_changed, report.organizations)
    finally:
        if not connection.closed:
            shadow.done(connection, holder)
    logger.info(
        "Projections rebuilt",
        extra={"events": report.replayed.events, "differ": report.differ, "put_right": report.put_right},
    )
    return report


def _require_all_read(replayed: Replayed) -> None:
    if unreadable := replayed.unreadable:
        raise Refused(
            f"{len(unreadable)} stored events or answers that were handled once cannot be read now, the first is "
            f"{unreadable[0]}: what they said would be lost. No live row was changed. Find out what changed in this "
            "version's handlers, or rebuild with the version before."
        )


def _compared(connection: Connection[Any], now: datetime, progress: Callable[[int], None]) -> RebuildReport:
    # One snapshot for what was handled and what came of it.
    name = "The rebuild of the projections"
    with all_or_nothing(connection, name=name, isolation=IsolationLevel.REPEATABLE_READ):
        shadow.make_shadow(connection)
        taken_over = shadow.take_over(connection, KINDS)
        shadow.write_to_shadow(connection)
        replayed = _replay(connection, EVER, progress)
        _decide_everybody(connection, now)
        tables = shadow.compare(connection)
        [gone] = queries.fetch_dicts(connection, "payloads_gone")
        first = shadow.differences(connection, limit=DIFFERENCES_TOLD)
        return RebuildReport(replayed, gone["payloads"], taken_over, tuple(tables), tuple(first))


def _put_right(
    connection: Connection[Any], report: RebuildReport, since: datetime, clock: Callable[[], datetime]
) -> RebuildReport:
    shadow.stop_writers(connection)
    shadow.write_to_shadow(connection)
    _replay(connection, since, lambda events: None)
    now = clock()
    _decide_everybody(connection, now)
    tables = shadow.compare(connection)
    shadow.write_live(connection)
    changed = shadow.put_right(connection)
    organizations: set[str] = set()
    for customers in _steps(partial(shadow.customers_concerned, connection, limit=entitle.BATCH)):
        organizations |= entitle.decide(connection, entitle.whose(connection, customers), now=now)
    for some in _steps(partial(shadow.organizations_concerned, connection, limit=entitle.BATCH)):
        organizations |= entitle.decide(connection, some, now=now)
    first = shadow.differences(connection, limit=DIFFERENCES_TOLD)
    return RebuildReport(
        report.replayed,
        report.payloads_gone,
        report.taken_over,
        tuple(tables),
        tuple(first),
        put_right=changed,
        organizations=tuple(sorted(organizations)),
    )


def _replay(connection: Connection[Any], since: datetime, progress: Callable[[int], None]) -> Replayed:
    """Apply what was handled or stored since to the projections that the search path names."""
    events = answers = 0
    unreadable: list[str] = []
    params = {"since": since, "types": list(TYPE_PATTERNS)}
    with ThreadPoolExecutor(max_workers=1) as writer:
        before: list[tuple[str, Seen]] = []
        for stored in _chunks(queries.stream(connection, "events_applied", StoredEvent, params, at_once=BATCH)):
            # PostgreSQL writes one batch while the next is understood here; it is read before, on the same connection.
            written = writer.submit(_keep, connection, before)
            before, broken = _seen([(event.stripe_event_id, partial(_event_seen, event)) for event in stored])
            unreadable += broken + written.result()
            events += len(stored)
            progress(events)
        unreadable += _keep(connection, before)
    for some in _chunks(queries.stream(connection, "snapshots_applied", StoredAnswer, {"since": since}, at_once=BATCH)):
        seen, broken = _seen([(answer.object_id, partial(_answer_seen, answer)) for answer in some])
        unreadable += broken + _keep(connection, seen)
        answers += len(some)
    return Replayed(events, answers, tuple(unreadable))


def _event_seen(event: StoredEvent) -> Seen | None:
    shown = understood(event.event_type, event.payload)
    return Seen(shown, event.created_at, event.stripe_event_id) if isinstance(shown, Projected) else None


def _answer_seen(answer: StoredAnswer) -> Seen:
    return Seen(HANDLERS[ObjectKind(answer.object_kind)].project(answer.payload), answer.read_at, READ)


def _seen(found: Sequence[tuple[str, Callable[[], Seen | None]]]) -> tuple[list[tuple[str, Seen]], list[str]]:
    """What is shown, by the names given, and the names of which nothing can be made."""
    seen: list[tuple[str, Seen]] = []
    unreadable = []
    for name, read in found:
        try:
            if (one := read()) is not None:
                seen.append((name, one))
        except EventUnreadable:
            unreadable.append(name)
    return seen, unreadable


def _keep(connection: Connection[Any], seen: Sequence[tuple[str, Seen]]) -> list[str]:
    try:
        with connection.transaction():
            for table, rows in rows_by_table(one for _, one in seen).items():
                keep_greatest(connection, table, rows)
    except REFUSALS:
        if len(seen) == 1:
            return [seen[0][0]]
        # As the dispatcher does: what the database refuses is left out alone.
        return [name for one in seen for name in _keep(connection, [one])]
    return []


def _decide_everybody(connection: Connection[Any], now: datetime) -> None:
    for customers in _steps(partial(entitle.customers_after, connection, limit=entitle.BATCH)):
        entitle.decide(connection, entitle.whose(connection, customers), now=now)


def _steps(next_after: Callable[..., list[str]]) -> Iterator[list[str]]:
    """Bounded steps through keys in their order."""
    after = ""
    while names := next_after(after=after):
        yield names
        after = names[-1]


def _chunks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    while chunk := list(islice(rows, BATCH)):
        yield chunk
