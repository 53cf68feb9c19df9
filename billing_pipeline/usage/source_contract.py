"""What a source must be before a row of it is read: its columns, and at most one row per event.

Asked by validation, which reports it, and again before aggregation, which refuses: a source that is something else
cannot be counted, whatever the settings say.
"""

from __future__ import annotations

from typing import Any

from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.errors import ContractBlocked

SOURCE_COLUMNS = {
    "event_id": "text",
    "organization_id": "text",
    "event_type": "text",
    "quantity": "numeric",
    "occurred_at": "timestamp with time zone",
    "recorded_at": "timestamp with time zone",
}
"""The columns the source must have, with their PostgreSQL types; `properties jsonb` is welcome but not needed."""

UNIQUE_REMEDY = "make a unique index on event_id, or a view that is DISTINCT ON (event_id)"


def source_fault(connection: Connection[Any], source: str) -> tuple[str, tuple[str, ...]] | None:
    """Why the source cannot be counted: a stable reason code and its details; None for a source that can."""
    quoted = queries.relation(source).as_string(connection)
    found = {
        row["name"]: row["type"] for row in queries.fetch_dicts(connection, "source_columns", {"relation": quoted})
    }
    if not found:
        return "source_missing", (source,)
    wrong = [
        f"{name}: {found.get(name, 'absent')}, expected {expected}"
        for name, expected in SOURCE_COLUMNS.items()
        if found.get(name) != expected
    ]
    if wrong:
        return "source_columns_wrong", tuple(wrong)
    if not _holds_an_event_once(connection, source):
        return "event_id_not_unique", (UNIQUE_REMEDY,)
    return None


def require_countable(connection: Connection[Any], source: str) -> None:
    """Refuse to count what `source_fault` names.  Raises `ContractBlocked`."""
    if fault := source_fault(connection, source):
        reason, details = fault
        raise ContractBlocked(
            f"The source {source} cannot be counted ({reason}: {', '.join(details)}). Nothing was changed. "
            "Mend it, then flush again."
        )


def _holds_an_event_once(connection: Connection[Any], source: str) -> bool:
    parts = {"source": queries.relation(source)}
    plan = queries.fetch_dicts(connection, "prove_unique_event_ids", parts=parts)[0]["QUERY PLAN"]
    if "Plans" not in plan[0]["Plan"]:
        return True
    params = {"relation": queries.relation(source).as_string(connection)}
    return bool(queries.fetch_dicts(connection, "partitioned_with_unique_event_ids", params)[0]["proven"])
