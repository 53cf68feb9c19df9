"""Sending: what the named statements of `lease.sql` and `submit.sql` mean, in plain words and code.

Which entries are due is decided in SQL; the rule stands here once, and that the SQL says the same is proven by the long
simulation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from billing_pipeline_tests.prove.memory_ledger import FOREVER, MemoryLedger, Row, statement
from billing_pipeline_tests.prove.memory_statements import EVENT_NAME, STRIPE_TAKES

Params = Mapping[str, Any]


@statement
def renew_lease(ledger: MemoryLedger, params: Params) -> list[Row]:
    """Every worker holds the flush lease, however many there are: safety must not need it."""
    return [{name: params[name] for name in ("lock_key", "fence", "expires_at")} | {"holder": "any"}]


@statement
def hold_entries_too_old(ledger: MemoryLedger, params: Params) -> list[Row]:
    """Never sent, and Stripe does not take its minute any more: owed, for a person."""
    old = [
        entry
        for entry in ledger.entries.values()
        if entry["state"] == "pending"
        and entry["hold_reason"] is None
        and entry["slot_at"] <= params["now"] - params["past_max"]
    ]
    for entry in old:
        entry |= {"hold_reason": "older_than_stripe_accepts", "retry_at": FOREVER}
    return old


@statement
def wake_entries(ledger: MemoryLedger, params: Params) -> list[Row]:
    """The wait is over."""
    awake = [e for e in ledger.entries.values() if e["retry_at"] is not None and e["retry_at"] <= params["now"]]
    for entry in awake:
        entry["retry_at"] = None
    return awake


@statement
def claim_due_entries(ledger: MemoryLedger, params: Params) -> list[Row]:
    """Open, awake, nobody's, in its safe time, young enough, and the ledger not frozen: ambiguous from here on."""
    now = params["now"]
    due = [
        entry
        for entry in ledger.entries.values()
        if entry["state"] in ("pending", "ambiguous")
        and entry["retry_at"] is None
        and entry["send_by"] > now
        and ledger.identity["frozen_reason"] is None
        and entry["hold_reason"] is None
        and (entry["lease_until"] is None or entry["lease_until"] <= now)
        and (entry["first_attempt_at"] is None or entry["first_attempt_at"] > now - params["safe_send"])
        and entry["slot_at"] > now - params["past_max"]
    ]
    due = sorted(due, key=lambda e: (e["send_by"], e["entry_id"]))[: params["limit"]]
    return [_attempted(ledger, entry, params) for entry in due]


def _attempted(ledger: MemoryLedger, entry: Row, params: Params) -> Row:
    earlier = [a["outcome"] for a in ledger.attempts.values() if a["entry_id"] == entry["entry_id"]]
    ledger.move(entry, "ambiguous")
    entry |= {
        "fence": entry["fence"] + 1,
        "lease_until": params["now"] + params["entry_lease"],
        "first_attempt_at": entry["first_attempt_at"] or params["now"],
        "last_attempt_at": params["now"],
    }
    ledger.attempt_number += 1
    attempt = {"attempt_id": ledger.attempt_number, "entry_id": entry["entry_id"], "fence": entry["fence"]}
    ledger.attempts[attempt["attempt_id"]] = attempt | {"outcome": None}
    ledger.write_attempt(entry["identifier"], entry["fence"], params["now"])
    copied = {name: entry[name] for name in ("stripe_customer_id", "value", "identifier")}
    return (
        attempt
        | copied
        | {
            "organization_id": ledger.windows[entry["window_id"]]["organization_id"],
            "event_name": EVENT_NAME,
            "timestamp": entry["slot_at"],
            "earlier_unknown": entry["fence"] > 1 and any(outcome != "not_executed" for outcome in earlier),
        }
    )


@statement
def record_outcome(ledger: MemoryLedger, params: Params) -> list[Row]:
    """Where the fence is still this claim's; proof that nothing was executed sets the first attempt back."""
    state = params["state"]
    for attempt_id, entry_id, fence in zip(params["attempt_ids"], params["entry_ids"], params["fences"], strict=True):
        entry = ledger.entries[entry_id]
        if entry["fence"] != fence:
            continue
        ledger.move(entry, state)
        entry["lease_until"] = None
        ledger.attempts[attempt_id]["outcome"] = params["outcome"]
        if state == "pending":
            entry["first_attempt_at"] = None
        if state == "rejected":
            entry["hold_reason"] = "rejected_by_stripe"
            ledger.windows[entry["window_id"]]["cut_due"] = True
    return []


@statement
def put_back_entries(ledger: MemoryLedger, params: Params) -> list[Row]:
    """Still open: it waits, and must be sent by its safe time."""
    for entry_id, fence, retry_at in zip(params["entry_ids"], params["fences"], params["retry_ats"], strict=True):
        entry = ledger.entries[entry_id]
        if entry["fence"] == fence:
            latest = entry["slot_at"] + STRIPE_TAKES
            first = entry["first_attempt_at"]
            entry |= {"retry_at": retry_at, "send_by": min(latest, first + params["safe_send"]) if first else latest}
    return []
