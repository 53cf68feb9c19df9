"""Counting and cutting: what the named statements of these stages mean, in plain words and code.

`aggregate.sql` and `cut.sql` decide in SQL which rows are due; each rule stands here once, and that the SQL says the
same is proven by the long simulation.  Billing-period edges and fractions of a
unit are left to it as well: quantities here are whole Stripe units.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from billing_pipeline.domain.entries import HoldReason
from billing_pipeline.domain.reach import reach_end, reach_start
from billing_pipeline.domain.windows import HOUR, hour_of, minute_of
from billing_pipeline_tests.prove.memory_ledger import ConstraintBroken, MemoryLedger, Row, statement

METER = EVENT_NAME = "tokens"
STRIPE_TAKES = timedelta(days=35)
_NOT_STATED = ("rejected", "replaced")
Params = Mapping[str, Any]


def of_window(ledger: MemoryLedger, window_id: int) -> list[Row]:
    """All entries of a window."""
    return [entry for entry in ledger.entries.values() if entry["window_id"] == window_id]


def stated(ledger: MemoryLedger, window_id: int) -> int:
    """What a window's entries come to: those neither rejected nor replaced."""
    return sum(e["value"] for e in of_window(ledger, window_id) if e["state"] not in _NOT_STATED)


def new_window(ledger: MemoryLedger, key: tuple[str, str, datetime, datetime], target: int, events: int) -> Row:
    """Insert a window; it is due, and sealed where a seal covers it."""
    organization_id, customer, starts_at, ends_at = key
    seals = [s for s in ledger.seals if s["stripe_customer_id"] == customer]
    covering = [s["sealed_at"] for s in seals if s["starts_at"] <= starts_at and ends_at <= s["ends_at"]]
    window = {
        "window_id": ledger.new_id(),
        "organization_id": organization_id,
        "stripe_customer_id": customer,
        "starts_at": starts_at,
        "ends_at": ends_at,
        "target": target,
        "event_count": events,
        "cut_due": True,
        "cut_after": None,
        "hold_reason": None,
        "held_at": None,
        "held_target": None,
        "released_target": None,
        "released_floor": None,
        "last_slots_released": False,
        "sealed_at": min(covering, default=None),
    }
    ledger.windows[window["window_id"]] = window
    return window


def key_of(window: Row) -> tuple[str, str, datetime, datetime]:
    """A window's natural key; there is one meter."""
    return (window["organization_id"], window["stripe_customer_id"], window["starts_at"], window["ends_at"])


def aggregate(ledger: MemoryLedger, now: datetime) -> None:
    """Every hour in reach is counted whole and split where the organization's customer changes.

    A window of which no row is left is worth nothing; whichever is worth something else than before is due.
    """
    start, end = reach_start(now), reach_end(now)
    counted: dict[tuple[str, str, datetime, datetime], list[int]] = {}
    for row in ledger.source.rows.values():
        if start <= row["occurred_at"] < end:
            hour = hour_of(row["occurred_at"])
            mapping = ledger.source.mapping_at(row["organization_id"], row["occurred_at"])
            span = max(hour, mapping["valid_from"]), min(hour + HOUR, mapping["valid_until"])
            counted.setdefault((row["organization_id"], mapping["stripe_customer_id"], *span), []).append(
                row["quantity"]
            )
    with ledger.transaction(), ledger.step():
        ledger.begin_to_write()
        known = {key_of(window): window for window in ledger.windows.values()}
        for key, quantities in counted.items():
            if key not in known:
                new_window(ledger, key, sum(quantities), len(quantities))
        for key, window in known.items():
            in_reach_and_counted = window["starts_at"] >= start and window["event_count"] > 0
            if key in counted or in_reach_and_counted:
                quantities = counted.get(key, [])
                window["cut_due"] = window["cut_due"] or window["target"] != sum(quantities)
                window["target"], window["event_count"] = sum(quantities), len(quantities)


@statement
def lock_windows_due_for_cut(ledger: MemoryLedger, params: Params) -> list[Row]:
    """Due, closed, neither held nor sealed nor waiting; in the order they ended."""
    due = [
        window
        for window in ledger.windows.values()
        if window["cut_due"]
        and window["hold_reason"] is None
        and window["sealed_at"] is None
        and (window["cut_after"] is None or window["cut_after"] <= params["now"])
        and window["ends_at"] <= params["closed_before"]
        and (params["meters"] is None or METER in params["meters"])
        and (window["ends_at"], window["window_id"]) > (params["after_ends_at"], params["after_window_id"])
    ]
    return sorted(due, key=lambda w: (w["ends_at"], w["window_id"]))[: params["limit"]]


@statement
def facts_for_cut(ledger: MemoryLedger, params: Params) -> list[Row]:
    """What each window has stated, what of it is sure, and the minutes that are used near it."""
    windows = [ledger.windows[window_id] for window_id in params["window_ids"]]
    return [_facts(ledger, w, params["now"]) for w in sorted(windows, key=lambda w: (w["ends_at"], w["window_id"]))]


