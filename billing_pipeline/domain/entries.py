"""The life of a ledger entry: which state follows from what Stripe answered or showed.

The submitter and the confirmer decide nothing themselves; they ask here and write the answer.  What is stated next is
decided in `cuts.py`.
The same arrows are a trigger in the database (`schema/guards.sql`); a test holds the two equal.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from enum import StrEnum

from billing_pipeline.domain.protocol import ProtocolTimes


class EntryState(StrEnum):
    """Where an entry stands; see `docs/architecture.md` for the arrows."""

    PENDING = "pending"
    AMBIGUOUS = "ambiguous"
    ACCEPTED = "accepted"
    CONFIRMED = "confirmed"
    ADOPTED = "adopted"
    REJECTED = "rejected"
    REPLACED = "replaced"


NOT_STATED = frozenset({EntryState.REJECTED, EntryState.REPLACED})
"""States whose value does not count as stated to Stripe."""

TRANSITIONS: frozenset[tuple[EntryState, EntryState]] = frozenset(
    {
        (EntryState.PENDING, EntryState.AMBIGUOUS),
        (EntryState.PENDING, EntryState.REPLACED),
        (EntryState.AMBIGUOUS, EntryState.PENDING),
        (EntryState.AMBIGUOUS, EntryState.ACCEPTED),
        (EntryState.AMBIGUOUS, EntryState.CONFIRMED),
        (EntryState.AMBIGUOUS, EntryState.REJECTED),
        (EntryState.AMBIGUOUS, EntryState.REPLACED),
        (EntryState.ACCEPTED, EntryState.CONFIRMED),
        (EntryState.ACCEPTED, EntryState.REJECTED),
        (EntryState.ACCEPTED, EntryState.REPLACED),
    }
)


class Outcome(StrEnum):
    """What one attempt came to."""

    OK = "ok"  # 2xx that echoes our identifier
    DUPLICATE = "duplicate"  # Stripe holds an event of this identifier
    NOT_EXECUTED = "not_executed"  # provably not executed: 429, connection refused, never sent
    REJECTED = "rejected"  # a definitive 4xx
    UNKNOWN = "unknown"  # timeout, reset, 5xx, an answer that is not Stripe's


class HoldReason(StrEnum):
    """Why an amount waits for a person; it stays owed and is shown as such."""

    REJECTED = "rejected_by_stripe"
    TOO_OLD = "older_than_stripe_accepts"
    TOO_LARGE = "more_digits_than_stripe_accepts"
    NO_SLOT = "no_minute_left_in_window"
    LAST_SLOTS = "last_minutes_of_window_are_reserved"
    OVER_HOUR_MAX = "more_than_the_meters_hour_max"
    OVER_USUAL = "far_more_than_the_usual_hour"
    OVER_FLUSH_MAX = "more_than_the_meters_flush_max"
    TAKEN_BACK = "too_much_taken_back_at_once"


class DuplicateWithoutAttempt(Exception):
    """Stripe knows an identifier that this ledger never sent: a restored or foreign ledger."""


def state_after(outcome: Outcome, *, earlier_unknown: bool) -> EntryState:
    """The state that an attempt's outcome leads to from `ambiguous`.

    `earlier_unknown`: an earlier attempt of the same entry may have been executed.
    Raises `DuplicateWithoutAttempt` where Stripe's duplicate cannot stem from us.
    """
    match outcome:
        case Outcome.OK:
            return EntryState.ACCEPTED
        case Outcome.DUPLICATE:
            if not earlier_unknown:
                raise DuplicateWithoutAttempt
            return EntryState.ACCEPTED
        case Outcome.NOT_EXECUTED:
            return EntryState.AMBIGUOUS if earlier_unknown else EntryState.PENDING
        case Outcome.REJECTED:
            # The first attempt may have counted before, say, the meter was archived; only a summary can tell.
            return EntryState.AMBIGUOUS if earlier_unknown else EntryState.REJECTED
    # Unknown: whatever may have been executed is not certain until Stripe shows it.
    return EntryState.AMBIGUOUS


class Verdict(StrEnum):
    """What evidence makes of an entry."""

    CONFIRMED = "confirmed"  # its minute shows its value
    REPLACED = "replaced"  # its minute shows nothing, and that counts
    UNDECIDED = "undecided"  # absent, but it may still appear


def judge_evidence(
    *,
    state: EntryState,
    shown: bool,
    first_attempt_at: datetime | None,
    last_attempt_at: datetime | None,
    observed_at: datetime,
    canary_sent_at: datetime | None,
    times: ProtocolTimes,
) -> Verdict:
    """What a minute summary says about an entry that may have been sent.

    Absence counts only when no request can still be under way (`lateness`), the summaries have had their time
    (`settle`), a canary sent after the last attempt shows, and, for an unknown outcome, nobody may send it again.
    """
    if shown:
        return Verdict.CONFIRMED
    if first_attempt_at is None or last_attempt_at is None or canary_sent_at is None:
        return Verdict.UNDECIDED
    settled = observed_at >= last_attempt_at + times.absence_after and canary_sent_at > last_attempt_at
    resendable = state is EntryState.AMBIGUOUS and observed_at < first_attempt_at + times.safe_send
    return Verdict.REPLACED if settled and not resendable else Verdict.UNDECIDED


def retry_delay(attempts: int) -> timedelta:
    """How long to wait after the nth attempt that brought no certainty: 5 s doubling to 10 min."""
    return min(timedelta(seconds=5) * (1 << min(attempts - 1, 10)), timedelta(minutes=10))
