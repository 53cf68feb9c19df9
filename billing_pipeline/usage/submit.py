"""Stage 4: send due entries to Stripe, so that each counts once whatever gets lost on the way.

The order is the protocol: claim and commit the attempts, raise the high-water mark, send, record under the fence.
While batches are under way, the ledger records the last ones and claims the next.  A crash at any point leaves
ambiguous entries that the next flush sends again under the same identifiers.
A canary follows the last batch; when Stripe shows it, everything before it has had its time.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.domain.entries import Outcome
from billing_pipeline.domain.protocol import ProtocolTimes
from billing_pipeline.errors import BillingError, LedgerFrozen, StripeRefused
from billing_pipeline.stripe_api.meter_events import Answer
from billing_pipeline.usage.attempts import Claim, claim, record
from billing_pipeline.usage.canary import record_canaries, write_canaries
from billing_pipeline.usage.gate import Identity
from billing_pipeline.usage.lease import Lease, renew
from billing_pipeline.usage.mark import HighWaterMark, Mark
from billing_pipeline.usage.send import NOT_SENT, MeterSink, boot_nanoseconds, halts, send_batch

# The milestones go to Dagster's event log, which stores a row for each; single entries must not.
milestones = logging.getLogger("billing_pipeline.milestones")

BATCH_SIZE_MAX = 5_000
BATCH_TIME = timedelta(seconds=10)
"""At Stripe's pace a batch is under way no longer; those claimed meanwhile must not run out of their lease."""
CLAIMED_AHEAD = 2
"""Batches claimed before they are sent, so that sending never waits for the ledger."""
NO_MARK = Answer(Outcome.NOT_EXECUTED, error_code="no_mark")


def batch_size(events_per_second: int) -> int:
    """How many entries to claim at once, for a pace."""
    return max(1, min(BATCH_SIZE_MAX, int(events_per_second * BATCH_TIME.total_seconds())))


@dataclass(frozen=True, slots=True)
class SubmitReport:
    """Entries by what became of them in this run; an entry counts once per attempt.

    `unanswered` are those that it leaves without certainty, to be sent again.
    """

    attempts: int = 0
    accepted: int = 0
    duplicates: int = 0
    rejected: int = 0
    unknown: int = 0
    not_executed: int = 0
    units_accepted: int = 0
    canaries: int = 0
    unanswered: int = 0


@dataclass(frozen=True, slots=True)
class SubmitContext:
    """Who sends, under which lease, with which limits."""

    identity: Identity
    lease: Lease
    lease_ttl: timedelta
    mark: HighWaterMark
    times: ProtocolTimes
    concurrency: int
    canary_customer: str | None
    """None: no canaries, because setup has not made their customer yet."""
    event_names: tuple[str, ...]
    batch_size: int = BATCH_SIZE_MAX
    organization_id: str | None = None
    """Whose entries alone are sent; None: everybody's."""


def submit(
    connection: Connection[Any],
    sink: MeterSink,
    context: SubmitContext,
    *,
    clock: Callable[[], datetime],
    on_progress: Callable[[int], None] = lambda sent: None,
) -> SubmitReport:
    """Send every due entry once.

    Raises `StripeRefused` when the key is refused, `LedgerFrozen` when sending must stop, `LeaseLost` when another
    flush took over, and `Unavailable` when the high-water mark cannot be raised.
    """
    milestones.info("Stripe usage flush started", extra={"action": "flush_started"})
    queries.execute(connection, "hold_entries_too_old", {"now": clock(), "past_max": context.times.past_max})
    run = _Run(connection, sink, context, clock, on_progress)
    with _old_objects_left_alone():
        asyncio.run(run.send_everything())
    report = SubmitReport(
        attempts=run.totals["attempts"],
        accepted=run.totals[Outcome.OK],
        duplicates=run.totals[Outcome.DUPLICATE],
        rejected=run.totals[Outcome.REJECTED],
        unknown=run.totals[Outcome.UNKNOWN],
        not_executed=run.totals[Outcome.NOT_EXECUTED],
        units_accepted=run.totals["units_accepted"],
        canaries=run.totals["canaries"],
        unanswered=run.totals[Outcome.UNKNOWN] + run.totals[Outcome.NOT_EXECUTED],
    )
    if report.attempts == 0:
        milestones.info("Stripe usage flush found no pending events", extra={"action": "flush_empty"})
    milestones.info("Stripe usage flush completed", extra={"action": "flush_completed", "totals": asdict(report)})
    return report


@contextmanager
def _old_objects_left_alone() -> Iterator[None]:
    # Every batch makes enough objects to have the collector walk all that the libraries keep for ever: three runs came
    # to 12,800-15,300 entries a second with this, three in turn with them to 11,200-12,100 without.
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@dataclass(frozen=True, slots=True)
class _Sent:
    """A claimed batch and Stripe's answers, in its order."""

    claim: Claim
    answers: list[Answer]

    @property
    def halts(self) -> bool:
        """An answer after which nothing more may leave."""
        return any(halts(entry, answer) for entry, answer in zip(self.claim.entries, self.answers, strict=True))


Recording = tuple[_Sent, asyncio.Future[None]]


