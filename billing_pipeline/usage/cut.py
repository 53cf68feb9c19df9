"""Stage 3: turn the difference between a closed window's target and what was stated into a ledger entry.

`brakes.py` has looked at all of them together before, and each is asked here whether its own amount can be right.

The window's row lock serializes cutters; at most one entry of a window is open, so the next delta waits until the
outcome of the last is known.  An entry's minute lies in its window's billing period, and what a period was told before
its edge was known is taken back inside that period.  `domain/cuts.py` decides; what waits stays due.  Nothing is sent
here.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any

from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.database.transactions import in_transaction
from billing_pipeline.domain.brakes import Braked, Brakes, MeterBrakes, UsualHour, brake_adding
from billing_pipeline.domain.cuts import Cut, Wait, decide_cut
from billing_pipeline.domain.entries import HoldReason
from billing_pipeline.domain.identifiers import entry_identifier
from billing_pipeline.domain.windows import MINUTE
from billing_pipeline.usage.brakes import BATCH_SIZE, BEGINNING, brake_flush
from billing_pipeline.usage.gate import Identity


@dataclass(frozen=True, slots=True)
class CutReport:
    """What one cut stated: entries, the units they add and take back, windows that wait for their next correction or
    for evidence, windows that wait behind a hold of their organization, and windows that must wait for a person since
    this cut, by reason."""

    entries: int = 0
    units_added: int = 0
    units_taken_back: int = 0
    windows_waiting: int = 0
    windows_behind_holds: int = 0
    held: Mapping[str, int] = field(default_factory=dict)

    @property
    def windows_held(self) -> int:
        """For whichever reason."""
        return sum(self.held.values())


@dataclass(frozen=True, slots=True)
class WindowFacts:
    """A locked window, and what its entries have stated so far on one side of the billing-period edges near it.

    `target`, `stated` and `assured` are those of the side to state next; `sides_due` is how many differ.
    `units` is what the hour shows by itself, exact, to be compared with the usual one of its organization.
    The spans are where the entry's minute may be, the best first; each may be empty.
    """

    window_id: int
    organization_id: str
    stripe_customer_id: str
    meter: str
    event_name: str
    starts_at: datetime
    ends_at: datetime
    target: Decimal
    units: Decimal
    usual_hours: int | None
    usual_median: Decimal | None
    last_slots_released: bool
    released_target: Decimal | None
    was_held: bool
    waits_for_a_hold: bool
    stated: Decimal
    assured: Decimal
    next_sequence: int
    open_or_held: bool
    last_cut_at: datetime | None
    sides_due: int
    must_be_counted_again: bool
    would_be_billed_twice: bool
    span_starts: list[datetime]
    span_ends: list[datetime]
    used_slots: list[datetime]


@dataclass(frozen=True, slots=True)
class _Rules:
    """What one cut goes by, the same for all its windows."""

    identity: Identity
    closed_before: datetime
    past_max: timedelta
    brakes: Brakes
    adds: Mapping[str, Decimal]
    now: datetime
    organization_id: str | None


def cut(
    connection: Connection[Any],
    *,
    identity: Identity,
    closed_before: datetime,
    past_max: timedelta,
    brakes: Brakes,
    clock: Callable[[], datetime],
    organization_id: str | None = None,
) -> CutReport:
    """Cut every window that ended before `closed_before` and that no brake holds, in batches of one transaction each.

    Of one organization, where it is named.
    """
    now = clock()
    flush = brake_flush(connection, brakes, closed_before=closed_before, now=now)
    rules = _Rules(identity, closed_before, past_max, brakes, flush.adds, now, organization_id)
    held = {str(HoldReason.TAKEN_BACK): flush.taken_back_held} if flush.taken_back_held else {}
    report, waited = _cut_due(connection, rules, CutReport(held=held))
    if waited:
        # What they waited for is taken back by now, or waits itself for an answer or a person.
        report, _ = _cut_due(connection, rules, replace(report, windows_behind_holds=0))
    return report


def _cut_due(connection: Connection[Any], rules: _Rules, report: CutReport) -> tuple[CutReport, bool]:
    """Cut what is due once; also returns whether a window waited for another to take back first."""
    any_waited = False
    after: tuple[datetime, int] = (BEGINNING, 0)
    while True:
        # Partial and not a closure: a try that is broken off must leave the report as it was.
        batch = in_transaction(connection, partial(_cut_next, connection, rules, after, report), name="The cut")
        if batch is None:
            return report, any_waited
        after, report, waited = batch
        any_waited = any_waited or waited


def _cut_next(
    connection: Connection[Any], rules: _Rules, after: tuple[datetime, int], report: CutReport
) -> tuple[tuple[datetime, int], CutReport, bool] | None:
    """The last window's place in the order, the report so far, and whether a window waited for another to take back;
    None when no window is due after `after`."""
    due = queries.fetch_dicts(
        connection,
        "lock_windows_due_for_cut",
        {
            "now": rules.now,
            "closed_before": rules.closed_before,
            "organization_id": rules.organization_id,
            "meters": None,
            "after_ends_at": after[0],
            "after_window_id": after[1],
            "limit": BATCH_SIZE,
        },
    )
    if not due:
        return None
    last = (due[-1]["ends_at"], due[-1]["window_id"])
    return last, *_cut_batch(connection, [row["window_id"] for row in due], rules, report)


def _cut_batch(
    connection: Connection[Any], window_ids: list[int], rules: _Rules, report: CutReport
) -> tuple[CutReport, bool]:
    facts = queries.fetch(connection, "facts_for_cut", WindowFacts, {"window_ids": window_ids, "now": rules.now})
    entries: list[tuple[WindowFacts, Cut]] = []
    held: list[tuple[WindowFacts, Braked]] = []
    deferred: list[tuple[int, datetime]] = []
    waiting = 0
    behind_holds = 0
    settled: list[int] = []
    taken: dict[tuple[str, str], list[datetime]] = defaultdict(list)
    for window in facts:
        if window.open_or_held or window.would_be_billed_twice:
            continue
        if window.waits_for_a_hold:
            behind_holds += 1
            continue
        # Two windows of one customer and hour may be in one batch; the minutes of the first are not in `facts`.
        lane = taken[(window.stripe_customer_id, window.event_name)]
        decision = _decide(window, lane, rules)
        match decision:
            case Braked():
                held.append((window, decision))
                continue
            case Wait():
                waiting += 1
                if decision.until is not None:
                    deferred.append((window.window_id, decision.until))
                continue
            case Cut():
                if window.must_be_counted_again:
                    continue
                entries.append((window, decision))
                lane.append(decision.slot_at)
        if window.sides_due <= 1:
            settled.append(window.window_id)
    _insert(connection, entries, rules.identity, rules.now)
    added = [window.window_id for window, decision in entries if decision.value > 0]
    queries.execute(connection, "settle_windows", {"window_ids": settled, "added_window_ids": added})
    queries.execute(
        connection, "defer_windows", {"window_ids": [i for i, _ in deferred], "untils": [at for _, at in deferred]}
    )
    _hold(connection, held, rules.now)
    values = [decision.value for _, decision in entries]
    total = CutReport(
        entries=report.entries + len(entries),
        units_added=report.units_added + sum(value for value in values if value > 0),
        units_taken_back=report.units_taken_back - sum(value for value in values if value < 0),
        windows_waiting=report.windows_waiting + waiting,
        windows_behind_holds=report.windows_behind_holds + behind_holds,
        # Not those that were looked at anew and are held still.
        held=Counter(report.held) + Counter(str(why.reason) for window, why in held if not window.was_held),
    )
    return total, any(window.would_be_billed_twice for window in facts)


def _decide(window: WindowFacts, lane: list[datetime], rules: _Rules) -> Cut | Wait | Braked | None:
    """The next entry, in the first span that has a minute left, if no brake holds it."""
    if (braked := _brake(window, rules)) is not None:
        return braked
    decision: Cut | Wait | HoldReason | None = None
    for start, end in zip(window.span_starts, window.span_ends, strict=True):
        decision = decide_cut(
            target=int(window.target),
            stated=int(window.stated),
            assured=int(window.assured),
            next_sequence=window.next_sequence,
            used_slots={slot for slot in (*window.used_slots, *lane) if start <= slot <= end - MINUTE},
            last_cut_at=window.last_cut_at,
            last_slots_released=window.last_slots_released,
            starts_at=start,
            ends_at=end,
            now=rules.now,
            past_max=rules.past_max,
            epoch=rules.identity.epoch,
        )
        if decision is not HoldReason.NO_SLOT:
            break
    return Braked(decision, "") if isinstance(decision, HoldReason) else decision


def _brake(window: WindowFacts, rules: _Rules) -> Braked | None:
    usual = None
    if window.usual_hours is not None and window.usual_median is not None:
        usual = UsualHour(window.usual_hours, window.usual_median)
    return brake_adding(
        target=int(window.target),
        stated=int(window.stated),
        units=window.units,
        usual=usual,
        released_target=None if window.released_target is None else int(window.released_target),
        brakes=rules.brakes.meters.get(window.meter, MeterBrakes()),
        flush_adds=rules.adds.get(window.meter),
    )


def _hold(connection: Connection[Any], held: list[tuple[WindowFacts, Braked]], now: datetime) -> None:
    params = {
        "window_ids": [window.window_id for window, _ in held],
        "reasons": [str(why.reason) for _, why in held],
        "details": [why.detail or None for _, why in held],
        "now": now,
    }
    queries.execute(connection, "hold_windows", params)


def _insert(
    connection: Connection[Any],
    entries: list[tuple[WindowFacts, Cut]],
    identity: Identity,
    now: datetime,
) -> None:
    if not entries:
        return
    queries.execute(
        connection,
        "insert_entries",
        {
            "epoch": identity.epoch,
            "now": now,
            "window_ids": [window.window_id for window, _ in entries],
            "sequences": [decision.sequence for _, decision in entries],
            "customers": [window.stripe_customer_id for window, _ in entries],
            "event_names": [window.event_name for window, _ in entries],
            "values": [decision.value for _, decision in entries],
            "slots": [decision.slot_at for _, decision in entries],
            "identifiers": [
                entry_identifier(
                    stripe_account=identity.stripe_account,
                    livemode=identity.livemode,
                    event_name=window.event_name,
                    organization_id=window.organization_id,
                    stripe_customer_id=window.stripe_customer_id,
                    starts_at=window.starts_at,
                    ends_at=window.ends_at,
                    sequence=decision.sequence,
                    epoch=identity.epoch,
                )
                for window, decision in entries
            ],
        },
    )
