"""Stage 2: turn billable events into usage windows, each with the target the source says it is worth now.

Late, changed and deleted rows are not special: a touched hour is recomputed whole, and a target that differs from
what was stated is all the cutter needs to know.  Reads the source, writes `usage_windows` and `aggregations`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from psycopg import Connection, IsolationLevel
from psycopg.errors import SerializationFailure
from psycopg.sql import Literal

from billing_pipeline.database import queries
from billing_pipeline.domain.catalogue import Catalogue
from billing_pipeline.domain.windows import hour_of
from billing_pipeline.errors import DatabaseUnavailable
from billing_pipeline.usage.contract import CONTRACT_VERSION

FULL_EVERY = timedelta(hours=24)
SERIALIZATION_TRIES_MAX = 5


class Scope(StrEnum):
    """How much is recomputed."""

    TOUCHED = "touched"  # hours with rows recorded since the last cutoff, minus the overlap
    FULL = "full"  # every hour of the lookback


@dataclass(frozen=True, slots=True)
class AggregationReport:
    """What one aggregation did."""

    scope: Scope
    cutoff_at: datetime
    windows_computed: int
    windows_changed: int


def aggregate(
    connection: Connection[Any],
    *,
    source: str,
    catalogue: Catalogue,
    lookback: timedelta,
    overlap: timedelta,
    clock: Callable[[], datetime],
    scope: Scope | None = None,
) -> AggregationReport:
    """Recompute the windows of `scope`; None picks FULL once a day and TOUCHED otherwise.

    `overlap` reaches back behind the last cutoff for transactions that commit late.
    Raises `DatabaseUnavailable` when concurrent writers keep it from finishing.
    """
    for _ in range(SERIALIZATION_TRIES_MAX):
        try:
            return _aggregate_once(connection, source, catalogue, lookback, overlap, clock(), scope)
        except SerializationFailure:
            continue
    raise DatabaseUnavailable(
        f"Aggregation met concurrent changes {SERIALIZATION_TRIES_MAX} times in a row; nothing was changed. "
        "Run it again."
    )


def recorded_since(connection: Connection[Any], overlap: timedelta) -> datetime | None:
    """From when on rows may not have been aggregated; None before the first aggregation."""
    cutoff_at: datetime | None = queries.fetch_dicts(connection, "latest_aggregation")[0]["cutoff_at"]
    return cutoff_at - overlap if cutoff_at else None


def _aggregate_once(
    connection: Connection[Any],
    source: str,
    catalogue: Catalogue,
    lookback: timedelta,
    overlap: timedelta,
    cutoff_at: datetime,
    scope: Scope | None,
) -> AggregationReport:
    last = queries.fetch_dicts(connection, "latest_aggregation")[0]
    if scope is None:
        fresh = last["full_cutoff_at"] is not None and cutoff_at - last["full_cutoff_at"] < FULL_EVERY
        scope = Scope.TOUCHED if fresh else Scope.FULL
    span = {
        "source": queries.relation(source),
        "since": Literal(recorded_since(connection, overlap) or cutoff_at - lookback),
        "lookback_start": Literal(hour_of(cutoff_at - lookback)),
    }
    connection.isolation_level = IsolationLevel.REPEATABLE_READ
    try:
        with connection.transaction():
            queries.execute(connection, _FIND_HOURS[scope], parts=span)
            queries.execute(connection, "count_windows", parts=span | _meters(catalogue))
            written = {
                "cutoff_at": cutoff_at,
                "contract_version": CONTRACT_VERSION,
                "catalogue_version": catalogue.version,
            }
            changed = queries.execute(connection, "merge_counted_windows", written)
            changed += queries.execute(connection, "empty_uncounted_windows", written)
            computed = queries.fetch_dicts(
                connection,
                "record_aggregation",
                {"scope": scope, "cutoff_at": cutoff_at, "windows_changed": changed, "now": cutoff_at},
            )[0]["windows_computed"]
    finally:
        connection.isolation_level = None
    return AggregationReport(scope, cutoff_at, computed, changed)


_FIND_HOURS = {Scope.TOUCHED: "find_touched_hours", Scope.FULL: "find_all_hours"}


def _meters(catalogue: Catalogue) -> dict[str, Literal]:
    rows = [(meter, event_type) for meter in catalogue.meters for event_type in meter.event_types]
    return {
        "meters": Literal([meter.name for meter, _ in rows]),
        "event_types": Literal([event_type for _, event_type in rows]),
        "aggregations": Literal([str(meter.aggregation) for meter, _ in rows]),
        "unit_scales": Literal([meter.unit_scale for meter, _ in rows]),
    }
