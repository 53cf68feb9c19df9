"""Stage 5: let Stripe's own summaries decide what became of every entry.

An hour that agrees as a whole proves all its entries at once; where it does not, or where an entry's fate is unknown,
the entry's own minute decides.  Absence counts only long after the last attempt and behind a later canary that shows:
then the entry is provably not counted, and the window owes its value again.
A share of the reads goes to days that were settled before (`read_again`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import Any

from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.database.transactions import in_transaction
from billing_pipeline.domain.entries import EntryState, Verdict, judge_evidence
from billing_pipeline.domain.protocol import ProtocolTimes
from billing_pipeline.domain.windows import DAY, HOUR, day_of, hour_of
from billing_pipeline.errors import LedgerFrozen, StripeRefused
from billing_pipeline.usage.canary import look_for_canaries
from billing_pipeline.usage.gate import freeze
from billing_pipeline.usage.read_again import SHARE, lanes_due, note_lane, read_lane_again
from billing_pipeline.usage.shown_hours import Lane, Possible, SummaryReader, possible_hours, store_shown_hours


@dataclass(frozen=True, slots=True)
class ConfirmReport:
    """What one confirmation run proved, and what still waits for Stripe's summaries."""

    confirmed: int = 0
    units_confirmed: int = 0
    replaced: int = 0
    units_replaced: int = 0
    waiting: int = 0
    lanes_read_again: int = 0
    reads: int = 0


@dataclass(frozen=True, slots=True)
class StatedEntry:
    """An entry that Stripe may show in its minute."""

    entry_id: int
    state: str
    value: int
    slot_at: datetime
    first_attempt_at: datetime | None
    last_attempt_at: datetime | None


@dataclass(frozen=True, slots=True)
class Judged:
    """An entry with the verdict on it and what the verdict rests on."""

    entry: StatedEntry
    verdict: Verdict
    granularity: str
    canary_sent_at: datetime | None


class ReadBudget:
    """A reader that counts; nothing new is started once the reads that may be spent on it are spent."""

    def __init__(self, reader: SummaryReader, reads_max: int) -> None:
        self._reader = reader
        self._reads_max = reads_max
        self.reads = 0

    def spent(self, *, kept: int = 0) -> bool:
        """No read is left but those kept for something else."""
        return self.reads >= self._reads_max - kept

    def days(self, event_name: str, customer: str, start: datetime, end: datetime) -> dict[datetime, int]:
        """One read."""
        self.reads += 1
        return self._reader.days(event_name, customer, start, end)

    def hours(self, event_name: str, customer: str, start: datetime, end: datetime) -> dict[datetime, int]:
        """One read."""
        self.reads += 1
        return self._reader.hours(event_name, customer, start, end)

    def minute(self, event_name: str, customer: str, minute: datetime) -> int:
        """One read."""
        self.reads += 1
        return self._reader.minute(event_name, customer, minute)


