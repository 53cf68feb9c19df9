"""Windows that wait for a person: which they are, and how a person lets the cutter look at them again.

Nothing is sent from here.  No brake holds again what was released; what Stripe cannot take is held again by the next
cut, with its reason.
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
from billing_pipeline.errors import LedgerFrozen, UserError
from billing_pipeline.usage.brakes import window_parts
from billing_pipeline.usage.gate import Identity, record_operation

WINDOW_ID_MAX = 2**63 - 1
IDS_LOGGED_MAX = 1_000
"""Of a release: beyond these the operator log has the choice and the sums."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which windows on hold are meant; None stands for any."""

    reason: str | None = None
    organization: str | None = None
    meter: str | None = None

    def __post_init__(self) -> None:
        if self.reason is not None and self.reason not in list(HoldReason):
            raise UserError(f"{self.reason} is no reason code; there are {', '.join(HoldReason)}.")


ANY = Chosen()


@dataclass(frozen=True, slots=True)
class HeldWindow:
    """A window on hold, and the Stripe units it owes; below zero they are to be taken back."""

    window_id: int
    organization_id: str
    meter: str
    event_name: str
    starts_at: datetime
    units: Decimal
    reason: str
    detail: str | None
    """The limit that was exceeded, in words."""
    held_at: datetime | None


@dataclass(frozen=True, slots=True)
class HeldUnits:
    """All that is on hold for one reason and meter; `added` and `taken_back` are what releasing it would state."""

    reason: str
    meter: str
    event_name: str
    windows: int
    organizations: int
    added: Decimal
    taken_back: Decimal


@dataclass(frozen=True, slots=True)
class WaitingBehind:
    """What is not added to a meter because taking back from the same organizations is on hold."""

    meter: str
    windows: int
    units: Decimal


@dataclass(frozen=True, slots=True)
class Released:
    """What the next flush may now state of one meter."""

    meter: str
    windows: int
    organizations: int
    added: Decimal
    taken_back: Decimal


def held_windows(connection: Connection[Any], *, limit: int) -> list[HeldWindow]:
    """The oldest windows on hold, by themselves or for an entry that Stripe refused."""
    return queries.fetch(connection, "held_windows", HeldWindow, {"limit": limit}, parts=_parts())


def held_windows_by_reason(connection: Connection[Any], chosen: Chosen, *, limit: int) -> list[HeldWindow]:
    """The oldest of each reason, at most `limit`."""
    params = _params(chosen) | {"limit": limit}
    return queries.fetch(connection, "held_windows_by_reason", HeldWindow, params, parts=_parts())


def held_units(connection: Connection[Any], chosen: Chosen = ANY) -> list[HeldUnits]:
    """All that is on hold, summed up by reason and meter."""
    return queries.fetch(connection, "held_units", HeldUnits, _params(chosen), parts=_parts())


def waiting_behind_holds(
    connection: Connection[Any], chosen: Chosen = ANY, *, closed_before: datetime
) -> list[WaitingBehind]:
    """What waits, without being on hold, until a taking back of the same organization is released or mended."""
    params = _params(chosen) | {"closed_before": closed_before}
    return queries.fetch(connection, "waiting_behind_holds", WaitingBehind, params, parts=window_parts())


def release_windows(
    connection: Connection[Any], window_ids: Collection[int], *, actor: str, reason: str, now: datetime
) -> list[Released]:
    """Let the cutter look at these windows again, all or none; returns what may now be stated, by meter.

    Raises `UserError` for one that is not on hold, and `LedgerFrozen`.
    """
    asked = sorted(set(window_ids))

    def write() -> list[Released]:
        _require_open(connection)
        possible = [window_id for window_id in asked if 0 < window_id <= WINDOW_ID_MAX]
        found = queries.fetch_dicts(connection, "windows_on_hold", {"window_ids": possible}, parts=_parts())
        on_hold = {row["window_id"] for row in found}
        if others := [window_id for window_id in asked if window_id not in on_hold]:
            raise UserError(
                f"Nothing was released: not on hold are the windows {', '.join(map(str, others))}. "
                "`billing-pipeline holds list` shows those that are."
            )
        return _release(connection, ANY, asked, actor=actor, reason=reason, now=now)

    return in_transaction(connection, write, name="The release")


def release_all(
    connection: Connection[Any], chosen: Chosen, *, actor: str, reason: str, now: datetime
) -> list[Released]:
    """The same for every window on hold that is meant.  Raises `UserError` where there is none, and `LedgerFrozen`."""

    def write() -> list[Released]:
        _require_open(connection)
        released = _release(connection, chosen, None, actor=actor, reason=reason, now=now)
        if not released:
            raise UserError("Nothing was released: no such window is on hold. `billing-pipeline holds list` shows all.")
        return released

    return in_transaction(connection, write, name="The release")


def _release(
    connection: Connection[Any], chosen: Chosen, window_ids: list[int] | None, *, actor: str, reason: str, now: datetime
) -> list[Released]:
    if not actor.strip() or not reason.strip():
        raise UserError("A release needs a reason and a name, for whoever asks why the amount was sent.")
    params = _params(chosen) | {"window_ids": window_ids, "last_slots": str(HoldReason.LAST_SLOTS), "now": now}
    released = queries.fetch(connection, "release_windows", Released, params, parts=_parts())
    if released:
        details = {
            "window_ids": window_ids if window_ids and len(window_ids) <= IDS_LOGGED_MAX else None,
            "all_of": None if window_ids else _params(chosen),
            "meters": {
                one.meter: {"windows": one.windows, "added": f"{one.added:f}", "taken_back": f"{one.taken_back:f}"}
                for one in released
            },
        }
        record_operation(connection, "release_hold", actor=actor, reason=reason, now=now, details=details)
    return released


def _require_open(connection: Connection[Any]) -> None:
    # What a frozen ledger says that it has stated may not be what Stripe has, and so would be what we say of a release.
    if any(identity.frozen_at is not None for identity in queries.fetch(connection, "read_identity", Identity)):
        raise LedgerFrozen(
            "The ledger is frozen, so nobody knows yet what these windows owe; nothing was released. "
            "First `billing-pipeline ledger adopt` and `billing-pipeline ledger release`."
        )


def _params(chosen: Chosen) -> dict[str, str | None]:
    return {"reason": chosen.reason, "organization": chosen.organization, "meter": chosen.meter}


def _parts() -> dict[str, Any]:
    return {"on_hold": queries.part("on_hold")}
