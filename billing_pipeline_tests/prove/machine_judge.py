"""What the state machine requires: of every moment, and of the end.

Written from the design and not from the code: the states' arrows, sums per entry and window, and the truth of the
rows per customer and hour, which is one organization's.  What Stripe counted is read from the simulator's journal.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from billing_pipeline_tests.prove.memory_flow import GRACE, MemoryFlow
from billing_pipeline_tests.prove.memory_ledger import Row

HOUR = timedelta(hours=1)
STRIPE_TAKES = timedelta(days=35)
TOO_OLD = "older_than_stripe_accepts"
BRAKED = {"more_than_the_meters_hour_max", "more_than_the_meters_flush_max", "too_much_taken_back_at_once"}
ARROWS = {
    "pending": {"ambiguous", "replaced"},
    "ambiguous": {"pending", "accepted", "confirmed", "rejected", "replaced"},
    "accepted": {"confirmed", "rejected", "replaced"},
}
OPEN = {"pending", "ambiguous", "accepted"}
SETTLED = {"confirmed", "adopted"}
Cell = tuple[str, datetime]
"""Customer and UTC hour; every customer is one organization's."""


def broken_rules(flow: MemoryFlow) -> list[str]:
    """Everything that is not as it must be at any moment."""
    found = list(flow.stripe.wrong)
    found += [f"an entry went from {old} to {new}" for old, new in flow.witness.moves if new not in ARROWS.get(old, ())]
    flow.witness.moves.clear()
    if not flow.lost_something:
        # What a restored ledger has forgotten it cannot account for, until it is recovered.
        found += [*_entries(flow), *_forgotten(flow), *_windows(flow)]
    return found


def _entries(flow: MemoryFlow) -> Iterator[str]:
    for entry in flow.ledger.entries.values():
        if _place_of(entry) in flow.stripe.cancelled:
            continue
        shown = flow.stripe.counted.get(_place_of(entry))
        state, value = entry["state"], entry["value"]
        if state in SETTLED and shown != value:
            yield f"{state} {value}, but Stripe counted {shown}: {entry}"
        if state in OPEN and shown not in (None, value):
            yield f"{state} {value}, but Stripe counted {shown}: {entry}"
        if state not in OPEN | SETTLED and shown is not None and not _is_stated(flow, entry):
            yield f"{state} {value}, but Stripe counted {shown}: {entry}"


def _is_stated(flow: MemoryFlow, gone: Row) -> bool:
    """Another entry stands for the same minute: recovery put it there."""
    return any(
        e["slot_at"] == gone["slot_at"]
        and e["stripe_customer_id"] == gone["stripe_customer_id"]
        and e["state"] in OPEN | SETTLED
        for e in flow.ledger.entries.values()
    )


def cancelled_minutes(flow: MemoryFlow) -> set[tuple[str, datetime]]:
    """What Stripe counted, the ledger has forgotten and no hour shows, because it adds up to nothing there."""
    by_hour: dict[Cell, dict[tuple[str, datetime], int]] = {}
    for (customer, at), units in _unknown(flow).items():
        cell = customer, at.replace(minute=0)
        by_hour.setdefault(cell, {})[customer, at] = units
    return {place for places in by_hour.values() if not sum(places.values()) for place in places}


def _unknown(flow: MemoryFlow) -> dict[tuple[str, datetime], int]:
    known = {_place_of(entry) for entry in flow.ledger.entries.values()} | flow.stripe.cancelled
    nobody = flow.stripe.canary_customer
    return {place: n for place, n in flow.stripe.counted.items() if place[0] != nobody and place not in known}


def _place_of(entry: Row) -> tuple[str, datetime]:
    return entry["stripe_customer_id"], entry["slot_at"]


def _forgotten(flow: MemoryFlow) -> Iterator[str]:
    for (customer, at), units in _unknown(flow).items():
        yield f"Stripe counted {units} for {customer} at {at:%m-%d %H:%M}, of which the ledger knows nothing"


def _windows(flow: MemoryFlow) -> Iterator[str]:
    by_window: dict[int, list[Row]] = {}
    for entry in flow.ledger.entries.values():
        by_window.setdefault(entry["window_id"], []).append(entry)
    for window_id, entries in by_window.items():
        if any(_place_of(e) in flow.stripe.cancelled for e in entries):
            continue
        states = [e["state"] for e in entries]
        stated = [e for e in entries if e["state"] in OPEN | SETTLED]
        counted = [flow.stripe.counted.get(_place_of(e)) for e in stated]
        open_units = sum(e["value"] for e, units in zip(stated, counted, strict=True) if units is None)
        if sum(e["value"] for e in stated) != open_units + sum(units or 0 for units in counted):
            yield f"window {window_id}: counted and open are not what was stated: {entries}"
        # What recovery found at Stripe is as it is.
        if "adopted" not in states and sum(e["value"] for e in stated if e["value"] < 0 or e["state"] in SETTLED) < 0:
            yield f"window {window_id} may come to less than nothing: {entries}"
        if sum(state in ("pending", "ambiguous") for state in states) > 1:
            yield f"window {window_id} has more than one open entry: {entries}"
        if flow.ledger.windows[window_id]["sealed_at"] is not None and OPEN & set(states):
            yield f"window {window_id} is sealed and has an open entry: {entries}"


