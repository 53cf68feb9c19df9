"""Gate and recovery: what the named statements of these stages mean, in plain words and code.

`gate.sql` and `adopt.sql` once more; that the SQL says the same is proven by the long
simulation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from billing_pipeline.domain.windows import HOUR, hour_of
from billing_pipeline_tests.prove.memory_evidence import OPEN, SETTLED, of_lane, settle, write_canary
from billing_pipeline_tests.prove.memory_ledger import FOREVER, MemoryLedger, Row, statement
from billing_pipeline_tests.prove.memory_statements import EVENT_NAME, new_entry, new_window, of_window

Params = Mapping[str, Any]


@statement
def read_identity(ledger: MemoryLedger, params: Params) -> list[Row]:
    """Whose ledger it is, and whether it is frozen."""
    return [dict(ledger.identity)]


@statement
def latest_attempt(ledger: MemoryLedger, params: Params) -> list[Row]:
    """The highest attempt the ledger knows."""
    return [{"attempt_id": max(ledger.attempts, default=0)}]


@statement
def database_identity(ledger: MemoryLedger, params: Params) -> list[Row]:
    """This server hides who it is: the mark and the canaries alone must notice a restore."""
    return [{"system_id": None, "timeline": None}]


@statement
def rebind_database(ledger: MemoryLedger, params: Params) -> list[Row]:
    """Nothing to bind to."""
    return []


@statement
def freeze_ledger(ledger: MemoryLedger, params: Params) -> list[Row]:
    """The first reason stays."""
    if ledger.identity["frozen_reason"] is not None:
        return []
    ledger.identity |= {"frozen_reason": params["reason"], "frozen_at": params["now"]}
    return [ledger.identity]


@statement
def release_ledger(ledger: MemoryLedger, params: Params) -> list[Row]:
    """Sending goes on."""
    ledger.identity |= {"frozen_reason": None, "frozen_at": None}
    return []


@statement
def record_operation(ledger: MemoryLedger, params: Params) -> list[Row]:
    """Who did what."""
    ledger.operations.append({"action": params["action"], "actor": params["actor"], "done_at": params["now"]})
    return []


@statement
def latest_adoption(ledger: MemoryLedger, params: Params) -> list[Row]:
    """The last adoption since the freeze."""
    return [o for o in ledger.operations if o["action"] == "adopt" and o["done_at"] >= params["since"]][-1:]


@statement
def lanes_to_adopt(ledger: MemoryLedger, params: Params) -> list[Row]:
    """Every customer that an organization was ever mapped to, or that an entry names."""
    mapped = {m["stripe_customer_id"] for m in ledger.source.mappings}
    named = {e["stripe_customer_id"] for e in ledger.entries.values()}
    return [{"stripe_customer_id": customer, "event_name": EVENT_NAME} for customer in sorted(mapped | named)]


@statement
def settled_hours(ledger: MemoryLedger, params: Params) -> list[Row]:
    """What is settled per hour, and whether anything is not."""
    hours: dict[Any, list[Row]] = defaultdict(list)
    for entry in of_lane(ledger, params):
        hours[hour_of(entry["slot_at"])].append(entry)
    return [
        {
            "hour_at": hour,
            "settled": sum(e["value"] for e in entries if e["state"] in SETTLED),
            "unsettled": any(e["state"] in (*OPEN, "accepted") for e in entries),
        }
        for hour, entries in hours.items()
    ]


@statement
def entries_by_minute(ledger: MemoryLedger, params: Params) -> list[Row]:
    """One per minute; where a replaced entry shares its minute with another, the other counts."""
    found = sorted(of_lane(ledger, params), key=lambda e: (e["slot_at"], e["state"] != "replaced", e["entry_id"]))
    by_minute = {e["slot_at"]: e for e in found}
    return [
        {name: e[name] for name in ("entry_id", "window_id", "state", "value", "slot_at")} for e in by_minute.values()
    ]


@statement
def settle_by_adoption(ledger: MemoryLedger, params: Params) -> list[Row]:
    """As Stripe shows it; its window is due."""
    for entry_id in params["entry_ids"]:
        settle(ledger, ledger.entries[entry_id], params["state"])
        ledger.entries[entry_id]["hold_reason"] = None
        ledger.windows[ledger.entries[entry_id]["window_id"]]["cut_due"] = True
    return []


def _windows_at(ledger: MemoryLedger, params: Params) -> list[Row]:
    return [
        w
        for w in ledger.windows.values()
        if w["stripe_customer_id"] == params["customer"] and w["starts_at"] <= params["slot_at"] < w["ends_at"]
    ]


@statement
def ensure_window_for_adoption(ledger: MemoryLedger, params: Params) -> list[Row]:
    """A window that the restore took back is made again, worth nothing until it is counted.

    Where the minute is another customer's by now, it is the whole hour, and what it holds is taken back.
    """
    if _windows_at(ledger, params):
        return []
    hour, slot = params["hour_at"], params["slot_at"]
    known = [m for m in ledger.source.mappings if m["stripe_customer_id"] == params["customer"]]
    valid = [m for m in known if m["valid_from"] <= slot < m["valid_until"]]
    # Every customer here is one organization's for ever, so any of its mappings names it.
    start, end = (valid[0]["valid_from"], valid[0]["valid_until"]) if valid else (hour, hour + HOUR)
    key = known[0]["organization_id"], params["customer"], max(hour, start), min(hour + HOUR, end)
    return [new_window(ledger, key, 0, 0)]


@statement
def insert_adopted_entry(ledger: MemoryLedger, params: Params) -> list[Row]:
    """Into the narrowest window of the minute, which is due then."""
    for window in sorted(_windows_at(ledger, params), key=lambda w: (w["ends_at"] - w["starts_at"], w["window_id"]))[
        :1
    ]:
        numbers = [e["sequence"] + 1 for e in of_window(ledger, window["window_id"])]
        names = ("slot_at", "value", "epoch", "identifier")
        new_entry(
            ledger,
            window_id=window["window_id"],
            sequence=max(numbers, default=0),
            stripe_customer_id=params["customer"],
            state="adopted",
            created_at=params["now"],
            retry_at=FOREVER,
            **{name: params[name] for name in names},
        )
        window["cut_due"] = True
    return []


@statement
def canary_lanes(ledger: MemoryLedger, params: Params) -> list[Row]:
    """Where canaries go."""
    customers = {c["stripe_customer_id"] for c in ledger.canaries.values()}
    return [{"stripe_customer_id": customer, "event_name": EVENT_NAME} for customer in customers]


@statement
def canary_slots(ledger: MemoryLedger, params: Params) -> list[Row]:
    """Their minutes."""
    return [{"slot_at": c["slot_at"]} for c in ledger.canaries.values()]


@statement
def adopt_canaries(ledger: MemoryLedger, params: Params) -> list[Row]:
    """Those of the lost timeline become ours."""
    for slot_at, identifier in zip(params["slots"], params["identifiers"], strict=True):
        write_canary(
            ledger,
            stripe_customer_id=params["stripe_customer_id"],
            slot_at=slot_at,
            identifier=identifier,
            started_at=slot_at,
            outcome="ok",
            seen_at=params["now"],
        )
    return []


@statement
def raise_epoch(ledger: MemoryLedger, params: Params) -> list[Row]:
    """No name of the lost timeline is used again."""
    ledger.identity["epoch"] = max(ledger.identity["epoch"], params["passed"]) + 1
    return [{"epoch": ledger.identity["epoch"]}]


@statement
def pass_attempt_numbers(ledger: MemoryLedger, params: Params) -> list[Row]:
    """Nor any of its attempt numbers."""
    ledger.attempt_number = max(params["attempt_id"], ledger.attempt_number, 1)
    return [{"attempt_id": ledger.attempt_number}]