class _Run:
    """One submission.  While it sends, its connection belongs to the ledger's one thread, which claims and records."""

    def __init__(
        self,
        connection: Connection[Any],
        sink: MeterSink,
        context: SubmitContext,
        clock: Callable[[], datetime],
        on_progress: Callable[[int], None],
    ) -> None:
        self._connection = connection
        self._sink = sink
        self._context = context
        self._clock = clock
        self._on_progress = on_progress
        self._lease = context.lease
        self.totals: Counter[str] = Counter()

    async def send_everything(self) -> None:
        """Batch after batch until nothing is due, then the canaries."""
        async with self._sink:
            loop = asyncio.get_running_loop()
            with ThreadPoolExecutor(1) as ledger:
                await self._send_batches(partial(loop.run_in_executor, ledger))
            await self._send_canaries_behind()

    async def _send_canaries_behind(self) -> None:
        customer = self._context.canary_customer
        if customer is None or not self.totals["attempts"]:
            return
        self.totals["canaries"] = await _send_canaries(
            self._connection,
            self._sink,
            self._context.identity,
            customer,
            self._context.event_names,
            self._clock(),
        )

    async def _send_batches(self, in_ledger: Callable[..., asyncio.Future[Any]]) -> None:
        claims = deque(in_ledger(self._claim) for _ in range(CLAIMED_AHEAD))
        records: deque[Recording] = deque()
        try:
            while (batch := await claims.popleft()).entries:
                claims.append(in_ledger(self._claim))
                milestones.info(
                    "Stripe usage flush batch started", extra={"action": "batch_started", "size": len(batch.entries)}
                )
                answers = await send_batch(self._sink, batch.entries, self._context.concurrency, batch.send_before)
                sent = _Sent(batch, answers)
                records.append((sent, in_ledger(self._record, sent)))
                if sent.halts:
                    break
                if len(records) > 1:
                    await self._recorded(records.popleft())
        except Exception:
            # Neither what was sent nor what was claimed is left without its record.
            await self._finish(in_ledger, claims, records)
            raise
        await self._finish(in_ledger, claims, records)

    async def _recorded(self, recording: Recording) -> None:
        sent, done = recording
        await done
        milestones.info(
            "Stripe usage flush batch completed", extra={"action": "batch_completed", "totals": dict(self.totals)}
        )
        self._on_progress(len(sent.claim.entries))

    async def _finish(
        self,
        in_ledger: Callable[..., asyncio.Future[Any]],
        claims: deque[asyncio.Future[Claim]],
        records: deque[Recording],
    ) -> None:
        for claimed in await asyncio.gather(*claims, return_exceptions=True):
            if isinstance(claimed, Claim) and claimed.entries:
                await in_ledger(self._record, _Sent(claimed, [NOT_SENT] * len(claimed.entries)))
        while records:
            await self._recorded(records.popleft())

    def _claim(self) -> Claim:
        """The next batch, with its attempts committed and the mark raised: it may leave."""
        boot_now = boot_nanoseconds()
        now = self._clock()
        self._lease = renew(self._connection, self._lease, ttl=self._context.lease_ttl, now=now)
        batch = claim(
            self._connection,
            self._sink.channel,
            self._lease,
            self._context.times,
            limit=self._context.batch_size,
            organization_id=self._context.organization_id,
            now=now,
            boot_now=boot_now,
        )
        if batch.entries:
            try:
                highest = max(entry.attempt_id for entry in batch.entries)
                identity = self._context.identity
                self._context.mark.raise_to(Mark(str(identity.ledger_id), highest, identity.epoch))
            except BillingError:
                # Nothing of it has left, and the ledger shall say so.
                self._record(_Sent(batch, [NO_MARK] * len(batch.entries)))
                raise
        return batch

    def _record(self, sent: _Sent) -> None:
        recorded = record(self._connection, sent.claim, sent.answers, self._context.times, now=self._clock())
        self.totals += recorded.counts
        if recorded.foreign:
            raise LedgerFrozen(
                f"Stripe already holds {len(recorded.foreign)} identifier(s) that this ledger never sent, such as "
                f"{recorded.foreign[0]}: the database was restored, or another ledger writes to this account. "
                "Sending is frozen."
            )
        if refused := next((answer for answer in sent.answers if answer.stop), None):
            raise StripeRefused(
                f"Stripe refuses the key: {refused.error_message}. Entries wait unchanged; mend the key."
            )


def send_canaries(
    connection: Connection[Any],
    sink: MeterSink,
    identity: Identity,
    customer: str,
    event_names: Sequence[str],
    clock: Callable[[], datetime],
) -> int:
    """Send canaries alone, without any entry; returns how many."""

    async def send() -> int:
        async with sink:
            return await _send_canaries(connection, sink, identity, customer, event_names, clock())

    return asyncio.run(send())


async def _send_canaries(
    connection: Connection[Any],
    sink: MeterSink,
    identity: Identity,
    customer: str,
    event_names: Sequence[str],
    now: datetime,
) -> int:
    canaries = write_canaries(connection, identity=identity, customer=customer, event_names=event_names, now=now)
    answers = [answer for canary in canaries for answer in await sink.send([canary.as_meter_event()])]
    record_canaries(connection, canaries, answers)
    return len(canaries)