def is_quiet(flow: MemoryFlow) -> bool:
    """Nothing is under way and nothing due that could be stated; all usage lies in closed hours."""
    latest = max((row["occurred_at"] for row in flow.source.rows.values()), default=flow.now - 2 * HOUR)
    under_way = any(e["state"] in OPEN and e["hold_reason"] is None for e in flow.ledger.entries.values())
    due = any(
        w["cut_due"] and w["hold_reason"] is None and w["sealed_at"] is None and not _waits_for_ever(flow, w)
        for w in flow.ledger.windows.values()
    )
    # Somebody looks at what was just braked, and then it goes.
    braked = any(w["hold_reason"] in BRAKED for w in flow.ledger.windows.values())
    closed = flow.now - GRACE >= latest.replace(minute=0, second=0, microsecond=0) + HOUR
    return closed and not (flow.frozen or under_way or due or braked)


@dataclass(frozen=True)
class Difference:
    """A customer's hour that Stripe has not counted as the rows say."""

    customer: str
    hour: datetime
    said: int
    counted: int
    owed: int

    @property
    def missing(self) -> int:
        """Units that Stripe lacks and the ledger does not name as owed; below zero, what it has too many."""
        return self.said - self.counted - self.owed

    def __str__(self) -> str:
        return (
            f"{self.customer} {self.hour:%m-%d %H}: the rows say {self.said}, Stripe counted {self.counted}, "
            f"and {self.owed} are owed by name"
        )


def differences_at_rest(flow: MemoryFlow) -> list[Difference]:
    """Every cell in which Stripe lacks or has units that the ledger does not name as owed."""
    truth, counted, named = _truth(flow), _counted(flow), _named(flow)
    for cell in truth.keys() | counted.keys() | {_cell_of(w) for w in flow.ledger.windows.values()}:
        if _beyond_reach(flow, cell[1]):
            # Rows that changed when no window of theirs could be counted any more.
            named[cell] += truth[cell] - sum(w["target"] for w in flow.ledger.windows.values() if _cell_of(w) == cell)
    cells = truth.keys() | counted.keys() | named.keys()
    found = [Difference(*cell, truth[cell], counted[cell], named[cell]) for cell in sorted(cells)]
    return [difference for difference in found if difference.missing]


def _truth(flow: MemoryFlow) -> Counter[Cell]:
    truth: Counter[Cell] = Counter()
    for row in flow.source.rows.values():
        mapping = flow.source.mapping_at(row["organization_id"], row["occurred_at"])
        truth[mapping["stripe_customer_id"], row["occurred_at"].replace(minute=0, second=0, microsecond=0)] += row[
            "quantity"
        ]
    return truth


def _counted(flow: MemoryFlow) -> Counter[Cell]:
    counted: Counter[Cell] = Counter()
    for (customer, at), units in flow.stripe.counted.items():
        if customer != flow.stripe.canary_customer:
            counted[customer, at.replace(minute=0)] += units
    return counted


def _named(flow: MemoryFlow) -> Counter[Cell]:
    """What the ledger holds as too old for Stripe, or leaves owed under a seal; nothing else may be missing."""
    named: Counter[Cell] = Counter()
    for window in flow.ledger.windows.values():
        entries = [e for e in flow.ledger.entries.values() if e["window_id"] == window["window_id"]]
        stated = sum(e["value"] for e in entries if e["state"] in OPEN | SETTLED)
        old = window["starts_at"] <= flow.now - STRIPE_TAKES + 2 * HOUR
        if window["sealed_at"] is not None or (window["hold_reason"] == TOO_OLD and old):
            named[_cell_of(window)] += window["target"] - stated
        named[_cell_of(window)] += sum(e["value"] for e in entries if _never_goes(e)) if old else 0
        if old and _waits_for_ever(flow, window):
            named[_cell_of(window)] += window["target"] - stated
    return named


def _never_goes(entry: Row) -> bool:
    return entry["state"] == "pending" and entry["hold_reason"] == TOO_OLD


def _waits_for_ever(flow: MemoryFlow, window: Row) -> bool:
    """Its own last entry, or another window of the hour that must be taken back first, is what Stripe takes no more."""
    free = window["hold_reason"] is None and window["sealed_at"] is None and window["cut_due"]
    if not free:
        return False
    if any(_never_goes(e) for e in flow.ledger.entries.values() if e["window_id"] == window["window_id"]):
        return True
    return any(
        other is not window and _cell_of(other) == _cell_of(window) and other["hold_reason"] == TOO_OLD
        for other in flow.ledger.windows.values()
    )


def _cell_of(window: Row) -> Cell:
    return window["stripe_customer_id"], window["starts_at"].replace(minute=0, second=0, microsecond=0)


def _beyond_reach(flow: MemoryFlow, hour: datetime) -> bool:
    return hour <= flow.now - STRIPE_TAKES + HOUR
