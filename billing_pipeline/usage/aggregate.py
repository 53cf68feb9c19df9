"""Stage 2: turn billable events into usage windows, each with the target the source says it is worth now.

Late, changed and deleted rows are not special: a touched hour is recomputed whole, and a target that differs from
what was stated is all the cutter needs to know.  Reads the source, writes `usage_windows`, `meter_versions` and
`aggregations`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from psycopg import Connection, IsolationLevel
from psycopg.sql import SQL, Literal

from billing_pipeline.database import queries
from billing_pipeline.database.properties import property_parts
from billing_pipeline.database.source import Source
from billing_pipeline.database.transactions import in_transaction
from billing_pipeline.domain.brakes import USUAL_DAYS
from billing_pipeline.domain.catalogue import Catalogue
from billing_pipeline.domain.reach import reach_end, reach_start
from billing_pipeline.domain.windows import DAY, hour_of
from billing_pipeline.usage.contract import CONTRACT_VERSION
from billing_pipeline.usage.counting import Parts, counts, make_table, verdicts
from billing_pipeline.usage.meter_versions import keep_meter_versions
from billing_pipeline.usage.period_levels import state_period_levels
from billing_pipeline.usage.source_contract import hold_countable

FULL_EVERY = timedelta(hours=24)


class Scope(StrEnum):
    """How much is recomputed."""

    TOUCHED = "touched"  # hours with rows recorded since the last cutoff, minus the overlap
    FULL = "full"  # every hour that Stripe still takes usage of


@dataclass(frozen=True, slots=True)
class AggregationReport:
    """What one aggregation did; `meters_changed` definitions take effect with the next full hour."""

    scope: Scope
    cutoff_at: datetime
    windows_computed: int
    windows_changed: int
    windows_carried: int
    meters_changed: int


def aggregate(
    connection: Connection[Any],
    *,
    source: Source,
    catalogue: Catalogue,
    start_at: datetime | None,
    overlap: timedelta,
    clock: Callable[[], datetime],
    scope: Scope | None = None,
) -> AggregationReport:
    """Recompute the windows of `scope`; None picks FULL once a day and TOUCHED otherwise.

    `start_at` is the first hour that is billed at all, asked when a ledger begins; None is everything Stripe takes.
    `overlap` reaches back behind the last cutoff for transactions that commit late.
    Raises `ContractBlocked` for a source that cannot be counted, and `DatabaseUnavailable` when concurrent writers keep
    it from finishing.
    """
    return in_transaction(
        connection,
        lambda: aggregate_once(connection, source, catalogue, start_at, overlap, clock, scope),
        name="Aggregation",
        isolation=IsolationLevel.REPEATABLE_READ,
    )


def recorded_since(connection: Connection[Any], overlap: timedelta) -> datetime | None:
    """From when on rows may not have been aggregated; None before the first aggregation."""
    cutoff_at: datetime | None = queries.fetch_dicts(connection, "latest_aggregation")[0]["cutoff_at"]
    return cutoff_at - overlap if cutoff_at else None


def next_scope(connection: Connection[Any], now: datetime) -> Scope:
    """What an aggregation at `now` picks when it is not told: FULL once a day, TOUCHED otherwise."""
    full_cutoff_at = queries.fetch_dicts(connection, "latest_aggregation")[0]["full_cutoff_at"]
    return Scope.TOUCHED if full_cutoff_at is not None and now - full_cutoff_at < FULL_EVERY else Scope.FULL


def aggregate_once(
    connection: Connection[Any],
    source: Source,
    catalogue: Catalogue,
    start_at: datetime | None,
    overlap: timedelta,
    clock: Callable[[], datetime],
    scope: Scope | None,
) -> AggregationReport:
    """One aggregation, in the caller's REPEATABLE READ transaction, which must have read nothing before its locks."""
    # Before anything is read: the snapshot begins behind the locks, and the cutoff behind the snapshot.
    queries.execute(connection, "lock_aggregations")
    source = hold_countable(connection, source, catalogue)
    queries.execute(connection, "use_working_memory")
    cutoff_at = clock()
    scope = scope or next_scope(connection, cutoff_at)
    meters_changed = keep_meter_versions(connection, catalogue, start_at=start_at, now=cutoff_at)
    parts = _count(connection, source, scope, recorded_since(connection, overlap), cutoff_at)
    changed, carried = _merge(connection, parts, cutoff_at)
    if scope is Scope.FULL:
        # Only now every hour is counted anew; the brakes ask for what is usual, not for the last digit.
        until = hour_of(cutoff_at)
        queries.execute(connection, "forget_usual_hours")
        queries.execute(connection, "keep_usual_hours", {"since": until - USUAL_DAYS * DAY, "until": until})
    computed = queries.fetch_dicts(
        connection,
        "record_aggregation",
        {"scope": scope, "cutoff_at": cutoff_at, "windows_changed": changed, "now": cutoff_at},
    )[0]["windows_computed"]
    return AggregationReport(scope, cutoff_at, computed, changed, carried, meters_changed)


