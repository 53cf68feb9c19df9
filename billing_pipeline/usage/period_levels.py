"""Part of stage 2: meters whose usage is a level over the billing period, not a sum of what happened.

`aggregate.py` counts the touched hours and asks here for what `max`, `last` and `unique` need beyond that.  Each window
is worth what the level grew by in it, so the ledger, its proof and Stripe see nothing but sums (decision 0023).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from psycopg import Connection
from psycopg.sql import SQL, Composable, Literal

from billing_pipeline.database import queries
from billing_pipeline.domain.catalogue import Aggregation

NOT_YET_STATED = -1
"""The level of a window that was just counted; a level is never below 0."""


def counting(kind: str) -> dict[str, Composable]:
    """The parts of `count_windows` for the `deltas`, which add up by themselves, or for the `period_levels`."""
    is_period_level = kind == "period_levels"
    wanted = [str(aggregation) for aggregation in Aggregation if aggregation.is_period_level == is_period_level]
    return {
        "metered_rows": queries.part("metered_rows"),
        "aggregations": Literal(wanted),
        "quantity": queries.part(f"quantity_of_{kind}"),
        "units": SQL("0") if is_period_level else SQL("c.quantity * v.unit_scale"),
        "period_level": Literal(NOT_YET_STATED) if is_period_level else SQL("NULL"),
    }


def state_period_levels(
    connection: Connection[Any], *, unique_values: bool, first_hour_at: datetime | None, reach_start: datetime
) -> int:
    """Say what every window that the touched hours may have changed is worth; returns how many changed."""
    span = {"first_hour_at": first_hour_at, "reach_start": reach_start}
    if unique_values:
        rows: dict[str, Composable] = {
            "metered_rows": queries.part("metered_rows"),
            "first_hour": Literal(first_hour_at),
        }
        queries.execute(connection, "find_seen_values", parts=rows)
        queries.execute(connection, "analyze_seen_values")
        queries.execute(connection, "forget_unique_values", span)
        queries.execute(connection, "keep_unique_values")
    parts = {"period_level_since": queries.part("period_level_since")}
    return queries.execute(connection, "state_period_levels", span, parts=parts)
