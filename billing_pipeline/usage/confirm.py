"""Stage 5: let Stripe's own summaries decide what became of every entry.

An hour that agrees as a whole proves all its entries at once; where it does not, or where an entry's fate is unknown,
the entry's own minute decides.  Absence counts only long after the last attempt and behind a later canary that shows:
then the entry is provably not counted, and the window owes its value again.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Protocol

from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.database.transactions import in_transaction
from billing_pipeline.domain.entries import EntryState, Verdict, judge_evidence
from billing_pipeline.domain.protocol import ProtocolTimes
from billing_pipeline.domain.windows import HOUR, hour_of
from billing_pipeline.errors import LedgerFrozen, StripeRefused
from billing_pipeline.usage.canary import look_for_canaries
from billing_pipeline.usage.gate import freeze

Lane = tuple[str, str]
"""Stripe customer id and event name."""


class SummaryReader(Protocol):
    """What the confirmer needs of Stripe."""

    def hours(self, event_name: str, customer: str, start: datetime, end: datetime) -> dict[datetime, int]:
        """Units per UTC hour; hours without usage are absent."""
        ...

    def minute(self, event_name: str, customer: str, minute: datetime) -> int:
        """Units in one minute."""
        ...


@dataclass(frozen=True, slots=True)
class ConfirmReport:
    """What one confirmation run proved, and what still waits for Stripe's summaries."""

    confirmed: int = 0
    units_confirmed: int = 0
    replaced: int = 0
    units_replaced: int = 0
    waiting: int = 0
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
    """A reader that counts; the confirmer starts no new day of a lane once the budget is spent."""

    def __init__(self, reader: SummaryReader, reads_max: int) -> None:
        self._reader = reader
        self._reads_max = reads_max
        self.reads = 0

    @property
    def spent(self) -> bool:
        """No read is left."""
        return self.reads >= self._reads_max

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
    """Look at every day of a lane with entries to settle, the one looked at longest ago first.

    Raises `LedgerFrozen` when a minute shows something other than nothing or its one entry, and `StripeRefused`, after
    all the others, when a day could not be read.
    """
    budget = ReadBudget(reader, reads_max)
    look_for_canaries(connection, budget, now=clock())
    watermarks = {row["event_name"]: row["visible_sent_at"] for row in queries.fetch_dicts(connection, "canary_lag")}
    report = ConfirmReport()
    refusals: list[StripeRefused] = []
    for day in queries.fetch_dicts(connection, "days_to_confirm", {"limit": reads_max, "now": clock()}):
        if budget.spent:
            break
        lane = (day["stripe_customer_id"], day["event_name"])
        try:
            judged = _judge_day(connection, budget, lane, day["hours"], times, watermarks.get(day["event_name"]), clock)
        except StripeRefused as exc:
            # One customer's or meter's trouble must not keep the others from being proved.
            refusals.append(exc)
            continue
        in_transaction(connection, partial(_store, connection, judged, clock()), name="The confirmation")
        report = _add(report, judged)
    if refusals:
        raise StripeRefused(f"{len(refusals)} of the days to confirm could not be read; the first: {refusals[0]}")
    waiting = queries.fetch_dicts(connection, "count_unsettled")[0]["entries"]
    return ConfirmReport(
        report.confirmed, report.units_confirmed, report.replaced, report.units_replaced, waiting, budget.reads
    )


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
    shown = reader.hours(event_name, customer, min(hours), max(hours) + HOUR)
    observed = {hour: shown.get(hour, 0) for hour in hours}
    observed_at = clock()
    _store_summaries(connection, lane, observed, observed_at)
    entries = _entries(connection, lane, hours)
    judged: list[Judged] = []
    for hour, units in observed.items():
        of_hour = list(
            _judge_hour(connection, reader, lane, entries.get(hour, []), units, times, canary_sent_at, observed_at)
        )
        if any(found.granularity == "minute" and found.verdict is Verdict.CONFIRMED for found in of_hour):
            # The minutes show more than the hour did a moment ago; the stored hour must not lag behind the proof.
            again = reader.hours(event_name, customer, hour, hour + HOUR)
            _store_summaries(connection, lane, {hour: again.get(hour, 0)}, clock())
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


def _store(connection: Connection[Any], judged: list[Judged], now: datetime) -> None:
    confirmed = [found for found in judged if found.verdict is Verdict.CONFIRMED]
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


def _entries(connection: Connection[Any], lane: Lane, hours: list[datetime]) -> dict[datetime, list[StatedEntry]]:
    customer, event_name = lane
    params = {"stripe_customer_id": customer, "event_name": event_name, "start": min(hours), "end": max(hours) + HOUR}
    found: dict[datetime, list[StatedEntry]] = defaultdict(list)
    for entry in queries.fetch(connection, "stated_entries", StatedEntry, params):
        found[hour_of(entry.slot_at)].append(entry)
    return found


def _store_summaries(connection: Connection[Any], lane: Lane, hours: dict[datetime, int], now: datetime) -> None:
    customer, event_name = lane
    queries.execute(
        connection,
        "store_summaries",
        {
            "customers": [customer] * len(hours),
            "event_names": [event_name] * len(hours),
            "hours": list(hours),
            "observed": list(hours.values()),
            "now": now,
        },
    )
