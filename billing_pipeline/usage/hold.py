"""Windows that wait for a person: which they are, and how a person lets the cutter look at them again.

Nothing is sent from here.  What still cannot be stated is held again by the next cut, with its reason.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.database.transactions import in_transaction
from billing_pipeline.domain.entries import HoldReason
from billing_pipeline.errors import UserError
from billing_pipeline.usage.gate import record_operation


@dataclass(frozen=True, slots=True)
class HeldWindow:
    """A window on hold, and the Stripe units it owes."""

    window_id: int
    organization_id: str
    meter: str
    starts_at: datetime
    units: Decimal
    reason: str


def held_windows(connection: Connection[Any], *, limit: int) -> list[HeldWindow]:
    """The oldest windows on hold, by themselves or for an entry that Stripe refused."""
    return queries.fetch(connection, "held_windows", HeldWindow, {"limit": limit})


def release_windows(
    connection: Connection[Any], window_ids: Collection[int], *, actor: str, reason: str, now: datetime
) -> None:
    """Let the cutter look at these windows again, all or none.  Raises `UserError` for one that is not on hold."""
    asked = sorted(set(window_ids))
    params = {
        "window_ids": asked,
        "last_slots": str(HoldReason.LAST_SLOTS),
        "over_brake": str(HoldReason.OVER_HOUR_MAX),
        "now": now,
    }

    def write() -> None:
        released = [row["window_id"] for row in queries.fetch_dicts(connection, "release_windows", params)]
        if others := [window_id for window_id in asked if window_id not in released]:
            raise UserError(
                f"Nothing was released: not on hold are the windows {', '.join(map(str, others))}. "
                "`billing-pipeline ledger status` lists those that are."
            )
        record_operation(
            connection, "release_hold", actor=actor, reason=reason, now=now, details={"window_ids": released}
        )

    in_transaction(connection, write, name="The release")
