"""Writes down what Stripe shows for the hours of a lane, and freezes the ledger where it shows the impossible.

Confirmation and the second reading of settled days both come through here, so that no summary is stored unjudged.
Whatever an hour shows must be a sum of entries that may have been sent: more, or less, has another source.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.domain.windows import HOUR, hour_of
from billing_pipeline.errors import LedgerFrozen
from billing_pipeline.usage.gate import freeze

Lane = tuple[str, str]
"""Stripe customer id and event name."""


class SummaryReader(Protocol):
    """What confirmation needs of Stripe; spans without usage are absent."""

    def days(self, event_name: str, customer: str, start: datetime, end: datetime) -> dict[datetime, int]:
        """Units per UTC day."""
        ...

    def hours(self, event_name: str, customer: str, start: datetime, end: datetime) -> dict[datetime, int]:
        """Units per UTC hour."""
        ...

    def minute(self, event_name: str, customer: str, minute: datetime) -> int:
        """Units in one minute."""
        ...


@dataclass(frozen=True, slots=True)
class Possible:
    """The least and the most that Stripe may show: every entry that may have been sent is shown or not."""

    low: int = 0
    high: int = 0

    @classmethod
    def of(cls, values: list[int]) -> Possible:
        """The bounds of a sum of some of these values."""
        return cls(sum(value for value in values if value < 0), sum(value for value in values if value > 0))

    def __contains__(self, units: int) -> bool:
        return self.low <= units <= self.high


def possible_hours(stated: Iterable[tuple[datetime, int]]) -> dict[datetime, Possible]:
    """The bounds of every hour, from slots and values of the entries that may have been sent."""
    values: dict[datetime, list[int]] = defaultdict(list)
    for slot_at, value in stated:
        values[hour_of(slot_at)].append(value)
    return {hour: Possible.of(of_hour) for hour, of_hour in values.items()}


def store_shown_hours(
    connection: Connection[Any],
    lane: Lane,
    shown: Mapping[datetime, int],
    possible: Mapping[datetime, Possible],
    *,
    now: datetime,
) -> None:
    """Store the hours that were shown.  Raises `LedgerFrozen`, having frozen it, where one is newly impossible.

    `possible` must have been read after Stripe was asked: an entry is ambiguous before its request leaves.
    """
    strange = {hour: units for hour, units in shown.items() if units not in possible.get(hour, Possible())}
    # What was impossible before and has not changed was looked at by whoever released the ledger; V7 goes on naming it.
    if strange:
        known = _shown_before(connection, lane, min(strange), max(strange) + HOUR)
        strange = {hour: units for hour, units in strange.items() if known.get(hour) != units}
    if not strange:
        _store(connection, lane, shown, now)
        return
    hour, units = min(strange.items())
    bounds = possible.get(hour, Possible())
    customer, event_name = lane
    reason = (
        f"Stripe shows {units} units of {event_name} for {customer} in the hour of {hour:%Y-%m-%d %H:%M} UTC, where "
        f"the ledger can have sent {bounds.low} to {bounds.high}: somebody else writes to this meter, "
        "or the ledger lost attempts"
    )
    # Frozen first: a summary that is stored counts as known.
    freeze(connection, reason, now=now)
    _store(connection, lane, shown, now)
    raise LedgerFrozen(f"{reason}. Sending is frozen until someone has looked.")


def _shown_before(connection: Connection[Any], lane: Lane, start: datetime, end: datetime) -> dict[datetime, int]:
    params = {"stripe_customer_id": lane[0], "event_name": lane[1], "start": start, "end": end}
    return {row["hour_at"]: row["observed"] for row in queries.fetch_dicts(connection, "shown_before", params)}


def _store(connection: Connection[Any], lane: Lane, hours: Mapping[datetime, int], now: datetime) -> None:
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
