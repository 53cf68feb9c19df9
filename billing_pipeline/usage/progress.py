"""How far usage is on its way to the proof, by hour and by age: what Dagster's pages show beside each stage.

Reads the ledger only.  Every answer has a bounded number of rows, whatever the ledger holds.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.domain.windows import HOUR, hour_of, utc

HOURS_SHOWN = 48
PROOFS_LOOKED_AT = 20_000
AGES = (
    ("0-1 h", timedelta(hours=1)),
    ("1-6 h", timedelta(hours=6)),
    ("6-20 h", timedelta(hours=20)),
    ("20 h-3 d", timedelta(days=3)),
    ("3-30 d", timedelta(days=30)),
    ("over 30 d", None),
)
"""Names of ages and where each ends.  20 h: what is in doubt is not sent again; 30 d: Stripe soon refuses it."""
BOUNDS = [end for _, end in AGES if end is not None]


@dataclass(frozen=True, slots=True)
class StatedHour:
    """What the ledger states to a Stripe meter for a UTC hour: units as Stripe counts them, and entries by how far
    they are.  `units` leaves out what Stripe refused."""

    event_name: str
    hour_at: datetime
    entries: int
    sent: int
    confirmed: int
    units: Decimal
    units_confirmed: Decimal


@dataclass(frozen=True, slots=True)
class ProofHour:
    """The longest that an entry waited for its proof, of those that got it in a UTC hour."""

    hour_at: datetime
    longest: timedelta


ByAge = list[Decimal]
"""Units per age of `AGES`, in order."""


def shown_hours(now: datetime) -> list[datetime]:
    """The UTC hours that plots show, the one that is not over last."""
    last = hour_of(now)
    return [last - HOUR * back for back in range(HOURS_SHOWN - 1, -1, -1)]


def stated_by_hour(connection: Connection[Any], *, now: datetime) -> list[StatedHour]:
    """Of every Stripe meter that has entries in the hours shown."""
    return queries.fetch(connection, "stated_by_hour", StatedHour, {"since": shown_hours(now)[0]})


def owed_by_age(connection: Connection[Any], *, closed_before: datetime, now: datetime) -> ByAge:
    """Units of closed windows that are not stated, or too many, by the age of their hour."""
    params = {"closed_before": closed_before, "bounds": BOUNDS, "now": now}
    return _by_age(queries.fetch_dicts(connection, "owed_by_age", params))


def unsettled_by_age(connection: Connection[Any], *, now: datetime) -> dict[str, ByAge]:
    """Units sent and not proved, by the age of their first send: of state `ambiguous` and of state `accepted`."""
    rows = queries.fetch_dicts(connection, "unsettled_by_age", {"bounds": BOUNDS, "now": now})
    return {state: _by_age([row for row in rows if row["state"] == state]) for state in ("ambiguous", "accepted")}


def proof_lag_by_hour(connection: Connection[Any], *, now: datetime) -> list[ProofHour]:
    """Of the hours shown in which proofs came, and of the latest 20,000 proofs."""
    params = {"since": shown_hours(now)[0], "limit": PROOFS_LOOKED_AT}
    found = queries.fetch(connection, "proof_lag_by_hour", ProofHour, params)
    return [ProofHour(utc(hour.hour_at), hour.longest) for hour in found]


def _by_age(rows: list[dict[str, Any]]) -> ByAge:
    found = [Decimal(0)] * len(AGES)
    for row in rows:
        found[row["bucket"]] += row["units"]
    return found
