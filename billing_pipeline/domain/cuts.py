"""What to state next for a usage window: the difference to its target, or why it has to wait.

The cutter asks here and writes the answer.  An hour has sixty minutes and each entry owns one, so a window that is
corrected again and again must make them last for the 35 days in which Stripe takes its usage.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

from billing_pipeline.domain.entries import HoldReason
from billing_pipeline.domain.windows import SLOTS_PER_HOUR, slot_count, slots_of

VALUE_MAX = 10**15 - 1
"""Stripe: at most 15 significant digits (2026-04-22, billing-meter-event-values-validation)."""
COALESCE_FROM = 25
"""Of an hour's sixty minutes: once so many are used, the rest is spent one a day.  Thirty-five are left then, one for
each day on which Stripe takes usage of the hour.  After a recovery minutes are looked for so much further on."""
COALESCE_FOR = timedelta(days=1)
LAST_HOURS = timedelta(hours=6)
"""Before a window is too old for Stripe nothing waits any more, with room for a flush or more that fails."""
HOLD_FROM = 55
"""Of sixty: the last five wait for a person, who should learn why one hour is corrected so often while it can be."""


@dataclass(frozen=True, slots=True)
class Cut:
    """The next entry of a window: its number, its amount and its own minute."""

    sequence: int
    value: int
    slot_at: datetime


@dataclass(frozen=True, slots=True)
class Wait:
    """The difference stays owed and due: until an instant, or (None) until evidence settles an accepted entry."""

    until: datetime | None


def decide_cut(
    *,
    target: int,
    stated: int,
    assured: int,
    next_sequence: int,
    used_slots: Collection[datetime],
    last_cut_at: datetime | None,
    last_slots_released: bool,
    starts_at: datetime,
    ends_at: datetime,
    now: datetime,
    past_max: timedelta,
    epoch: int,
) -> Cut | Wait | HoldReason | None:
    """The entry that brings what is stated to the target; why it waits or is held; None when nothing is owed.

    `stated` is the sum of the window's entries that are neither rejected nor replaced; `assured` is the least that it
    can come to, whatever becomes of entries that Stripe has accepted and not shown yet.
    `used_slots` are the minutes inside the window that any entry of its customer and meter event name owns or owned:
    windows that share a customer share its minutes.
    `last_cut_at` is when the window's last entry was made; `past_max` is how old a Stripe timestamp may be.
    `epoch` counts the ledger's recoveries: what a lost timeline stated and took back within one hour adds up to nothing
    in Stripe's hours, so that nobody sees which minutes it used.
    Whether the amount itself can be right is asked before, in `brakes.py`.
    """
    value = target - stated
    if value == 0:
        return None
    if abs(value) > VALUE_MAX:
        return HoldReason.TOO_LARGE
    if value < 0 and assured + value < 0:
        # Were the accepted entry refused after all, Stripe would be left with less than nothing, and the invoice
        # would lose other hours' usage to it.
        return Wait(None)
    slots = slot_count(starts_at, ends_at)
    if len(used_slots) >= slots or next_sequence >= SLOTS_PER_HOUR:
        return HoldReason.NO_SLOT
    oldest = now - past_max
    candidates = slots_of(starts_at, ends_at, epoch * COALESCE_FROM)
    slot = next((slot for slot in candidates if slot not in used_slots and slot >= oldest), None)
    if slot is None:
        return HoldReason.TOO_OLD

    def spent(of_an_hour: int) -> bool:
        # A part of an hour borrows minutes beside it, and what it takes back must not wait for its period's invoice.
        return next_sequence >= of_an_hour or (slots == SLOTS_PER_HOUR and len(used_slots) >= of_an_hour)

    if spent(HOLD_FROM) and not last_slots_released:
        return HoldReason.LAST_SLOTS
    if spent(COALESCE_FROM) and last_cut_at is not None:
        until = min(last_cut_at + COALESCE_FOR, starts_at + past_max - LAST_HOURS)
        if now < until:
            return Wait(until)
    return Cut(next_sequence, value, slot)
