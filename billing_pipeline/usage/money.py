"""What is not proved yet, in numbers: after every flush for its log line and its checks, and for `ledger status`.

Reads the ledger only, by what is open, so it costs the same however long the history is.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

from psycopg import Connection

from billing_pipeline.database import queries

milestones = logging.getLogger("billing_pipeline.milestones")

FAILED_SENDS = 3
"""So many sends of one entry without certainty are worth a person's look."""
SHOWN = 50
LOOKED_AT = 1_000
"""The latest proofs by which the time to certainty is told."""


@dataclass(frozen=True, slots=True)
class MoneyAtRisk:
    """Units that are owed or in doubt, Stripe's or, of what nobody is mapped to, what they would be.

    `time_to_confirmed` is the median of the latest confirmed entries, from first send to proof; None: none yet.
    """

    units_unmapped: Decimal
    windows_held: int
    entries_held: int
    units_rejected: Decimal
    units_pending: Decimal
    entries_ambiguous: int
    oldest_ambiguous: timedelta | None
    units_unconfirmed: Decimal
    oldest_unconfirmed: timedelta | None
    events_quarantined: int
    time_to_confirmed: timedelta | None


@dataclass(frozen=True, slots=True)
class FailingEntry:
    """An entry that was sent again and again; `last_error` is Stripe's code, or the outcome where it had none."""

    organization_id: str
    identifier: str
    sends: int
    first_attempt_at: datetime
    last_error: str


def money_at_risk(connection: Connection[Any], *, now: datetime) -> MoneyAtRisk:
    """All of it, as of now."""
    found = queries.fetch_dicts(connection, "money_at_risk", {"now": now})[0]
    proved = queries.fetch_dicts(connection, "time_to_confirmed", {"limit": LOOKED_AT})[0]
    return MoneyAtRisk(**found, **proved)


def tell_money(connection: Connection[Any], *, now: datetime) -> MoneyAtRisk:
    """All of it, and one line of the log with it, for whoever watches that."""
    found = money_at_risk(connection, now=now)
    told = {name: value if isinstance(value, int) else str(value) for name, value in asdict(found).items()}
    milestones.info("Stripe usage flush money at risk", extra={"action": "money_at_risk", **told})
    return found


def failing_entries(connection: Connection[Any]) -> list[FailingEntry]:
    """Open entries with at least three sends and no certainty, the oldest first; at most fifty."""
    asked = {"sends": FAILED_SENDS, "limit": SHOWN}
    return queries.fetch(connection, "failing_entries", FailingEntry, asked)
