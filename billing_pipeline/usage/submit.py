"""Stage 4: send due entries to Stripe, so that each counts once whatever gets lost on the way.

The order is the protocol: claim and commit the attempts, send, record under the fence.  A crash at any point leaves
an ambiguous entry that the next flush sends again under the same identifier, and Stripe answers "duplicate".
One request at a time per customer and meter, because Stripe refuses a second.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from types import TracebackType
from typing import Any, Protocol, Self

from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.domain.entries import (
    DuplicateWithoutAttempt,
    EntryState,
    Outcome,
    retry_delay,
    state_after,
)
from billing_pipeline.domain.identifiers import idempotency_key
from billing_pipeline.errors import LedgerFrozen, StripeRefused
from billing_pipeline.stripe_api.meter_events import Answer, MeterEvent
from billing_pipeline.usage.gate import freeze

logger = logging.getLogger(__name__)

BATCH_SIZE = 500
LEASE = timedelta(minutes=2)
SEND_MARGIN = timedelta(seconds=30)
"""No request starts in the last part of a lease: it would still be under way when another worker may claim."""


class MeterSink(Protocol):
    """Where meter events go: Stripe's v1 endpoint today."""

    channel: str

    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def send(self, event: MeterEvent) -> Answer:
        """Send once; never raises for anything Stripe or the network does."""
        ...


@dataclass(frozen=True, slots=True)
class SubmitReport:
    """Entries by what became of them in this run; an entry may be counted once per attempt."""

    attempts: int = 0
    accepted: int = 0
    duplicates: int = 0
    rejected: int = 0
    unknown: int = 0
    not_executed: int = 0
    units_accepted: int = 0


@dataclass(frozen=True, slots=True)
class ClaimedEntry:
    """An entry this worker may send: its attempt is committed and its fence is ours."""

    attempt_id: int
    entry_id: int
    organization_id: str
    fence: int
    stripe_customer_id: str
    event_name: str
    value: int
    slot_at: datetime
    identifier: str
    earlier_unknown: bool

    @property
    def lane(self) -> tuple[str, str]:
        """Requests of one lane are never under way together."""
        return (self.stripe_customer_id, self.event_name)


def submit(
    connection: Connection[Any],
    sink: MeterSink,
    *,
    clock: Callable[[], datetime],
    concurrency: int,
    safe_send: timedelta,
    past_max: timedelta,
    on_progress: Callable[[int], None] = lambda sent: None,
) -> SubmitReport:
    """Send every due entry once.  Raises `StripeRefused` when the key is refused, `LedgerFrozen` when it must stop."""
    logger.info("Stripe usage flush started", extra={"action": "flush_started"})
    report = asyncio.run(_submit(connection, sink, clock, concurrency, safe_send, past_max, on_progress))
    if report.attempts == 0:
        logger.info("Stripe usage flush found no pending events", extra={"action": "flush_empty"})
    logger.info("Stripe usage flush completed", extra={"action": "flush_completed", "totals": asdict(report)})
    return report


async def _submit(
    connection: Connection[Any],
    sink: MeterSink,
    clock: Callable[[], datetime],
    concurrency: int,
    safe_send: timedelta,
    past_max: timedelta,
    on_progress: Callable[[int], None],
) -> SubmitReport:
    totals: Counter[str] = Counter()
    async with sink:
        while batch := _claim(connection, sink.channel, clock(), safe_send, past_max):
            logger.info("Stripe usage flush batch started", extra={"action": "batch_started", "size": len(batch)})
            answers = await _send_batch(sink, batch, concurrency)
            _record(connection, batch, answers, clock(), totals)
            logger.info(
                "Stripe usage flush batch completed", extra={"action": "batch_completed", "totals": dict(totals)}
            )
            on_progress(len(batch))
    return SubmitReport(
        attempts=totals["attempts"],
        accepted=totals[Outcome.OK],
        duplicates=totals[Outcome.DUPLICATE],
        rejected=totals[Outcome.REJECTED],
        unknown=totals[Outcome.UNKNOWN],
        not_executed=totals[Outcome.NOT_EXECUTED],
        units_accepted=totals["units_accepted"],
    )


def _claim(
    connection: Connection[Any], channel: str, now: datetime, safe_send: timedelta, past_max: timedelta
) -> list[ClaimedEntry]:
    return queries.fetch(
        connection,
        "claim_due_entries",
        ClaimedEntry,
        {
            "channel": channel,
            "now": now,
            "lease": LEASE,
            "limit": BATCH_SIZE,
            "safe_send": safe_send,
            "past_max": past_max,
        },
    )


