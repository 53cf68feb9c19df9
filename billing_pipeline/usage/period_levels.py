"""Part of stage 2: meters whose usage is a level over the billing period, not a sum of what happened.

`aggregate.py` counts the touched hours and asks here for what `max`, `last` and `unique` need beyond that.  Each window
is worth what the level grew by in it, so the ledger, its proof and Stripe see nothing but sums (decision 0023).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from psycopg import Connection
from psycopg.sql import SQL, Composable, Literal

from billing_pipeline.database import queries
from billing_pipeline.database.properties import kinds_of_counting
from billing_pipeline.domain.catalogue import Aggregation

_DELTA: dict[str, Composable] = {"units": SQL("c.quantity * v.unit_scale"), "period_level": SQL("NULL")}
_PERIOD_LEVEL: dict[str, Composable] = {"units": SQL("0"), "period_level": SQL("-1")}
"""A level is never below 0: this one is not yet known."""


def counts(connection: Connection[Any]) -> Iterator[dict[str, Composable]]:
    """The parts of each run of `count_windows`: whole hours, split ones, and, where a meter has them, period levels."""
    yield _DELTA | {"counted": queries.part("counted_whole").format(not_added_up=queries.part("not_added_up"))}
    yield _DELTA | {"counted": _singly("quantity_of_deltas", [Aggregation.SUM, Aggregation.COUNT])}
    if kinds_of_counting(connection)["period_levels"]:
        of_level = [aggregation for aggregation in Aggregation if aggregation.is_period_level]
        yield _PERIOD_LEVEL | {"counted": _singly("quantity_of_period_levels", of_level)}


def metered_rows() -> Composable:
    """The part `metered_rows` of other statements."""
    return queries.part("metered_rows").format(not_added_up=queries.part("not_added_up"))


def _singly(quantity: str, aggregations: list[Aggregation]) -> Composable:
    return queries.part("counted_singly").format(
        metered_rows=metered_rows(),
        quantity=queries.part(quantity),
        aggregations=Literal([str(aggregation) for aggregation in aggregations]),
    )


def state_period_levels(
    connection: Connection[Any], *, unique_values: bool, first_hour_at: datetime | None, reach_start: datetime
) -> int:
    """Say what every window that the touched hours may have changed is worth; returns how many changed."""
    span = {"first_hour_at": first_hour_at, "reach_start": reach_start}
    if unique_values:
        rows: dict[str, Composable] = {
            "metered_rows": metered_rows(),
            "first_hour": Literal(first_hour_at),
        }
        queries.execute(connection, "find_seen_values", parts=rows)
        queries.execute(connection, "analyze_seen_values")
        queries.execute(connection, "forget_unique_values", span)
        queries.execute(connection, "keep_unique_values")
    parts = {"period_level_since": queries.part("period_level_since")}
    return queries.execute(connection, "state_period_levels", span, parts=parts)
