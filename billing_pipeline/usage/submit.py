"""Stage 4: send due entries to Stripe, so that each counts once whatever gets lost on the way.

The order is the protocol: claim and commit the attempts, raise the high-water mark, send, record under the fence.
A crash at any point leaves an ambiguous entry that the next flush sends again under the same identifier.
A canary follows the last batch; when Stripe shows it, everything before it has had its time.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.domain.entries import DuplicateWithoutAttempt, EntryState, Outcome, retry_delay, state_after
from billing_pipeline.domain.protocol import ProtocolTimes
from billing_pipeline.errors import BillingError, LedgerFrozen, StripeRefused
from billing_pipeline.stripe_api.meter_events import Answer
from billing_pipeline.usage.canary import record_canaries, write_canaries
from billing_pipeline.usage.gate import Identity, freeze
from billing_pipeline.usage.lease import Lease, renew
from billing_pipeline.usage.mark import HighWaterMark, Mark
from billing_pipeline.usage.send import ClaimedEntry, MeterSink, send_batch

# The milestones go to Dagster's event log, which stores a row for each; single entries must not.
milestones = logging.getLogger("billing_pipeline.milestones")

BATCH_SIZE = 2_000
NO_MARK = Answer(Outcome.NOT_EXECUTED, error_code="no_mark")


@dataclass(frozen=True, slots=True)
class SubmitReport:
    """Entries by what became of them in this run; an entry counts once per attempt."""

    attempts: int = 0
    accepted: int = 0
    duplicates: int = 0
    rejected: int = 0
    unknown: int = 0
    not_executed: int = 0
    units_accepted: int = 0
    canaries: int = 0


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
    report = asyncio.run(_submit(connection, sink, context, clock, on_progress))
    if report.attempts == 0:
        milestones.info("Stripe usage flush found no pending events", extra={"action": "flush_empty"})
    milestones.info("Stripe usage flush completed", extra={"action": "flush_completed", "totals": asdict(report)})
    return report


async def _submit(
    connection: Connection[Any],
    sink: MeterSink,
    context: SubmitContext,
    clock: Callable[[], datetime],
    on_progress: Callable[[int], None],
) -> SubmitReport:
    totals: Counter[str] = Counter()
    queries.execute(connection, "hold_entries_too_old", {"now": clock(), "past_max": context.times.past_max})
    lease = context.lease
    async with sink:
        while True:
            now = clock()
            lease = renew(connection, lease, ttl=context.lease_ttl, now=now)
            batch = _claim(connection, sink.channel, lease, context.times, now)
            if not batch:
                break
            claimed_until = now + context.times.entry_lease
            milestones.info("Stripe usage flush batch started", extra={"action": "batch_started", "size": len(batch)})
            try:
                highest = max(entry.attempt_id for entry in batch)
                context.mark.raise_to(Mark(str(context.identity.ledger_id), highest))
            except BillingError:
                # Nothing has left yet, and the ledger shall say so.
                _record(connection, batch, [NO_MARK] * len(batch), totals, now=now, claimed_until=claimed_until)
                raise
            answers = await send_batch(sink, batch, context.concurrency, context.times.send_within)
            _record(connection, batch, answers, totals, now=clock(), claimed_until=claimed_until)
            milestones.info(
                "Stripe usage flush batch completed", extra={"action": "batch_completed", "totals": dict(totals)}
            )
            on_progress(len(batch))
        if totals["attempts"] and context.canary_customer is not None:
            totals["canaries"] = await _send_canaries(
                connection, sink, context.identity, context.canary_customer, context.event_names, clock()
            )
    return SubmitReport(
        attempts=totals["attempts"],
        accepted=totals[Outcome.OK],
        duplicates=totals[Outcome.DUPLICATE],
        rejected=totals[Outcome.REJECTED],
        unknown=totals[Outcome.UNKNOWN],
        not_executed=totals[Outcome.NOT_EXECUTED],
        units_accepted=totals["units_accepted"],
        canaries=totals["canaries"],
    )


def _claim(
    connection: Connection[Any], channel: str, lease: Lease, times: ProtocolTimes, now: datetime
) -> list[ClaimedEntry]:
    return queries.fetch(
        connection,
        "claim_due_entries",
        ClaimedEntry,
        {
            "channel": channel,
            "now": now,
            "entry_lease": times.entry_lease,
            "limit": BATCH_SIZE,
            "safe_send": times.safe_send,
            "past_max": times.past_max,
            "lock_key": lease.lock_key,
            "lease_fence": lease.fence,
        },
    )


def _record(
    connection: Connection[Any],
    batch: Sequence[ClaimedEntry],
    answers: Sequence[Answer],
    totals: Counter[str],
    *,
    now: datetime,
    claimed_until: datetime,
) -> None:
    if now >= claimed_until:
        # Somebody else may have claimed since; the entries stay ambiguous, and their next attempt settles them.
        totals["attempts"] += len(batch)
        totals[Outcome.UNKNOWN] += len(batch)
        return
    states: list[EntryState] = []
    foreign: list[str] = []
    for entry, answer in zip(batch, answers, strict=True):
        try:
            states.append(state_after(answer.outcome, earlier_unknown=entry.earlier_unknown))
        except DuplicateWithoutAttempt:
            states.append(EntryState.AMBIGUOUS)
            foreign.append(entry.identifier)
        totals["attempts"] += 1
        totals[answer.outcome] += 1
        if states[-1] is EntryState.ACCEPTED:
            totals["units_accepted"] += entry.value
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
                "outcomes": [str(answer.outcome) for answer in answers],
                "http_statuses": [answer.http_status for answer in answers],
                "error_codes": [answer.error_code for answer in answers],
                "error_messages": [answer.error_message for answer in answers],
                "request_ids": [answer.request_id for answer in answers],
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
    if refused := next((answer for answer in answers if answer.stop), None):
        raise StripeRefused(f"Stripe refuses the key: {refused.error_message}. Entries wait unchanged; mend the key.")


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
