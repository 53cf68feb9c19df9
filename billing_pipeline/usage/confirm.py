"""Stage 5: prove with Stripe's own summaries that accepted entries were counted.

An hour that agrees as a whole proves all its entries at once; where it does not, or where an entry's fate is unknown,
the entry's own minute decides.  Absence proves nothing here: a summary may simply lag.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.domain.entries import EntryState
from billing_pipeline.domain.windows import HOUR, hour_of
from billing_pipeline.errors import LedgerFrozen
from billing_pipeline.usage.gate import freeze

HOURS_PER_RUN_MAX = 10_000

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
    """What one confirmation run proved and what still waits for Stripe's summaries."""

    confirmed: int = 0
    units_confirmed: int = 0
    waiting: int = 0


@dataclass(frozen=True, slots=True)
class StatedEntry:
    """An entry that Stripe may show in its minute."""

    entry_id: int
    state: str
    value: int
    slot_at: datetime


def confirm(connection: Connection[Any], reader: SummaryReader, *, clock: Callable[[], datetime]) -> ConfirmReport:
    """Read the summaries of every hour with unproved entries and confirm what they show.

    Raises `LedgerFrozen` when a minute shows something other than nothing or its one entry.
    """
    due = queries.fetch_dicts(connection, "hours_to_confirm", {"limit": HOURS_PER_RUN_MAX})
    by_lane: dict[Lane, list[datetime]] = defaultdict(list)
    for row in due:
        by_lane[(row["stripe_customer_id"], row["event_name"])].append(row["hour_at"])
    report = ConfirmReport()
    for lane, hours in by_lane.items():
        customer, event_name = lane
        shown = reader.hours(event_name, customer, min(hours), max(hours) + HOUR)
        observed = {hour: shown.get(hour, 0) for hour in hours}
        _store_summaries(connection, lane, observed, clock())
        entries = _entries(connection, lane, hours)
        proved = {
            entry.entry_id: granularity
            for hour, units in observed.items()
            for entry, granularity in _proved(connection, reader, lane, entries.get(hour, []), units, clock)
        }
        _store_proof(connection, proved, clock())
        stated = [entry for of_hour in entries.values() for entry in of_hour]
        report = ConfirmReport(
            report.confirmed + len(proved),
            report.units_confirmed + sum(entry.value for entry in stated if entry.entry_id in proved),
            report.waiting
            + sum(entry.state == EntryState.ACCEPTED and entry.entry_id not in proved for entry in stated),
        )
    return report


def _proved(
    connection: Connection[Any],
    reader: SummaryReader,
    lane: Lane,
    entries: list[StatedEntry],
    observed: int,
    clock: Callable[[], datetime],
) -> Iterator[tuple[StatedEntry, str]]:
    """The entries of one hour that Stripe shows, each with what showed it: the hour or its own minute."""
    undecided = [entry for entry in entries if entry.state in (EntryState.AMBIGUOUS, EntryState.ACCEPTED)]
    certain = all(entry.state != EntryState.AMBIGUOUS for entry in entries)
    if certain and observed == sum(entry.value for entry in entries):
        yield from ((entry, "hour") for entry in undecided)
        return
    for entry in undecided:
        if _shown(connection, reader, lane, entry, clock()):
            yield entry, "minute"


def _store_proof(connection: Connection[Any], proved: dict[int, str], now: datetime) -> None:
    params = {"entry_ids": list(proved), "granularities": list(proved.values()), "now": now}
    queries.execute(connection, "confirm_entries", params)


def _shown(connection: Connection[Any], reader: SummaryReader, lane: Lane, entry: StatedEntry, now: datetime) -> bool:
    customer, event_name = lane
    units = reader.minute(event_name, customer, entry.slot_at)
    if units not in (0, entry.value):
        reason = (
            f"Stripe shows {units} units of {event_name} for {customer} at {entry.slot_at:%Y-%m-%d %H:%M} UTC, "
            f"where the ledger sent {entry.value}"
        )
        freeze(connection, reason, now=now)
        raise LedgerFrozen(f"{reason}. Sending is frozen until someone has looked.")
    return units == entry.value


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
