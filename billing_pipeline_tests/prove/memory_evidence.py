"""Canaries and confirmation: what the named statements of these stages mean, in plain words and code.

`canary.sql`, `confirm.sql` and `read_again.sql` once more; that the SQL says the same is proven by the long simulation.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from billing_pipeline.domain.windows import day_of, hour_of
from billing_pipeline_tests.prove.memory_ledger import MemoryLedger, Row, statement
from billing_pipeline_tests.prove.memory_statements import EVENT_NAME

Params = Mapping[str, Any]
OPEN = ("pending", "ambiguous")
SETTLED = ("confirmed", "adopted")


def of_lane(ledger: MemoryLedger, params: Params) -> list[Row]:
    """A customer's entries with a minute in the span."""
    customer, start, end = params["stripe_customer_id"], params["start"], params["end"]
    return [e for e in ledger.entries.values() if e["stripe_customer_id"] == customer and start <= e["slot_at"] < end]


def write_canary(ledger: MemoryLedger, **given: Any) -> Row | None:
    """One per minute, and one per name; a second one is left out."""
    if any(
        given["slot_at"] == c["slot_at"] or given["identifier"] == c["identifier"] for c in ledger.canaries.values()
    ):
        return None
    canary = {"canary_id": ledger.new_id(), "event_name": EVENT_NAME, "outcome": None, "seen_at": None} | given
    ledger.canaries[canary["canary_id"]] = canary
    return canary


@statement
def insert_canaries(ledger: MemoryLedger, params: Params) -> list[Row]:
    """Committed before they are sent."""
    canary = write_canary(
        ledger,
        stripe_customer_id=params["customer"],
        slot_at=params["slot_at"],
        identifier=params["identifiers"][0],
        started_at=params["now"],
    )
    if canary is None:
        return []
    ledger.write_attempt(canary["identifier"], 1, params["now"])
    names = ("canary_id", "event_name", "stripe_customer_id", "slot_at", "identifier")
    return [{name: canary[name] for name in names}]


@statement
def record_canaries(ledger: MemoryLedger, params: Params) -> list[Row]:
    """What Stripe answered."""
    for canary_id, outcome in zip(params["canary_ids"], params["outcomes"], strict=True):
        ledger.canaries[canary_id]["outcome"] = outcome
    return []


@statement
def unseen_canaries(ledger: MemoryLedger, params: Params) -> list[Row]:
    """Sent, perhaps, and not shown yet."""
    names = ("canary_id", "event_name", "stripe_customer_id", "slot_at", "identifier")
    return [
        {name: c[name] for name in names}
        for c in ledger.canaries.values()
        if c["seen_at"] is None
        and c["started_at"] >= params["since"]
        and c["outcome"] not in ("not_executed", "rejected")
    ]


@statement
def mark_canaries_seen(ledger: MemoryLedger, params: Params) -> list[Row]:
    """Shown."""
    for canary_id in params["canary_ids"]:
        ledger.canaries[canary_id]["seen_at"] = params["now"]
    return []


@statement
def sent_canaries(ledger: MemoryLedger, params: Params) -> list[Row]:
    """How many there can be at Stripe."""
    sent = [c for c in ledger.canaries.values() if c["slot_at"] >= params["start"]]
    customers = {c["stripe_customer_id"] for c in sent}
    return [{"event_name": EVENT_NAME, "stripe_customer_id": c, "sent": len(sent)} for c in customers]


@statement
def canary_lag(ledger: MemoryLedger, params: Params) -> list[Row]:
    """When the latest canary that shows was sent."""
    seen = [c["started_at"] for c in ledger.canaries.values() if c["seen_at"] is not None]
    return [{"event_name": EVENT_NAME, "visible_sent_at": max(seen, default=None)}] if ledger.canaries else []


@statement
def days_to_confirm(ledger: MemoryLedger, params: Params) -> list[Row]:
    """Days of a customer with entries to settle that nobody is sending; the one looked at longest ago first."""
    days: dict[Any, list[Row]] = defaultdict(list)
    for entry in ledger.entries.values():
        under_way = entry["lease_until"] is not None and entry["lease_until"] > params["now"]
        if entry["state"] in ("ambiguous", "accepted") and not under_way:
            days[(entry["stripe_customer_id"], day_of(entry["slot_at"]))].append(entry)
    return [
        {
            "stripe_customer_id": customer,
            "event_name": EVENT_NAME,
            "hours": sorted({hour_of(entry["slot_at"]) for entry in entries}),
        }
        for (customer, _), entries in sorted(days.items())
    ][: params["limit"]]