def _count(
    connection: Connection[Any], source: Source, scope: Scope, since: datetime | None, cutoff_at: datetime
) -> Parts:
    """Fill `counted_windows`; returns the parts of the statements, among them those that the scope decides."""
    parts: Parts = source.parts | property_parts(connection)
    parts |= {
        "since": Literal(since),
        "reach_start": Literal(reach_start(cutoff_at)),
        "reach_end": Literal(reach_end(cutoff_at)),
        "not_added_up": queries.part("not_added_up"),
    }
    parts |= verdicts(connection, parts)
    parts |= _everything(parts) if scope is Scope.FULL else _what_was_touched(connection, parts)
    queries.execute(connection, "prefer_hashing")
    make_table(connection, "sum_hours", parts)
    queries.execute(connection, "prefer_nothing")
    make_table(connection, "find_period_parts", parts)
    make_table(connection, "find_split_hours", parts)
    any_singly = queries.fetch_dicts(connection, "rows_looked_at_singly", parts=parts)[0]["found"]
    make_table(connection, "read_usage_rows", parts | {"looked_at_singly": Literal(any_singly)})
    queries.execute(connection, "make_counted_windows")
    for counted in counts(connection, parts):
        queries.execute(connection, "count_windows", parts=counted)
    queries.execute(connection, "analyze_counted_windows")
    return parts


def _everything(parts: Parts) -> Parts:
    scope = parts | {"first_hour": parts["reach_start"]}
    return scope | {
        "rows": queries.part("rows_of_all_hours").format(**scope),
        "of_touched_hours": SQL(""),
        "windows": SQL("usage_windows"),
        "months": queries.part("months_of_all_hours").format(**scope),
        "first_hours": queries.part("first_hours_of_all").format(**scope),
    }


def _what_was_touched(connection: Connection[Any], parts: Parts) -> Parts:
    make_table(connection, "find_touched_hours", parts)
    first_hour_at = queries.fetch_dicts(connection, "first_touched_hour")[0]["first_hour_at"]
    scope = parts | {"first_hour": Literal(first_hour_at)}
    return scope | {
        "rows": queries.part("rows_of_touched_hours").format(**scope),
        "of_touched_hours": queries.part("of_touched_hours"),
        "windows": queries.part("windows_of_touched_hours"),
        "months": queries.part("months_of_touched_hours"),
        "first_hours": queries.part("first_touched_hours"),
    }


def _merge(connection: Connection[Any], parts: Parts, cutoff_at: datetime) -> tuple[int, int]:
    """Bring `usage_windows` to what was counted; returns how many changed and how many carry more or less."""
    merge = {"contract_version": CONTRACT_VERSION, "cutoff_at": cutoff_at}
    make_table(connection, "find_changed_windows", parts)
    changed = queries.execute(connection, "merge_counted_windows", merge)
    changed += queries.execute(connection, "empty_uncounted_windows", merge)
    changed += state_period_levels(connection, parts)
    return changed, queries.execute(connection, "carry_fractions", parts=parts)
