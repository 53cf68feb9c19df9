"""The brakes: what the named statements of `brakes.sql` mean, in plain words and code.  Here is one meter, a sum."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from billing_pipeline.domain.entries import HoldReason
from billing_pipeline.domain.windows import hour_of
from billing_pipeline_tests.prove.memory_ledger import MemoryLedger, Row, statement
from billing_pipeline_tests.prove.memory_seals import refused
from billing_pipeline_tests.prove.memory_statements import METER, hold, of_window, stated

Params = Mapping[str, Any]


def rows_moved(ledger: MemoryLedger, window: Row) -> bool:
    """No row is left, and the organization has some in the same time, for another customer or in another part."""
    hour: datetime = hour_of(window["starts_at"])
    return window["event_count"] == 0 and any(
        other["organization_id"] == window["organization_id"]
        and other["event_count"] > 0
        and hour <= other["starts_at"] < window["ends_at"]
        and other["ends_at"] > window["starts_at"]
        for other in ledger.windows.values()
    )


def is_falling(ledger: MemoryLedger, window: Row) -> bool:
    """It is worth less than was stated, and less than a person has released; and not because its rows moved."""
    floor = window["released_floor"]
    falls = window["target"] < stated(ledger, window["window_id"]) and (floor is None or window["target"] < floor)
    return falls and not rows_moved(ledger, window)


@statement
def taken_back_by_meter(ledger: MemoryLedger, params: Params) -> list[Row]:
    """Windows that fall, on hold for it or not, beside all that has been stated and may still be changed."""
    reach = [w for w in ledger.windows.values() if w["starts_at"] >= params["reach_start"] and w["sealed_at"] is None]
    falling = [
        w
        for w in reach
        if w["cut_due"]
        and w["hold_reason"] in (None, HoldReason.TAKEN_BACK)
        and w["ends_at"] <= params["closed_before"]
        and is_falling(ledger, w)
    ]
    if len(falling) < params["windows_min"]:
        return []
    sums = [total for w in reach if (total := stated(ledger, w["window_id"])) > 0]
    units = sum(stated(ledger, w["window_id"]) - w["target"] for w in falling)
    taken = {"meter": METER, "windows": len(falling), "units": units}
    return [taken | {"windows_stated": len(sums), "units_stated": sum(sums)}]


@statement
def hold_what_is_taken_back(ledger: MemoryLedger, params: Params) -> list[Row]:
    """Every one of these windows that falls."""
    falling = [w for w in map(ledger.windows.__getitem__, params["window_ids"]) if is_falling(ledger, w)]
    newly_held = sum(w["held_at"] is None for w in falling)
    for window in falling:
        hold(window, HoldReason.TAKEN_BACK, params["now"])
    return [{"windows": newly_held}]


@statement
def added_by_meter(ledger: MemoryLedger, params: Params) -> list[Row]:
    """What one flush would add, without what is held by another brake, released, or under way."""
    [limit] = params["hour_limits"]
    units = 0
    for window in ledger.windows.values():
        entries = of_window(ledger, window["window_id"])
        due = window["cut_due"] and window["hold_reason"] is None and window["sealed_at"] is None
        waits = window["ends_at"] > params["closed_before"] or (window["cut_after"] or params["now"]) > params["now"]
        held = limit is not None and window["target"] > limit
        released = window["released_target"] is not None and window["target"] <= window["released_target"]
        under_way = any(e["state"] in ("pending", "ambiguous") for e in entries)
        if due and not (waits or held or released or under_way):
            units += max(window["target"] - stated(ledger, window["window_id"]), 0)
    return [{"meter": METER, "units": units}] if units else []


@statement
def lock_held_windows(ledger: MemoryLedger, params: Params) -> list[Row]:
    """In the order of their keys."""
    after = (params["after_organization"], params["after_meter"], params["after_window_id"])
    held = sorted(
        (w["organization_id"], METER, w["window_id"]) for w in ledger.windows.values() if w["hold_reason"] is not None
    )
    names = ("organization_id", "meter", "window_id")
    return [dict(zip(names, key, strict=True)) for key in held if key > after][: params["limit"]]


@statement
def lift_holds(ledger: MemoryLedger, params: Params) -> list[Row]:
    """What the source no longer says is looked at anew."""
    for window in map(ledger.windows.__getitem__, params["window_ids"]):
        target, total = window["target"], stated(ledger, window["window_id"])
        if window["hold_reason"] == HoldReason.TAKEN_BACK:
            mended = target >= total or rows_moved(ledger, window)
        elif window["hold_reason"] in params["adding_brakes"]:
            mended = target < window["held_target"] or target <= total
        else:
            mended = target != window["held_target"] or target == total
        if mended:
            window |= {"hold_reason": None, "cut_due": True}
    return []


@statement
def lift_refusals(ledger: MemoryLedger, params: Params) -> list[Row]:
    """What Stripe refused and the source no longer owes."""
    for window in ledger.windows.values():
        owed = window["target"] - stated(ledger, window["window_id"])
        for entry in refused(ledger, window["window_id"]):
            if owed == 0 or (owed > 0) != (entry["value"] > 0):
                entry["hold_reason"] = None
                window["cut_due"] = True
    return []
