"""What a source must be before a row of it is read: its columns, what they were before, and one row per event.

Asked by validation, which reports it and remembers the source's shape, and again by aggregation, which refuses: a
source that is something else cannot be counted, whatever the settings say.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import groupby
from typing import Any

from psycopg import Connection
from psycopg.types.json import Jsonb

from billing_pipeline.database import queries
from billing_pipeline.database.properties import kinds_of_counting
from billing_pipeline.database.source import Source, read_again
from billing_pipeline.domain.catalogue import Catalogue
from billing_pipeline.domain.source_columns import NEEDED, READ_AS
from billing_pipeline.domain.source_shape import SourceColumn, SourceShape, drift
from billing_pipeline.errors import ContractBlocked

UNIQUE_REMEDY = "make a unique index on event_id, or a view that is DISTINCT ON (event_id)"


@dataclass(frozen=True, slots=True)
class SourceFault:
    """A stable reason code with its details; `blocks` where the source cannot be counted."""

    reason: str
    details: tuple[str, ...]
    blocks: bool = True


def source_faults(connection: Connection[Any], source: Source, catalogue: Catalogue) -> list[SourceFault]:
    """Everything about the source that a person should know, before a row of it is read."""
    if source.shape is None:
        return [SourceFault("source_missing", (source.relation,))]
    needed = _needed(connection, source, catalogue)
    faults = list(_drift(connection, source, needed, catalogue))
    # What has changed is told as a change, and not a second time as wrong.
    told = any(fault.blocks for fault in faults)
    if not told and (wrong := tuple(_wrong_columns(source, needed))):
        faults.append(SourceFault("source_columns_wrong", wrong))
    if not any(fault.blocks for fault in faults) and not holds_an_event_once(connection, source):
        faults.append(SourceFault("event_id_not_unique", (UNIQUE_REMEDY,)))
    return faults


def require_countable(connection: Connection[Any], source: Source, catalogue: Catalogue) -> None:
    """Refuse to count what `source_faults` says cannot be.  Raises `ContractBlocked`."""
    if faults := [fault for fault in source_faults(connection, source, catalogue) if fault.blocks]:
        named = "; ".join(f"{fault.reason}: {', '.join(fault.details)}" for fault in faults)
        raise ContractBlocked(
            f"The source {source.relation} cannot be counted ({named}). Nothing was changed. Mend it, then flush again."
        )


def hold_countable(connection: Connection[Any], source: Source, catalogue: Catalogue) -> Source:
    """The source as it is now, and stays until the transaction's end.  Raises `ContractBlocked`, as above.

    A materialized view or a foreign table cannot be held; its columns do not change, it is made anew.
    """
    if source.can_be_locked:
        queries.execute(connection, "hold_source", parts={"source": source.table})
    held = read_again(connection, source)
    require_countable(connection, held, catalogue)
    return held


def remember_shape(connection: Connection[Any], source: Source, *, now: datetime) -> None:
    """What the source is now is what later validations compare with."""
    if source.shape is not None:
        columns = Jsonb([asdict(column) for column in source.shape.columns])
        params = {"relation": source.relation, "kind": source.shape.kind, "columns": columns, "now": now}
        queries.execute(connection, "remember_source_shape", params)


def last_shape(connection: Connection[Any], relation: str) -> SourceShape | None:
    """What the source was when it could last be counted; None for one that never was."""
    rows = queries.fetch_dicts(connection, "last_source_shape", {"relation": relation})
    if not rows:
        return None
    columns = (SourceColumn(**(stored | {"labels": tuple(stored["labels"])})) for stored in rows[0]["columns"])
    return SourceShape(rows[0]["kind"], tuple(columns))


def holds_an_event_once(connection: Connection[Any], source: Source) -> bool:
    """Whether PostgreSQL proves it, see decision 0012.  The source must have its columns."""
    if source.shape is None or source.shape.kind == "foreign table":
        return False  # nothing here knows the indexes of another server
    plan = queries.fetch_dicts(connection, "prove_unique_event_ids", parts=source.id_parts)[0]["QUERY PLAN"]
    if "Plans" not in plan[0]["Plan"]:
        return True
    params = {"relation": source.table.as_string(connection), "column": source.theirs("event_id")}
    return bool(queries.fetch_dicts(connection, "partitioned_with_unique_event_ids", params)[0]["proven"])


def _drift(
    connection: Connection[Any], source: Source, needed: set[str], catalogue: Catalogue
) -> Iterator[SourceFault]:
    last = last_shape(connection, source.relation)
    if last is None or source.shape is None:
        return
    mapped = dict(source.columns)
    found = drift(last, source.shape, mapped=mapped, needed=needed, catalogue=catalogue)
    by_reason = sorted(found, key=lambda change: (not change.blocks, change.reason))
    for (blocks, reason), changes in groupby(by_reason, key=lambda change: (change.blocks, change.reason)):
        yield SourceFault(reason, tuple(change.detail for change in changes), blocks)


def _needed(connection: Connection[Any], source: Source, catalogue: Catalogue) -> set[str]:
    """Our columns that must be there: what the settings name, a person counts on; so does a meter of any hour."""
    reads_properties = catalogue.reads_properties or kinds_of_counting(connection)["properties"]
    return {*NEEDED, *dict(source.columns), *(("properties",) if reads_properties else ())}


def _wrong_columns(source: Source, needed: set[str]) -> Iterator[str]:
    mapped = dict(source.columns)
    for name, expected in READ_AS.items():
        column, named = source.column(name), f"{name} ({mapped[name]})" if mapped.get(name, name) != name else name
        if column is None and name in needed:
            yield f"{named}: absent, expected {expected}"
        elif column is not None and column.unsuitable:
            yield f"{named}: {column.unsuitable}"
