"""Part of stage 2: meters whose usage is a level over the billing period, not a sum of what happened.

`aggregate.py` counts the touched hours and asks here for what `max`, `last` and `unique` need beyond that.  Each window
is worth what the level grew by in it, so the ledger, its proof and Stripe see nothing but sums (decision 0023).
"""

from __future__ import annotations

from typing import Any

from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.database.properties import kinds_of_counting
from billing_pipeline.usage.counting import Parts, make_table, metered_rows


def state_period_levels(connection: Connection[Any], parts: Parts) -> int:
    """Say what every window that the touched hours may have changed is worth; returns how many changed."""
    kinds = kinds_of_counting(connection)
    if not kinds["period_levels"]:
        return 0
    if kinds["unique_values"]:
        make_table(connection, "find_seen_values", parts | {"metered_rows": metered_rows(parts)})
        queries.execute(connection, "forget_unique_values", parts=parts)
        queries.execute(connection, "keep_unique_values")
    parts = parts | {"period_level_since": queries.part("period_level_since")}
    return queries.execute(connection, "state_period_levels", parts=parts)
