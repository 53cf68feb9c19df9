"""Before stage 3 cuts: what of its windows must wait for a person, where only all of them together can tell.

First the holds that the source has mended are lifted.  Then each meter is asked how much would be taken back of it, and
what is too much is held before anything is added: an organization that is to be taken back from gets nothing more
meanwhile, because its units may have moved to another hour.  At last, how much each meter with a `flush_max` would add.
The brakes that look at one window alone are asked by the cutter itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import Any

from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.database.transactions import in_transaction
from billing_pipeline.domain.brakes import (
    TAKEN_BACK_WINDOWS_MIN,
    USUAL_HOURS_MIN,
    Braked,
    Brakes,
    TakenBack,
    brake_taking_back,
)
from billing_pipeline.domain.entries import HoldReason
from billing_pipeline.domain.reach import reach_start

BATCH_SIZE = 2_000
BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)
ADDING_BRAKES = [str(HoldReason.OVER_HOUR_MAX), str(HoldReason.OVER_USUAL), str(HoldReason.OVER_FLUSH_MAX)]


@dataclass(frozen=True, slots=True)
class FlushBrakes:
    """What the windows of one cut come to together: newly held for what they take back, and the units each meter adds,
    asked only of meters with a `flush_max`."""

    taken_back_held: int
    adds: Mapping[str, Decimal]


def brake_flush(connection: Connection[Any], brakes: Brakes, *, closed_before: datetime, now: datetime) -> FlushBrakes:
    """Lift what is mended, hold what is taken back too much, and sum up what is added."""
    lift_holds(connection)
    span = {"closed_before": closed_before, "now": now}
    held = _hold_what_is_taken_back(connection, _too_much_taken_back(connection, brakes, span), span)
    return FlushBrakes(held, _added(connection, brakes, span))


def lift_holds(connection: Connection[Any]) -> None:
    """Let the cutter look anew at what is on hold for something that the source no longer says."""
    in_transaction(connection, lambda: queries.execute(connection, "lift_refusals"), name="The look at holds")
    after: tuple[str, str, int] | None = ("", "", 0)
    while after is not None:
        after = in_transaction(connection, partial(_lift_next, connection, after), name="The look at holds")


def _lift_next(connection: Connection[Any], after: tuple[str, str, int]) -> tuple[str, str, int] | None:
    """Look at the next windows on hold; returns the last one's place in the order, or None after the last of all."""
    place = {"after_organization": after[0], "after_meter": after[1], "after_window_id": after[2]}
    held = queries.fetch_dicts(connection, "lock_held_windows", place | {"limit": BATCH_SIZE})
    if not held:
        return None
    params = {"window_ids": [row["window_id"] for row in held], "adding_brakes": ADDING_BRAKES}
    queries.execute(connection, "lift_holds", params, parts=window_parts())
    return held[-1]["organization_id"], held[-1]["meter"], held[-1]["window_id"]


def _too_much_taken_back(connection: Connection[Any], brakes: Brakes, span: dict[str, Any]) -> dict[str, Braked]:
    """Why, by meter, what would be taken back of it must wait."""
    params = span | {"reach_start": reach_start(span["now"]), "windows_min": TAKEN_BACK_WINDOWS_MIN}
    found = queries.fetch(connection, "taken_back_by_meter", TakenBack, params, parts=window_parts())
    braked = {taken.meter: brake_taking_back(taken, brakes.taken_back_percent) for taken in found}
    return {meter: why for meter, why in braked.items() if why is not None}


def _hold_what_is_taken_back(connection: Connection[Any], braked: Mapping[str, Braked], span: dict[str, Any]) -> int:
    """Hold every window of these meters that would be taken back from; returns how many are newly held."""
    newly_held = 0
    after: tuple[datetime, int] = (BEGINNING, 0)
    while braked:
        batch = in_transaction(connection, partial(_hold_next, connection, braked, span, after), name="The brake")
        if batch is None:
            break
        after, windows = batch
        newly_held += windows
    return newly_held


def _hold_next(
    connection: Connection[Any], braked: Mapping[str, Braked], span: dict[str, Any], after: tuple[datetime, int]
) -> tuple[tuple[datetime, int], int] | None:
    """The last window's place in the order and how many are newly held; None when no window is due after `after`."""
    place = {"after_ends_at": after[0], "after_window_id": after[1], "limit": BATCH_SIZE}
    place |= {"meters": list(braked), "organization_id": None}
    due = queries.fetch_dicts(connection, "lock_windows_due_for_cut", span | place)
    if not due:
        return None
    params = {
        "window_ids": [row["window_id"] for row in due],
        "meters": list(braked),
        "details": [why.detail for why in braked.values()],
        "now": span["now"],
    }
    [held] = queries.fetch_dicts(connection, "hold_what_is_taken_back", params, parts=window_parts())
    return (due[-1]["ends_at"], due[-1]["window_id"]), held["windows"]


def _added(connection: Connection[Any], brakes: Brakes, span: dict[str, Any]) -> dict[str, Decimal]:
    capped = {meter: limits for meter, limits in brakes.meters.items() if limits.flush_max is not None}
    if not capped:
        return {}
    params = span | {
        "meters": list(capped),
        "hour_limits": [limits.hour_max for limits in capped.values()],
        "hour_factors": [limits.hour_factor for limits in capped.values()],
        "hours_known": USUAL_HOURS_MIN,
    }
    return {row["meter"]: row["units"] for row in queries.fetch_dicts(connection, "added_by_meter", params)}


def window_parts() -> dict[str, Any]:
    """What statements ask of a window w: what it has stated, whether it falls, whether its rows have moved."""
    parts = {name: queries.part(name) for name in ("stated_of_window", "rows_moved")}
    return parts | {"is_falling": queries.part("is_falling").format(**parts)}
