"""The ledger's side of sending: claim a batch with its attempts committed, and record what came of each.

Called by the submitter before and after `send`.  A claim is a lease with a fence: only its worker may record, and
only before it runs out, so a worker that was paused meanwhile changes nothing.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.database.transactions import in_transaction
from billing_pipeline.domain.entries import DuplicateWithoutAttempt, EntryState, Outcome, retry_delay, state_after
from billing_pipeline.domain.protocol import ProtocolTimes
from billing_pipeline.stripe_api.meter_events import Answer
from billing_pipeline.usage.gate import freeze
from billing_pipeline.usage.lease import Lease
from billing_pipeline.usage.send import ClaimedEntry

_MICROSECOND = timedelta(microseconds=1)
_OPEN = (EntryState.PENDING, EntryState.AMBIGUOUS)
_Verdict = tuple[EntryState, Outcome, int | None, str | None, str | None]
"""State, outcome, HTTP status, error code and message: most entries of a batch share them, and are written together."""


@dataclass(frozen=True, slots=True)
class Claim:
    """Entries this worker alone may send, and until when."""

    entries: list[ClaimedEntry]
    until: datetime
    """The database's clock: from then on somebody else may claim them."""
    send_before: int
    """`boot_nanoseconds()`: no request may leave later, so that it ends before the claim does."""


def claim(
    connection: Connection[Any],
    channel: str,
    lease: Lease,
    times: ProtocolTimes,
    *,
    limit: int,
    now: datetime,
    boot_now: int,
    organization_id: str | None = None,
) -> Claim:
    """Claim up to `limit` due entries, those with the earliest deadline first; an empty claim when none is due.

    Of one organization, where it is named.
    `boot_now` is `boot_nanoseconds()` from before `now` was read: a worker that is paused in between then has less time
    to send than the ledger gives it, never more.
    """
    params = {
        "channel": channel,
        "now": now,
        "entry_lease": times.entry_lease,
        "limit": limit,
        "organization_id": organization_id,
        "safe_send": times.safe_send,
        "past_max": times.past_max,
        "lock_key": lease.lock_key,
        "lease_fence": lease.fence,
    }

    def wake_and_claim() -> list[ClaimedEntry]:
        queries.execute(connection, "wake_entries", {"now": now})
        return queries.fetch(connection, "claim_due_entries", ClaimedEntry, params)

    entries = in_transaction(connection, wake_and_claim, name="The claim")
    return Claim(entries, now + times.entry_lease, boot_now + times.send_within // _MICROSECOND * 1_000)


@dataclass(frozen=True, slots=True)
class Recorded:
    """What a batch came to."""

    counts: Counter[str]
    """Attempts by outcome, `attempts` in all, and `units_accepted`."""
    foreign: tuple[str, ...] = ()
    """Identifiers that Stripe holds and this ledger never sent; the ledger is frozen with this record."""


def record(
    connection: Connection[Any], claim: Claim, answers: Sequence[Answer], times: ProtocolTimes, *, now: datetime
) -> Recorded:
    """Record one batch's answers in one transaction, where the fence is still this claim's."""
    counts: Counter[str] = Counter(attempts=len(claim.entries))
    if now >= claim.until:
        # Somebody else may have claimed since; the entries stay ambiguous, and their next attempt settles them.
        counts[Outcome.UNKNOWN] = len(claim.entries)
        return Recorded(counts)
    foreign: list[str] = []
    still_open: list[ClaimedEntry] = []
    alike: dict[_Verdict, list[tuple[ClaimedEntry, str | None]]] = defaultdict(list)
    for entry, answer in zip(claim.entries, answers, strict=True):
        try:
            state = state_after(answer.outcome, earlier_unknown=entry.earlier_unknown)
        except DuplicateWithoutAttempt:
            state = EntryState.AMBIGUOUS
            foreign.append(entry.identifier)
        verdict = (state, answer.outcome, answer.http_status, answer.error_code, answer.error_message)
        alike[verdict].append((entry, answer.request_id))
        counts[answer.outcome] += 1
        if state in _OPEN:
            still_open.append(entry)
        elif state is EntryState.ACCEPTED:
            counts["units_accepted"] += entry.value

    def write() -> None:
        for verdict, entries in alike.items():
            _write_outcome(connection, verdict, entries, now)
        if still_open:
            _put_back(connection, still_open, times, now)
        if foreign:
            freeze(connection, f"Stripe already holds {foreign[0]}, which this ledger never sent", now=now)

    in_transaction(connection, write, name="The record")
    return Recorded(counts, tuple(foreign))


def _write_outcome(
    connection: Connection[Any],
    verdict: _Verdict,
    entries: Sequence[tuple[ClaimedEntry, str | None]],
    now: datetime,
) -> None:
    state, outcome, http_status, error_code, error_message = verdict
    params = {
        "now": now,
        "state": str(state),
        "outcome": str(outcome),
        "http_status": http_status,
        "error_code": error_code,
        "error_message": error_message,
        "attempt_ids": [entry.attempt_id for entry, _ in entries],
        "entry_ids": [entry.entry_id for entry, _ in entries],
        "fences": [entry.fence for entry, _ in entries],
        "request_ids": [request_id for _, request_id in entries],
    }
    queries.execute(connection, "record_outcome", params)


def _put_back(
    connection: Connection[Any], entries: Sequence[ClaimedEntry], times: ProtocolTimes, now: datetime
) -> None:
    params = {
        "entry_ids": [entry.entry_id for entry in entries],
        "fences": [entry.fence for entry in entries],
        "retry_ats": [now + retry_delay(entry.fence) for entry in entries],
        "safe_send": times.safe_send,
    }
    queries.execute(connection, "put_back_entries", params)
