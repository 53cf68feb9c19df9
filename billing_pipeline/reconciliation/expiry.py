"""Names the usage that Stripe will soon refuse as too old, while there is still time to send it.

Asked by a check with every flush and by `ledger status`.  What is older than Stripe takes is no longer here: it is on
hold, and reconciliation names it as owed.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.domain.protocol import ProtocolTimes


@dataclass(frozen=True, slots=True)
class Expiring:
    """Units of one organization and meter that are not known to be sent, and their oldest hour."""

    organization_id: str
    meter: str
    units: Decimal
    oldest_at: datetime


def usage_about_to_expire(connection: Connection[Any], times: ProtocolTimes, *, now: datetime) -> list[Expiring]:
    """What is older than `past_alarm` and younger than `past_max`, the oldest first."""
    params = {"alarm_before": now - times.past_alarm, "past": now - times.past_max}
    return queries.fetch(connection, "usage_about_to_expire", Expiring, params)