@statement
def stated_entries(ledger: MemoryLedger, params: Params) -> list[Row]:
    """What Stripe may show."""
    names = ("entry_id", "state", "value", "slot_at", "first_attempt_at", "last_attempt_at")
    found = [e for e in of_lane(ledger, params) if e["state"] in ("ambiguous", "accepted", *SETTLED)]
    return [{name: e[name] for name in names} for e in sorted(found, key=lambda e: e["slot_at"])]


@statement
def count_unsettled(ledger: MemoryLedger, params: Params) -> list[Row]:
    """Sent, and not proved."""
    return [{"entries": sum(e["state"] in ("ambiguous", "accepted") for e in ledger.entries.values())}]


@statement
def store_summaries(ledger: MemoryLedger, params: Params) -> list[Row]:
    """What Stripe showed last."""
    for customer, hour, units in zip(params["customers"], params["hours"], params["observed"], strict=True):
        ledger.summaries[(customer, hour)] = {"hour_at": hour, "observed": units}
    return []


@statement
def shown_before(ledger: MemoryLedger, params: Params) -> list[Row]:
    """What it showed before."""
    return [
        row
        for (customer, hour), row in ledger.summaries.items()
        if customer == params["stripe_customer_id"] and params["start"] <= hour < params["end"]
    ]


def settle(ledger: MemoryLedger, entry: Row, state: str) -> None:
    """By evidence: no worker may record it any more."""
    ledger.move(entry, state)
    entry |= {"lease_until": None, "fence": entry["fence"] + 1}


@statement
def confirm_entries(ledger: MemoryLedger, params: Params) -> list[Row]:
    """Shown: it is settled, and no worker may record it any more."""
    for entry_id in params["entry_ids"]:
        if ledger.entries[entry_id]["state"] in ("ambiguous", "accepted"):
            settle(ledger, ledger.entries[entry_id], "confirmed")
    return []


@statement
def replace_entries(ledger: MemoryLedger, params: Params) -> list[Row]:
    """Absent, and nobody has attempted it since it was judged: its window owes the value again."""
    for entry_id, last_attempt_at in zip(params["entry_ids"], params["last_attempt_ats"], strict=True):
        entry = ledger.entries[entry_id]
        if entry["state"] in ("ambiguous", "accepted") and entry["last_attempt_at"] == last_attempt_at:
            settle(ledger, entry, "replaced")
            ledger.windows[entry["window_id"]]["cut_due"] = True
    return []


@statement
def note_lane(ledger: MemoryLedger, params: Params) -> list[Row]:
    """It has settled entries."""
    customer, slot_at = params["stripe_customer_id"], params["slot_at"]
    lane = ledger.lanes.setdefault(customer, {"latest_slot_at": slot_at, "read_at": params["now"]})
    lane["latest_slot_at"] = max(lane["latest_slot_at"], slot_at)
    return []


@statement
def lanes_to_read_again(ledger: MemoryLedger, params: Params) -> list[Row]:
    """Read long ago, and with entries in reach."""
    return [
        {"stripe_customer_id": customer, "event_name": EVENT_NAME}
        for customer, lane in ledger.lanes.items()
        if lane["read_at"] <= params["read_before"] and lane["latest_slot_at"] >= params["start"]
    ]


@statement
def stated_days(ledger: MemoryLedger, params: Params) -> list[Row]:
    """What Stripe may show per day: each entry that is not settled may show or not."""
    days: dict[Any, list[Row]] = defaultdict(list)
    for entry in of_lane(ledger, params):
        if entry["state"] not in ("pending", "rejected", "replaced"):
            days[day_of(entry["slot_at"])].append(entry)
    return [
        {
            "day_at": day,
            "settled": sum(e["value"] for e in entries if e["state"] in SETTLED),
            "low": sum(e["value"] for e in entries if e["value"] < 0),
            "high": sum(e["value"] for e in entries if e["value"] > 0),
            "unsettled": any(e["state"] not in SETTLED for e in entries),
        }
        for day, entries in days.items()
    ]


@statement
def stated_values(ledger: MemoryLedger, params: Params) -> list[Row]:
    """The entries behind them."""
    found = [e for e in of_lane(ledger, params) if e["state"] not in ("pending", "rejected", "replaced")]
    return [{"slot_at": e["slot_at"], "value": e["value"]} for e in found]


@statement
def lane_was_read(ledger: MemoryLedger, params: Params) -> list[Row]:
    """Its turn is over."""
    ledger.lanes[params["stripe_customer_id"]]["read_at"] = params["now"]
    return []
