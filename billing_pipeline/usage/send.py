"""Sends one claimed batch: lanes side by side, one request of a lane at a time, and nothing after the deadline.

A lane is a customer and a meter; Stripe refuses a second call of a lane while one is under way.  Used by the submitter
between its claim and its record; it touches no database.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Protocol, Self

from billing_pipeline.domain.entries import Outcome
from billing_pipeline.stripe_api.meter_events import Answer, MeterEvent

logger = logging.getLogger(__name__)

NOT_SENT = Answer(Outcome.NOT_EXECUTED, error_code="not_sent")


class MeterSink(Protocol):
    """Where meter events go: Stripe's v1 endpoint, or its v2 stream."""

    channel: str
    batch_size: int

    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    async def send(self, events: Sequence[MeterEvent]) -> list[Answer]:
        """Send up to `batch_size` events in one request; never raises for anything Stripe or the network does."""
        ...


@dataclass(frozen=True, slots=True)
class ClaimedEntry(MeterEvent):
    """A meter event this worker may send: its attempt is committed and its fence is ours."""

    attempt_id: int
    entry_id: int
    organization_id: str
    earlier_unknown: bool

    @property
    def lane(self) -> tuple[str, str]:
        """Requests of one lane are never under way together."""
        return (self.stripe_customer_id, self.event_name)


def halts(entry: ClaimedEntry, answer: Answer) -> bool:
    """After this answer nothing more may leave: the key is refused, or Stripe knows what this ledger never sent."""
    return answer.stop or (answer.outcome is Outcome.DUPLICATE and not entry.earlier_unknown)


async def send_batch(
    sink: MeterSink, batch: Sequence[ClaimedEntry], concurrency: int, send_before: int
) -> list[Answer]:
    """The answers to `batch`, in its order.  After `send_before` (`boot_nanoseconds()`), or once an answer halts
    everything, what is left is not sent.
    """
    lanes: dict[tuple[str, str], list[ClaimedEntry]] = defaultdict(list)
    for entry in batch:
        lanes[entry.lane].append(entry)
    waiting = deque(lanes.values())
    answers: dict[int, Answer] = {}
    stopped = False

    async def work() -> None:
        nonlocal stopped
        while waiting:
            mine = list(waiting.popleft())
            while waiting and len(mine) < sink.batch_size:
                mine += waiting.popleft()
            for start in range(0, len(mine), sink.batch_size):
                request = mine[start : start + sink.batch_size]
                if stopped or boot_nanoseconds() >= send_before:
                    answers.update((entry.entry_id, NOT_SENT) for entry in request)
                    continue
                _log_attempts(request)
                # The deadline is asked again by nobody after this line: a request that leaves later than its lease
                # still meets Stripe's own deduplication.
                received = await sink.send(request)
                answers.update((entry.entry_id, answer) for entry, answer in zip(request, received, strict=True))
                _log_answers(request, received)
                stopped |= any(map(halts, request, received))

    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, len(lanes))):
            group.create_task(work())
    return [answers[entry.entry_id] for entry in batch]


def boot_nanoseconds() -> int:
    """A clock that nobody can set, and that goes on while the machine sleeps."""
    return time.clock_gettime_ns(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


def _log_attempts(entries: Sequence[ClaimedEntry]) -> None:
    if logger.isEnabledFor(logging.INFO):
        for entry in entries:
            logger.info("Stripe meter event submit attempt", extra=_fields(entry))


def _log_answers(entries: Sequence[ClaimedEntry], answers: Sequence[Answer]) -> None:
    for entry, answer in zip(entries, answers, strict=True):
        if answer.outcome not in (Outcome.OK, Outcome.DUPLICATE):
            logger.warning("Stripe meter event submit failed", extra=_fields(entry, answer))
        elif logger.isEnabledFor(logging.INFO):
            logger.info("Stripe meter event submit succeeded", extra=_fields(entry, answer))


def _fields(entry: ClaimedEntry, answer: Answer | None = None) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "action": "meter_event_submit",
        "organization_id": entry.organization_id,
        "identifier": entry.identifier,
        "idempotency_key": entry.idempotency_key,
        "attempt": entry.fence,
    }
    if answer is not None:
        fields |= {
            "outcome": str(answer.outcome),
            "error_code": answer.error_code,
            "stripe_request_id": answer.request_id,
        }
    return fields
