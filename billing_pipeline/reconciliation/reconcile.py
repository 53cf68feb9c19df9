"""Reads the three sides of every organization and meter in one snapshot, and names their differences.

The last asset of a flush, and what a person looks at first when a number on an invoice is doubted.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from psycopg import Connection, IsolationLevel
from psycopg.sql import SQL, Composable, Literal

from billing_pipeline.database import queries
from billing_pipeline.database.properties import kinds_of_counting, property_parts
from billing_pipeline.database.source import read_source
from billing_pipeline.domain.differences import Difference, HourShown, Sides, differences, with_hours
from billing_pipeline.domain.reach import month_of, reach_end, reach_start
from billing_pipeline.settings import Settings


@dataclass(frozen=True, slots=True)
class ReconciliationReport:
    """All sides, and the differences between them."""

    sides: tuple[Sides, ...]
    differences: tuple[Difference, ...]

    @property
    def faults(self) -> tuple[Difference, ...]:
        """Differences that no state of affairs explains."""
        return tuple(difference for difference in self.differences if difference.is_fault)


def reconcile(connection: Connection[Any], *, settings: Settings, now: datetime) -> ReconciliationReport:
    """Compare source, ledger and Stripe's last shown summaries, over the hours in reach and all that is not settled.

    What counts in which hour is what aggregation recorded; before the first one there is nothing to compare.
    """
    grace = timedelta(seconds=settings.billing_window_grace_seconds)
    parts: dict[str, Composable] = read_source(connection, settings).parts | {
        "month_start": Literal(month_of(reach_start(now))),
        "reach_start": Literal(reach_start(now)),
        "reach_end": Literal(reach_end(now)),
        "closed_before": Literal(now - grace),
        "now": Literal(now),
    }
    with _one_snapshot(connection):
        parts |= property_parts(connection) | {"period_level_since": queries.part("period_level_since")}
        has_period_levels = kinds_of_counting(connection)["period_levels"]
        levels = queries.part("period_levels_of_the_source").format(**parts) if has_period_levels else SQL("")
        parts["period_levels_of_the_source"] = levels
        ledger = queries.fetch(connection, "reconcile_usage", Sides, parts=parts)
        hours = queries.fetch(connection, "differing_hours", HourShown, parts=parts)
    sides = tuple(_with_hours(ledger, hours))
    return ReconciliationReport(sides, tuple(found for side in sides for found in differences(side)))


@contextmanager
def _one_snapshot(connection: Connection[Any]) -> Iterator[None]:
    connection.isolation_level = IsolationLevel.REPEATABLE_READ
    try:
        with connection.transaction():
            queries.execute(connection, "use_working_memory")
            yield
    finally:
        connection.isolation_level = None


def _with_hours(ledger: Iterable[Sides], hours: Iterable[HourShown]) -> Iterator[Sides]:
    sides = {(side.organization_id, side.meter): side for side in ledger}
    shown: dict[tuple[str, str], list[HourShown]] = defaultdict(list)
    for hour in hours:
        shown[(hour.organization_id, hour.meter)].append(hour)
    for key in sorted(sides.keys() | shown.keys()):
        # Stripe may show usage that the ledger knows nothing of.
        yield with_hours(sides.get(key) or Sides(*key), shown[key])
