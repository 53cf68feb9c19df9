"""What to make of a minute after a restore: the ledger's entry there, and what Stripe shows.

Recovery reads every minute that may differ and asks here.  Stripe's count is the truth about what was counted; the
ledger is brought to it, and the cutter then states whatever the source still owes.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from billing_pipeline.domain.entries import EntryState


class Step(StrEnum):
    """What recovery does with one minute."""

    KEEP = "keep"  # ledger and Stripe agree, or the entry was settled before
    CONFIRM = "confirm"  # the entry was sent, and Stripe shows its value
    REPLACE = "replace"  # Stripe shows nothing: the value is owed again
    ADOPT = "adopt"  # Stripe shows a value the ledger has no entry for
    REPLACE_AND_ADOPT = "replace_and_adopt"  # Stripe shows a value, but not as this entry
    CONFLICT = "conflict"  # a settled entry that Stripe shows otherwise, or a sealed minute; a person must look


@dataclass(frozen=True, slots=True)
class EntryAtMinute:
    """The ledger's entry that owns a minute."""

    entry_id: int
    window_id: int
    state: str
    value: int
    slot_at: datetime


def decide_adoption(entry: EntryAtMinute | None, shown: int, *, sealed: bool) -> Step:
    """The step for one minute where Stripe shows `shown` units (0: nothing).

    `sealed`: the minute's invoice is final, so no entry can be added to the ledger there.
    """
    step = _step(entry, shown)
    return Step.CONFLICT if sealed and step in (Step.ADOPT, Step.REPLACE_AND_ADOPT) else step


def _step(entry: EntryAtMinute | None, shown: int) -> Step:
    if entry is None:
        return Step.ADOPT if shown else Step.KEEP
    match EntryState(entry.state):
        case EntryState.CONFIRMED | EntryState.ADOPTED:
            return Step.KEEP if shown == entry.value else Step.CONFLICT
        case EntryState.AMBIGUOUS | EntryState.ACCEPTED if shown == entry.value:
            return Step.CONFIRM
        case EntryState.PENDING | EntryState.AMBIGUOUS | EntryState.ACCEPTED:
            # A pending entry that Stripe shows was sent by the timeline that was lost.
            return Step.REPLACE_AND_ADOPT if shown else Step.REPLACE
        case EntryState.REJECTED:
            return Step.CONFLICT if shown else Step.KEEP
        case EntryState.REPLACED:
            return Step.ADOPT if shown else Step.KEEP