def _facts(ledger: MemoryLedger, window: Row, now: datetime) -> Row:
    entries = of_window(ledger, window["window_id"])
    valid = [e for e in entries if e["state"] not in _NOT_STATED]
    assured = sum(e["value"] for e in valid if e["state"] in ("confirmed", "adopted") or e["value"] < 0)
    total = sum(e["value"] for e in valid)
    hour = hour_of(window["starts_at"])
    # The minute lies in the window; or close before it, further before it, or after it.
    start, end = hour - HOUR, min(hour + 2 * HOUR, now)
    close = minute_of(window["starts_at"]) - timedelta(minutes=15)
    customer = window["stripe_customer_id"]
    twice = window["target"] > total and any(
        other["target"] < stated(ledger, other["window_id"])
        for other in ledger.windows.values()
        if other["stripe_customer_id"] == customer
        and other is not window
        and hour <= other["starts_at"] < window["ends_at"]
        and other["ends_at"] > window["starts_at"]
    )
    return {
        "window_id": window["window_id"],
        "organization_id": window["organization_id"],
        "stripe_customer_id": customer,
        "meter": METER,
        "event_name": EVENT_NAME,
        "starts_at": window["starts_at"],
        "ends_at": window["ends_at"],
        "target": window["target"],
        "last_slots_released": window["last_slots_released"],
        "released_target": window["released_target"],
        "units": window["target"],
        "usual_hours": None,
        "usual_median": None,
        "was_held": window["held_at"] is not None,
        "waits_for_a_hold": window["target"] > total
        and any(
            other["hold_reason"] == HoldReason.TAKEN_BACK and other["organization_id"] == window["organization_id"]
            for other in ledger.windows.values()
        ),
        "stated": total,
        "assured": assured,
        "next_sequence": max((e["sequence"] + 1 for e in entries), default=0),
        "open_or_held": any(
            e["state"] in ("pending", "ambiguous") or (e["state"] == "rejected" and e["hold_reason"]) for e in entries
        ),
        "last_cut_at": max((e["created_at"] for e in entries), default=None),
        "sides_due": int(window["target"] != total),
        "must_be_counted_again": False,
        "would_be_billed_twice": twice,
        "span_starts": [window["starts_at"], max(close, start), start, max(window["ends_at"], start)],
        "span_ends": [window["ends_at"], min(window["starts_at"], end), min(close, end), end],
        "used_slots": [
            e["slot_at"]
            for e in ledger.entries.values()
            if e["stripe_customer_id"] == customer and start <= e["slot_at"] < end
        ],
    }


def new_entry(ledger: MemoryLedger, **given: Any) -> Row:
    """Insert an entry as the constraints allow it: one per minute of a customer, one per name, one per number."""
    for other in ledger.entries.values():
        same_minute = (other["stripe_customer_id"], other["slot_at"]) == (given["stripe_customer_id"], given["slot_at"])
        same_number = (other["window_id"], other["sequence"]) == (given["window_id"], given["sequence"])
        if (same_minute and other["state"] != "replaced") or same_number or other["identifier"] == given["identifier"]:
            raise ConstraintBroken(f"entry {given} beside {other}")
    entry = {
        "entry_id": ledger.new_id(),
        "state": "pending",
        "fence": 0,
        "first_attempt_at": None,
        "last_attempt_at": None,
        "lease_until": None,
        "hold_reason": None,
        "retry_at": None,
        "send_by": given["slot_at"] + STRIPE_TAKES,
    } | given
    ledger.entries[entry["entry_id"]] = entry
    return entry


@statement
def insert_entries(ledger: MemoryLedger, params: Params) -> list[Row]:
    """Pending, each with its own minute and name."""
    columns = ("window_ids", "sequences", "customers", "values", "slots", "identifiers")
    names = ("window_id", "sequence", "stripe_customer_id", "value", "slot_at", "identifier")
    rows = [dict(zip(names, row, strict=True)) for row in zip(*(params[column] for column in columns), strict=True)]
    return [new_entry(ledger, **row, epoch=params["epoch"], created_at=params["now"]) for row in rows]


@statement
def settle_windows(ledger: MemoryLedger, params: Params) -> list[Row]:
    """Not due again before something changes; where something was added, a release of taking back is used up."""
    for window_id in params["window_ids"]:
        ledger.windows[window_id] |= {"cut_due": False, "cut_after": None, "held_at": None, "held_target": None}
    for window_id in params["added_window_ids"]:
        ledger.windows[window_id]["released_floor"] = None
    return []


@statement
def defer_windows(ledger: MemoryLedger, params: Params) -> list[Row]:
    """Due, only not before then."""
    for window_id, until in zip(params["window_ids"], params["untils"], strict=True):
        ledger.windows[window_id]["cut_after"] = until
    return []


@statement
def hold_windows(ledger: MemoryLedger, params: Params) -> list[Row]:
    """For a person."""
    for window_id, reason in zip(params["window_ids"], params["reasons"], strict=True):
        hold(ledger.windows[window_id], reason, params["now"])
    return []


def hold(window: Row, reason: str, now: datetime) -> None:
    """Put a window on hold for what it comes to now."""
    window |= {"hold_reason": reason, "held_at": window["held_at"] or now, "held_target": window["target"]}
