"""Seals a period whose invoice is final: nothing more is stated for it, and what changes later is owed after the seal.

Stripe takes a meter event for a finalized period and bills it to nobody, so sending one would lose the money without a
trace.  A seal covers the windows there are and those that late rows bring; the database holds it (`schema/guards.sql`).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from psycopg import Connection
from psycopg.types.json import Jsonb

from billing_pipeline.database import queries
from billing_pipeline.database.transactions import in_transaction
from billing_pipeline.domain.seals import Period, Unsealable, WindowToSeal, decide_seal
from billing_pipeline.domain.windows import utc
from billing_pipeline.errors import GateClosed, UserError

SAMPLES = 3


@dataclass(frozen=True, slots=True)
class SealReport:
    """How many windows were sealed, how many of them leave something owed, and the units that comes to."""

    sealed_at: datetime
    windows: int
    windows_owed: int
    units_owed: Decimal


@dataclass(frozen=True, slots=True)
class OwedAfterSeal:
    """Stripe units of sealed windows that were not stated, or stated too much (negative)."""

    organization_id: str
    stripe_customer_id: str
    meter: str
    windows: int
    units: Decimal


def seal(
    connection: Connection[Any],
    period: Period,
    *,
    leave_owed: bool,
    closed_before: datetime,
    actor: str,
    reason: str,
    now: datetime,
) -> SealReport:
    """Seal every window of the period, or none.  Sealing it again changes nothing.

    `closed_before`: windows that end later may still grow and be cut.
    Raises `UserError` for an unknown customer and a period that is empty or not over, `GateClosed` when a window keeps
    it open.
    """
    if period.starts_at >= period.ends_at:
        raise UserError(f"A period must end after it starts, not {period.starts_at} to {period.ends_at}.")
    if period.ends_at > closed_before:
        raise UserError(f"The period until {utc(period.ends_at):%Y-%m-%d %H:%M} UTC is not over yet.")
    if not queries.fetch_dicts(connection, "can_have_usage", _params(period))[0]["known"]:
        raise UserError(
            f"No usage was ever mapped to customer {period.stripe_customer_id}"
            f"{f' and counted for {period.event_name}' if period.event_name else ''}; is it written correctly?"
        )

    def write() -> SealReport:
        # A window that is being counted now must not miss the seal: aggregations take the same lock.
        queries.execute(connection, "lock_aggregations")
        windows = _locked_windows(connection, period)
        covering = queries.fetch_dicts(connection, "covering_seal", _params(period))
        if covering and not windows:
            return SealReport(covering[0]["sealed_at"], 0, 0, Decimal(0))
        _require_sealable(windows, period, leave_owed=leave_owed)
        owed = [window for window in windows if window.owed]
        report = SealReport(now, len(windows), len(owed), sum((window.owed for window in owed), Decimal(0)))
        details = {
            "windows": report.windows,
            "windows_owed": report.windows_owed,
            "units_owed": str(report.units_owed),
        }
        queries.execute(
            connection,
            "insert_seal",
            _params(period) | {"actor": actor, "reason": reason, "details": Jsonb(details), "now": now},
        )
        queries.execute(
            connection,
            "seal_windows",
            {
                "window_ids": [window.window_id for window in windows],
                "owed_window_ids": [window.window_id for window in owed],
                "now": now,
            },
        )
        return report

    return in_transaction(connection, write, name="The seal")


def owed_after_seal(connection: Connection[Any]) -> list[OwedAfterSeal]:
    """What sealed periods are still owed, per organization, customer and meter."""
    return queries.fetch(connection, "owed_after_seal", OwedAfterSeal)


def _locked_windows(connection: Connection[Any], period: Period) -> list[WindowToSeal]:
    locked = [row["window_id"] for row in queries.fetch_dicts(connection, "lock_windows_of_period", _params(period))]
    return queries.fetch(connection, "facts_for_seal", WindowToSeal, {"window_ids": locked})


def _require_sealable(windows: list[WindowToSeal], period: Period, *, leave_owed: bool) -> None:
    refused = [(window, why) for window in windows if (why := decide_seal(window, period, leave_owed=leave_owed))]
    if not refused:
        return
    by_reason: dict[Unsealable, list[WindowToSeal]] = defaultdict(list)
    for window, why in refused:
        by_reason[why].append(window)
    lines = " ".join(_refusal(why, found) for why, found in by_reason.items())
    raise GateClosed(f"Nothing was sealed; {len(refused)} of {len(windows)} windows keep the period open: {lines}")


def _refusal(why: Unsealable, windows: list[WindowToSeal]) -> str:
    samples = ", ".join(f"{w.organization_id} {w.meter} {w.starts_at:%Y-%m-%d %H:%M}" for w in windows[:SAMPLES])
    return f"{len(windows)} ({samples}{', ...' if len(windows) > SAMPLES else ''}): {why}."


def _params(period: Period) -> dict[str, Any]:
    return {
        "stripe_customer_id": period.stripe_customer_id,
        "event_name": period.event_name,
        "period_start": period.starts_at,
        "period_end": period.ends_at,
    }
