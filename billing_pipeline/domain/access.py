"""Who may enter the workspace, and where to send who may not.

The gate follows the `saas` entitlement alone: a checkout opens it by changing the entitlement, never by itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

GATE = "saas"
"""The feature that opens the workspace."""


class Decision(StrEnum):
    """What to do with somebody at the door."""

    WORKSPACE = "workspace"
    BOOKING = "booking"
    DENIED = "denied"


@dataclass(frozen=True, slots=True)
class Access:
    """The decision; `url` is where to book a time instead, if there is such a place.

    `can_upgrade` says whether the organization may buy the entitlement by itself.
    """

    decision: Decision
    url: str | None
    can_upgrade: bool


def decide_access(*, entitled: bool, booking_url: str | None, can_upgrade: bool) -> Access:
    """Who has the entitlement enters; who has not is sent to book a time, or is only told no."""
    if entitled:
        return Access(Decision.WORKSPACE, None, can_upgrade=False)
    return Access(Decision.BOOKING if booking_url else Decision.DENIED, booking_url, can_upgrade)
