"""Stage 5: prove with Stripe's own summaries that accepted entries were counted.

An hour that agrees as a whole proves all its entries at once; where it does not, or where an entry's fate is unknown,
the entry's own minute decides.  Absence proves nothing here: a summary may simply lag.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.domain.entries import EntryState
from billing_pipeline.domain.windows import HOUR
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
        observed = reader.hours(event_name, customer, min(hours), max(hours) + HOUR)
        _store_summaries(connection, lane, {hour: observed.get(hour, 0) for hour in hours}, clock())
        for hour in hours:
            entries = _entries_of_hour(connection, lane, hour)
            proved = _prove(connection, reader, lane, entries, observed.get(hour, 0), clock())
            waiting = [entry for entry in entries if entry.state == EntryState.ACCEPTED]
            report = ConfirmReport(
                report.confirmed + len(proved),
                report.units_confirmed + sum(entry.value for entry in proved),
                report.waiting + len(waiting) - sum(entry in proved for entry in waiting),
            )
    return report


def _prove(
    connection: Connection[Any],
    reader: SummaryReader,
    lane: Lane,
    entries: list[StatedEntry],
    observed: int,
    now: datetime,
) -> list[StatedEntry]:
    """The entries proved by this hour, with their evidence stored."""
    undecided = [entry for entry in entries if entry.state in (EntryState.AMBIGUOUS, EntryState.ACCEPTED)]
    certain = all(entry.state != EntryState.AMBIGUOUS for entry in entries)
    if certain and observed == sum(entry.value for entry in entries):
        granularity, proved = "hour", undecided
    else:
        granularity = "minute"
        proved = [entry for entry in undecided if _shown(connection, reader, lane, entry, now)]
    queries.execute(
        connection,
        "confirm_entries",
        {
            "entry_ids": [entry.entry_id for entry in proved],
            "granularities": [granularity] * len(proved),
            "now": now,
        },
    )
    return proved


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


def _entries_of_hour(connection: Connection[Any], lane: Lane, hour: datetime) -> list[StatedEntry]:
    customer, event_name = lane
    params = {"stripe_customer_id": customer, "event_name": event_name, "hour_at": hour}
    return queries.fetch(connection, "entries_of_hour", StatedEntry, params)


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
