"""Holds and seals: what the named statements of `hold.sql` and `seal.sql` mean, in plain words and code."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from billing_pipeline_tests.prove.memory_evidence import OPEN
from billing_pipeline_tests.prove.memory_ledger import MemoryLedger, Row, statement
from billing_pipeline_tests.prove.memory_statements import METER, of_window, stated

Params = Mapping[str, Any]


@statement
def release_windows(ledger: MemoryLedger, params: Params) -> list[Row]:
    """The cutter looks at them again."""
    added = taken_back = 0
    for window_id in params["window_ids"]:
        window = ledger.windows[window_id]
        owed = window["target"] - stated(ledger, window_id)
        added, taken_back = added + max(owed, 0), taken_back + max(-owed, 0)
        window["last_slots_released"] |= window["hold_reason"] == params["last_slots"]
        window |= {"hold_reason": None, "held_at": None, "held_target": None, "cut_due": True}
        window |= {
            "released_target": max(window["released_target"] or 0, window["target"]),
            "released_floor": window["target"],
        }
        for entry in refused(ledger, window_id):
            entry["hold_reason"] = None
    windows = len(params["window_ids"])
    return [{"meter": METER, "windows": windows, "organizations": 1, "added": added, "taken_back": taken_back}]


def refused(ledger: MemoryLedger, window_id: int) -> list[Row]:
    """A window's entries that Stripe refused and nobody has looked at."""
    return [e for e in of_window(ledger, window_id) if e["state"] == "rejected" and e["hold_reason"]]


@statement
def windows_on_hold(ledger: MemoryLedger, params: Params) -> list[Row]:
    """By themselves, or for an entry that Stripe refused."""
    return [
        {"window_id": window_id}
        for window_id in params["window_ids"]
        if ledger.windows[window_id]["hold_reason"] or refused(ledger, window_id)
    ]


@statement
def lock_aggregations(ledger: MemoryLedger, params: Params) -> list[Row]:
    """One step at a time here anyway."""
    return []


@statement
def can_have_usage(ledger: MemoryLedger, params: Params) -> list[Row]:
    """Whether the customer is known."""
    return [{"known": any(m["stripe_customer_id"] == params["stripe_customer_id"] for m in ledger.source.mappings)}]


@statement
def lock_windows_of_period(ledger: MemoryLedger, params: Params) -> list[Row]:
    """Not sealed yet, and in the period or across its edge."""
    return [
        {"window_id": w["window_id"]}
        for w in ledger.windows.values()
        if w["stripe_customer_id"] == params["stripe_customer_id"]
        and w["starts_at"] < params["period_end"]
        and w["ends_at"] > params["period_start"]
        and w["sealed_at"] is None
    ]


@statement
def facts_for_seal(ledger: MemoryLedger, params: Params) -> list[Row]:
    """What each window owes, and what keeps it open."""
    facts = []
    for window in (ledger.windows[window_id] for window_id in params["window_ids"]):
        entries = of_window(ledger, window["window_id"])
        names = ("window_id", "organization_id", "starts_at", "ends_at")
        facts.append(
            {name: window[name] for name in names}
            | {
                "meter": METER,
                "owed": window["target"] - stated(ledger, window["window_id"]),
                "held": bool(window["hold_reason"]) or any(e["hold_reason"] for e in entries),
                "unsettled": any(e["state"] in (*OPEN, "accepted") for e in entries),
            }
        )
    return facts


@statement
def covering_seal(ledger: MemoryLedger, params: Params) -> list[Row]:
    """A seal of the whole period."""
    return [s for s in seals_of_lane(ledger, params) if _covers(s, params)][:1]


def _covers(seal: Row, params: Params) -> bool:
    return bool(seal["starts_at"] <= params["period_start"] and params["period_end"] <= seal["ends_at"])


@statement
def insert_seal(ledger: MemoryLedger, params: Params) -> list[Row]:
    """From when on nothing more is stated."""
    ledger.seals.append(
        {
            "stripe_customer_id": params["stripe_customer_id"],
            "starts_at": params["period_start"],
            "ends_at": params["period_end"],
            "sealed_at": params["now"],
        }
    )
    return []


@statement
def seal_windows(ledger: MemoryLedger, params: Params) -> list[Row]:
    """What is owed stays due, so that it stays in sight."""
    for window_id in params["window_ids"]:
        due = window_id in params["owed_window_ids"]
        ledger.windows[window_id] |= {"sealed_at": params["now"], "cut_after": None, "cut_due": due}
    return []


@statement
def seals_of_lane(ledger: MemoryLedger, params: Params) -> list[Row]:
    """All seals of a customer."""
    return [s for s in ledger.seals if s["stripe_customer_id"] == params["stripe_customer_id"]]