async def _send_batch(sink: MeterSink, batch: Sequence[ClaimedEntry], concurrency: int) -> dict[int, Answer]:
    """Answers by attempt id.  Lanes run side by side; inside a lane one request follows the other."""
    send_until = time.monotonic() + (LEASE - SEND_MARGIN).total_seconds()
    lanes: dict[tuple[str, str], list[ClaimedEntry]] = defaultdict(list)
    for entry in batch:
        lanes[entry.lane].append(entry)
    places = asyncio.Semaphore(concurrency)
    stopped = asyncio.Event()
    answers: dict[int, Answer] = {}

    async def send_lane(lane: list[ClaimedEntry]) -> None:
        async with places:
            for entry in lane:
                if stopped.is_set() or time.monotonic() >= send_until:
                    answers[entry.attempt_id] = Answer(Outcome.NOT_EXECUTED, error_code="not_sent")
                    continue
                answers[entry.attempt_id] = answer = await sink.send(_meter_event(entry))
                _log_answer(entry, answer)
                if answer.stop:
                    stopped.set()

    async with asyncio.TaskGroup() as group:
        for lane in lanes.values():
            group.create_task(send_lane(lane))
    return answers


def _record(
    connection: Connection[Any],
    batch: Sequence[ClaimedEntry],
    answers: dict[int, Answer],
    now: datetime,
    totals: Counter[str],
) -> None:
    states: list[EntryState] = []
    foreign: list[str] = []
    for entry in batch:
        answer = answers[entry.attempt_id]
        try:
            states.append(state_after(answer.outcome, earlier_unknown=entry.earlier_unknown))
        except DuplicateWithoutAttempt:
            states.append(EntryState.AMBIGUOUS)
            foreign.append(entry.identifier)
        totals["attempts"] += 1
        totals[answer.outcome] += 1
        if states[-1] is EntryState.ACCEPTED:
            totals["units_accepted"] += entry.value
    column = [answers[entry.attempt_id] for entry in batch]
    with connection.transaction():
        queries.execute(
            connection,
            "record_outcomes",
            {
                "now": now,
                "attempt_ids": [entry.attempt_id for entry in batch],
                "entry_ids": [entry.entry_id for entry in batch],
                "fences": [entry.fence for entry in batch],
                "states": [str(state) for state in states],
                "outcomes": [str(answer.outcome) for answer in column],
                "http_statuses": [answer.http_status for answer in column],
                "error_codes": [answer.error_code for answer in column],
                "error_messages": [answer.error_message for answer in column],
                "request_ids": [answer.request_id for answer in column],
                "next_attempt_ats": [now + retry_delay(entry.fence) for entry in batch],
            },
        )
        if foreign:
            freeze(connection, f"Stripe already holds {foreign[0]}, which this ledger never sent", now=now)
    if foreign:
        raise LedgerFrozen(
            f"Stripe already holds {len(foreign)} identifier(s) that this ledger never sent, such as {foreign[0]}: "
            "the database was restored, or another ledger writes to this account. Sending is frozen."
        )
    if refused := next((answer for answer in column if answer.stop), None):
        raise StripeRefused(f"Stripe refuses the key: {refused.error_message}. Entries wait unchanged; mend the key.")


def _meter_event(entry: ClaimedEntry) -> MeterEvent:
    logger.info("Stripe meter event submit attempt", extra=_log_fields(entry))
    return MeterEvent(
        identifier=entry.identifier,
        idempotency_key=idempotency_key(entry.identifier, entry.fence),
        event_name=entry.event_name,
        stripe_customer_id=entry.stripe_customer_id,
        value=entry.value,
        timestamp=entry.slot_at,
    )


def _log_answer(entry: ClaimedEntry, answer: Answer) -> None:
    fields = _log_fields(entry) | {"outcome": str(answer.outcome), "stripe_request_id": answer.request_id}
    if answer.outcome in (Outcome.OK, Outcome.DUPLICATE):
        logger.info("Stripe meter event submit succeeded", extra=fields)
    else:
        logger.warning("Stripe meter event submit failed", extra=fields | {"error_code": answer.error_code})


def _log_fields(entry: ClaimedEntry) -> dict[str, Any]:
    return {
        "action": "meter_event_submit",
        "organization_id": entry.organization_id,
        "identifier": entry.identifier,
        "idempotency_key": idempotency_key(entry.identifier, entry.fence),
        "attempt": entry.fence,
    }