def confirm(
    connection: Connection[Any],
    reader: SummaryReader,
    *,
    times: ProtocolTimes,
    reads_max: int,
    clock: Callable[[], datetime],
) -> ConfirmReport:
    """Look at every day of a lane with entries to settle, the one looked at longest ago first, then at settled ones.

    Raises `LedgerFrozen` when a minute shows something other than nothing or its one entry, or an hour what no entries
    add up to, and `StripeRefused`, after all the others, when a day could not be read.
    """
    budget = ReadBudget(reader, reads_max)
    look_for_canaries(connection, budget, now=clock())
    watermarks = {row["event_name"]: row["visible_sent_at"] for row in queries.fetch_dicts(connection, "canary_lag")}
    report = ConfirmReport()
    refusals: list[StripeRefused] = []
    settled_lanes = lanes_due(connection, limit=reads_max, now=clock())
    kept = min(len(settled_lanes), reads_max // SHARE)
    for day in queries.fetch_dicts(connection, "days_to_confirm", {"limit": reads_max, "now": clock()}):
        if budget.spent(kept=kept):
            break
        lane = (day["stripe_customer_id"], day["event_name"])
        try:
            judged = _judge_day(connection, budget, lane, day["hours"], times, watermarks.get(day["event_name"]), clock)
        except StripeRefused as exc:
            # One customer's or meter's trouble must not keep the others from being proved.
            refusals.append(exc)
            continue
        in_transaction(connection, partial(_store, connection, lane, judged, clock()), name="The confirmation")
        report = _add(report, judged)
    lanes_read_again = 0
    for lane in settled_lanes:
        if budget.spent():
            break
        try:
            read_lane_again(connection, budget, lane, now=clock())
        except StripeRefused as exc:
            refusals.append(exc)
            continue
        lanes_read_again += 1
    if refusals:
        raise StripeRefused(f"{len(refusals)} of the days to confirm could not be read; the first: {refusals[0]}")
    waiting = queries.fetch_dicts(connection, "count_unsettled")[0]["entries"]
    return replace(report, waiting=waiting, lanes_read_again=lanes_read_again, reads=budget.reads)


def _judge_day(
    connection: Connection[Any],
    reader: SummaryReader,
    lane: Lane,
    hours: list[datetime],
    times: ProtocolTimes,
    canary_sent_at: datetime | None,
    clock: Callable[[], datetime],
) -> list[Judged]:
    customer, event_name = lane
    # The whole day costs no more than the hours in question, and shows who else writes to them.
    start = day_of(min(hours))
    shown = reader.hours(event_name, customer, start, start + DAY)
    observed_at = clock()
    entries = _entries(connection, lane, start)
    store_shown_hours(connection, lane, dict.fromkeys(hours, 0) | shown, _possible(entries), now=observed_at)
    judged: list[Judged] = []
    for hour in hours:
        units = shown.get(hour, 0)
        of_hour = list(
            _judge_hour(connection, reader, lane, entries.get(hour, []), units, times, canary_sent_at, observed_at)
        )
        if any(found.granularity == "minute" and found.verdict is Verdict.CONFIRMED for found in of_hour):
            # The minutes show more than the hour did a moment ago; the stored hour must not lag behind the proof.
            again = reader.hours(event_name, customer, hour, hour + HOUR)
            possible = _possible(_entries(connection, lane, start))
            store_shown_hours(connection, lane, {hour: again.get(hour, 0)}, possible, now=clock())
        judged += of_hour
    return judged


def _judge_hour(
    connection: Connection[Any],
    reader: SummaryReader,
    lane: Lane,
    entries: list[StatedEntry],
    observed: int,
    times: ProtocolTimes,
    canary_sent_at: datetime | None,
    observed_at: datetime,
) -> Iterator[Judged]:
    undecided = [entry for entry in entries if entry.state in (EntryState.AMBIGUOUS, EntryState.ACCEPTED)]
    if _proves_all(entries, observed):
        yield from (Judged(entry, Verdict.CONFIRMED, "hour", None) for entry in undecided)
        return
    for entry in undecided:
        units = _minute(connection, reader, lane, entry, observed_at)
        verdict = judge_evidence(
            state=EntryState(entry.state),
            shown=units != 0,
            first_attempt_at=entry.first_attempt_at,
            last_attempt_at=entry.last_attempt_at,
            observed_at=observed_at,
            canary_sent_at=canary_sent_at,
            times=times,
        )
        yield Judged(entry, verdict, "minute", canary_sent_at)


def _proves_all(entries: list[StatedEntry], observed: int) -> bool:
    """Whether the hour's sum leaves no doubt: all values of one sign, none of them unknown."""
    values = [entry.value for entry in entries]
    one_sign = all(value > 0 for value in values) or all(value < 0 for value in values)
    certain = all(entry.state != EntryState.AMBIGUOUS for entry in entries)
    return one_sign and certain and observed == sum(values)


def _minute(connection: Connection[Any], reader: SummaryReader, lane: Lane, entry: StatedEntry, now: datetime) -> int:
    customer, event_name = lane
    units = reader.minute(event_name, customer, entry.slot_at)
    if units not in (0, entry.value):
        reason = (
            f"Stripe shows {units} units of {event_name} for {customer} at {entry.slot_at:%Y-%m-%d %H:%M} UTC, "
            f"where the ledger sent {entry.value}"
        )
        freeze(connection, reason, now=now)
        raise LedgerFrozen(f"{reason}. Sending is frozen until someone has looked.")
    return units


def _store(connection: Connection[Any], lane: Lane, judged: list[Judged], now: datetime) -> None:
    confirmed = [found for found in judged if found.verdict is Verdict.CONFIRMED]
    if confirmed:
        note_lane(connection, lane, max(found.entry.slot_at for found in confirmed), now=now)
    replaced = [found for found in judged if found.verdict is Verdict.REPLACED]
    queries.execute(
        connection,
        "confirm_entries",
        {
            "entry_ids": [found.entry.entry_id for found in confirmed],
            "granularities": [found.granularity for found in confirmed],
            "now": now,
        },
    )
    queries.execute(
        connection,
        "replace_entries",
        {
            "entry_ids": [found.entry.entry_id for found in replaced],
            "last_attempt_ats": [found.entry.last_attempt_at for found in replaced],
            "canary_sent_ats": [found.canary_sent_at for found in replaced],
            "now": now,
        },
    )


def _add(report: ConfirmReport, judged: list[Judged]) -> ConfirmReport:
    def values(verdict: Verdict) -> list[int]:
        return [found.entry.value for found in judged if found.verdict is verdict]

    confirmed, replaced = values(Verdict.CONFIRMED), values(Verdict.REPLACED)
    return ConfirmReport(
        report.confirmed + len(confirmed),
        report.units_confirmed + sum(confirmed),
        report.replaced + len(replaced),
        report.units_replaced + sum(replaced),
    )


def _entries(connection: Connection[Any], lane: Lane, day_at: datetime) -> dict[datetime, list[StatedEntry]]:
    customer, event_name = lane
    params = {"stripe_customer_id": customer, "event_name": event_name, "start": day_at, "end": day_at + DAY}
    found: dict[datetime, list[StatedEntry]] = defaultdict(list)
    for entry in queries.fetch(connection, "stated_entries", StatedEntry, params):
        found[hour_of(entry.slot_at)].append(entry)
    return found


def _possible(entries: dict[datetime, list[StatedEntry]]) -> dict[datetime, Possible]:
    return possible_hours((entry.slot_at, entry.value) for of_hour in entries.values() for entry in of_hour)
