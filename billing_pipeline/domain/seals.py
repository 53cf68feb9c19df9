"""Which windows of a period may be sealed: its invoice is final, and no meter event for it is billed any more.

`usage/seal.py` asks here, window by window; the rules that no code may break are triggers in `schema/guards.sql`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from enum import StrEnum


class Unsealable(StrEnum):
    """Why a window keeps its period open."""

    CROSSES_EDGE = "holds usage of two periods; choose full UTC hours as edges"
    UNSETTLED = "has an entry whose fate at Stripe is not known; wait for its confirmation"
    HELD = "is on hold; release it first with `billing-pipeline holds release`"
    OWED = "owes units that Stripe could still take; flush first, or seal with --leave-owed"


@dataclass(frozen=True, slots=True)
class Period:
    """A billing period of a customer, half-open, in UTC; `event_name` None stands for every meter."""

    stripe_customer_id: str
    event_name: str | None
    starts_at: datetime
    ends_at: datetime


@dataclass(frozen=True, slots=True)
class WindowToSeal:
    """A locked window of the period, and what its entries have come to."""

    window_id: int
    organization_id: str
    meter: str
    starts_at: datetime
    ends_at: datetime
    owed: Decimal
    """Target minus stated, in Stripe units."""
    held: bool
    unsettled: bool


def decide_seal(window: WindowToSeal, period: Period, *, leave_owed: bool) -> Unsealable | None:
    """Why the window may not be sealed now; None when it may.

    `leave_owed`: what is not stated by now stays owed for an adjustment.
    """
    if window.starts_at < period.starts_at or window.ends_at > period.ends_at:
        return Unsealable.CROSSES_EDGE
    if window.unsettled:
        return Unsealable.UNSETTLED
    if window.held:
        return Unsealable.HELD
    if window.owed and not leave_owed:
        return Unsealable.OWED
    return None
