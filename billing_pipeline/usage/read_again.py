"""Reads settled days again, because a foreign writer may come after the proof.

Part of stage 5, on its share of the read budget: one read shows all days in reach of a lane, and only a day that no
longer adds up is read by the hour.  Too much freezes the ledger; too little is stored, and reconciliation names it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.domain.reach import reach_start
from billing_pipeline.domain.windows import DAY, day_of
from billing_pipeline.usage.shown_hours import Lane, SummaryReader, possible_hours, store_shown_hours

READ_AGAIN_AFTER = timedelta(hours=20)
"""Below a day, so that hourly runs come to every lane within one."""
SHARE = 5
"""One read of this many is kept for settled days, however much there is to confirm."""


@dataclass(frozen=True, slots=True)
class StatedDay:
    """What the ledger has stated for a UTC day of a lane, and what Stripe may show of it."""

    day_at: datetime
    settled: int
    low: int
    high: int
    unsettled: bool


@dataclass(frozen=True, slots=True)
class StatedValue:
    """The value and the minute of one entry that may have been sent."""

    slot_at: datetime
    value: int


def note_lane(connection: Connection[Any], lane: Lane, slot_at: datetime, *, now: datetime) -> None:
    """Remember that this lane has settled entries up to `slot_at`."""
    queries.execute(connection, "note_lane", _params(lane) | {"slot_at": slot_at, "now": now})


def lanes_due(connection: Connection[Any], *, limit: int, now: datetime) -> list[Lane]:
    """The lanes whose settled days were read longest ago, at most `limit`."""
    params = {"read_before": now - READ_AGAIN_AFTER, "start": reach_start(now), "limit": limit}
    rows = queries.fetch_dicts(connection, "lanes_to_read_again", params)
    return [(row["stripe_customer_id"], row["event_name"]) for row in rows]


def read_lane_again(connection: Connection[Any], reader: SummaryReader, lane: Lane, *, now: datetime) -> None:
    """Compare every day in reach of a lane with Stripe.  Raises `LedgerFrozen` where Stripe shows the impossible."""
    customer, event_name = lane
    start, end = day_of(reach_start(now)), day_of(now) + DAY
    shown = reader.days(event_name, customer, start, end)
    span = _params(lane) | {"start": start, "end": end}
    stated = {day.day_at: day for day in queries.fetch(connection, "stated_days", StatedDay, span)}
    for day_at in _doubtful_days(shown, stated):
        hours = reader.hours(event_name, customer, day_at, day_at + DAY)
        day = span | {"start": day_at, "end": day_at + DAY}
        entries = queries.fetch(connection, "stated_values", StatedValue, day)
        possible = possible_hours((entry.slot_at, entry.value) for entry in entries)
        # An hour that shows nothing is told as well, where the ledger has stated something in it.
        store_shown_hours(connection, lane, dict.fromkeys(possible, 0) | hours, possible, now=now)
    queries.execute(connection, "lane_was_read", _params(lane) | {"now": now})


def _doubtful_days(shown: dict[datetime, int], stated: dict[datetime, StatedDay]) -> Iterable[datetime]:
    """Days that do not add up; one with open entries waits for their confirmation unless it shows the impossible."""
    for day_at in sorted(shown.keys() | stated.keys()):
        units, day = shown.get(day_at, 0), stated.get(day_at, StatedDay(day_at, 0, 0, 0, False))
        if not day.low <= units <= day.high or (units != day.settled and not day.unsettled):
            yield day_at


def _params(lane: Lane) -> dict[str, Any]:
    return {"stripe_customer_id": lane[0], "event_name": lane[1]}
