"""Part of stage 2: the statements that count, and how they are put together.

Whole hours are added up before anything is asked about them; only rows of split hours, and of meters that do not just
add up, are looked at one by one.  `aggregate.py` decides which hours, the parts say what of them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from psycopg import Connection
from psycopg.sql import SQL, Composable, Literal

from billing_pipeline.database import queries
from billing_pipeline.database.properties import kinds_of_counting
from billing_pipeline.domain.catalogue import Aggregation

Parts = dict[str, Composable]
"""What stands in the places of a statement, by the place's name."""

_DELTA: Parts = {"units": SQL("c.quantity * v.unit_scale"), "period_level": SQL("NULL")}
_PERIOD_LEVEL: Parts = {"units": SQL("0"), "period_level": SQL("-1")}
"""A level is never below 0: this one is not yet known."""

_ANALYZE = {
    "find_touched_hours": "analyze_touched_hours",
    "sum_hours": "analyze_hour_sums",
    "find_period_parts": "analyze_period_parts",
    "find_split_hours": "analyze_split_hours",
    "read_usage_rows": "analyze_usage_rows",
    "find_changed_windows": "analyze_changed_windows",
    "find_seen_values": "analyze_seen_values",
}
"""A temporary table has no statistics of its own accord, and without them the plans are guesses."""


def make_table(connection: Connection[Any], statement: str, parts: Parts) -> None:
    """Make one of the temporary tables, and let the planner know it."""
    queries.execute(connection, statement, parts=parts)
    queries.execute(connection, _ANALYZE[statement])


def verdicts(connection: Connection[Any], parts: Parts) -> Parts:
    """What the contract says of a row: its `fault`, or null, and `is_good`, which is the same and faster."""
    needed = [
        queries.part("needs_a_quantity").format(**{name: Literal(value) for name, value in version.items()})
        for version in queries.fetch_dicts(connection, "versions_that_need_a_quantity")
    ]
    parts = parts | {"quantity_needed": SQL(" OR ").join(needed) if needed else SQL("false")}
    fault = queries.part("fault_of_row").format(**parts)
    return {"fault": fault, "is_good": queries.part("is_good_row").format(**parts, fault=fault)}


def counts(connection: Connection[Any], parts: Parts) -> Iterator[Parts]:
    """The parts of each run of `count_windows`: whole hours, split ones, and, where a meter has them, period levels."""
    yield _DELTA | {"counted": queries.part("counted_whole").format(**parts)}
    yield _DELTA | {"counted": _singly(parts, "quantity_of_deltas", is_period_level=False)}
    if kinds_of_counting(connection)["period_levels"]:
        yield _PERIOD_LEVEL | {"counted": _singly(parts, "quantity_of_period_levels", is_period_level=True)}


def metered_rows(parts: Parts) -> Composable:
    """The part `metered_rows` of other statements."""
    return queries.part("metered_rows").format(**parts)


def _singly(parts: Parts, quantity: str, *, is_period_level: bool) -> Composable:
    wanted = [str(aggregation) for aggregation in Aggregation if aggregation.is_period_level == is_period_level]
    return queries.part("counted_singly").format(
        metered_rows=metered_rows(parts), quantity=queries.part(quantity), aggregations=Literal(wanted)
    )
