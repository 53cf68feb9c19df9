"""Which indexes the source lacks: without them every flush reads the whole table, however little is new.

The planner is asked, as for unique ids: told to avoid whole scans, it still plans one where no index can serve.  That
sees through views and partitions, and through the settings' mapping.  Advice is told as a notice by the contract.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import Connection
from psycopg.sql import SQL, Composable, Identifier, Literal

from billing_pipeline.database import queries
from billing_pipeline.database.source import Source
from billing_pipeline.usage.source_contract import UNIQUE_REMEDY, holds_an_event_once

LARGE_ROWS = 10_000_000
"""From here on a BRIN index, thousands of times smaller, is worth its coarser reads."""

_PLANS = {
    "recorded_at": "plan_rows_recorded_since",
    "occurred_at": "plan_rows_occurred_since",
    "event_id": "plan_rows_of_an_event",
}
_COLUMN_ASKED = re.compile(r'\((?:(?:\w+|"(?:[^"]|"")+")\.)?(\w+|"(?:[^"]|"")+") (?:>=|=) ')
"""Their column in a condition as EXPLAIN writes it, `(e.created_at >= '...')`, where it is a bare column."""


@dataclass(frozen=True, slots=True)
class MissingIndex:
    """A column of ours that no index serves, on which table, and what to run; no statements: why, and what to do."""

    column: str
    table: str
    statements: tuple[str, ...] = ()
    otherwise: str = ""

    def __str__(self) -> str:
        return f"{self.column}: {'; '.join(self.statements) or self.otherwise}"


@dataclass(frozen=True, slots=True)
class _Scan:
    """A table that would be read whole, and the column that was asked for, where the plan shows it."""

    schema: str
    table: str
    column: str | None


def missing_indexes(connection: Connection[Any], source: Source, *, since: datetime) -> list[MissingIndex]:
    """What the source lacks for rows recorded or occurred since then, and for single events; reads no row.

    The source must have its columns.
    """
    advice = [] if holds_an_event_once(connection, source) else [_not_unique(connection, source)]
    if source.shape is None or source.shape.kind == "foreign table":
        return advice  # its indexes are on another server, out of sight
    for column in sorted(_PLANS.keys() - {one.column for one in advice}):
        for one in _advice(connection, source, column, _whole_scans(connection, source, column, since)):
            # One column of theirs may be two of ours, and needs one index.
            if not one.statements or one.statements not in [told.statements for told in advice]:
                advice.append(one)
    return sorted(advice, key=lambda one: (one.column, one.table))


def _not_unique(connection: Connection[Any], source: Source) -> MissingIndex:
    kind = source.shape.kind if source.shape else ""
    if kind not in ("table", "materialized view"):
        return MissingIndex("event_id", source.relation, otherwise=f"{UNIQUE_REMEDY}; the source is a {kind}")
    statement = SQL("CREATE UNIQUE INDEX CONCURRENTLY ON {} ({})").format(
        source.table, Identifier(source.theirs("event_id"))
    )
    return MissingIndex("event_id", source.relation, (statement.as_string(connection),))


def _advice(connection: Connection[Any], source: Source, column: str, scans: list[_Scan]) -> Iterator[MissingIndex]:
    if not scans:
        return
    kind = source.shape.kind if source.shape else ""
    if kind == "view":
        for scan in scans:
            yield _behind_a_view(connection, source, column, scan)
        return
    # In this order nothing is locked for long: the parent's index takes over those that its partitions have.
    tables = [Identifier(scan.schema, scan.table) for scan in scans]
    theirs = Identifier(source.theirs(column))
    statements = [_create(connection, scan, table, theirs, column) for scan, table in zip(scans, tables, strict=True)]
    if kind == "partitioned table":
        statements.append(_on_the_parent(connection, source, theirs, statements[0]))
    yield MissingIndex(column, source.relation, tuple(statements))


def _behind_a_view(connection: Connection[Any], source: Source, column: str, scan: _Scan) -> MissingIndex:
    name = f"{scan.schema}.{scan.table}"
    if scan.column is None:
        why = (
            f"cannot tell: the view {source.relation} asks {name} for no plain column; where it computes "
            f"{column}, index the same expression there, and where DISTINCT or GROUP BY keeps the condition out, "
            "bound the view by time"
        )
        return MissingIndex(column, name, otherwise=why)
    table, theirs = Identifier(scan.schema, scan.table), Identifier(scan.column)
    return MissingIndex(column, name, (_create(connection, scan, table, theirs, column),))


def _create(connection: Connection[Any], scan: _Scan, table: Composable, theirs: Identifier, column: str) -> str:
    params = {"schema": scan.schema, "table": scan.table, "column": theirs.as_string(connection).strip('"')}
    known = queries.fetch_dicts(connection, "source_table_statistics", params)
    brin = column != "event_id" and bool(known) and known[0]["rows"] >= LARGE_ROWS and known[0]["in_order"]
    method = SQL("USING brin ") if brin else SQL("")
    return SQL("CREATE INDEX CONCURRENTLY ON {} {}({})").format(table, method, theirs).as_string(connection)


def _on_the_parent(connection: Connection[Any], source: Source, theirs: Identifier, first: str) -> str:
    method = SQL("USING brin ") if "USING brin" in first else SQL("")
    return SQL("CREATE INDEX ON {} {}({})").format(source.table, method, theirs).as_string(connection)


def _whole_scans(connection: Connection[Any], source: Source, column: str, since: datetime) -> list[_Scan]:
    asked = source.id_parts if column == "event_id" else source.parts | {"since": Literal(since)}
    with connection.transaction():
        queries.execute(connection, "plan_by_index")
        plan = queries.fetch_dicts(connection, _PLANS[column], parts=asked)[0]["QUERY PLAN"][0]["Plan"]
    tables = [node for node in _nodes(plan) if "Relation Name" in node and node["Node Type"] != "Foreign Scan"]
    names = [below["Index Name"] for node in tables for below in _nodes(node) if "Index Name" in below]
    rows = queries.fetch_dicts(connection, "leading_index_columns", {"names": names})
    leading = {(row["schema"], row["name"]): row["column"] for row in rows}
    whole = [node for node in tables if not _served_by_index(node, leading)]
    return list(dict.fromkeys(_Scan(n["Schema"], n["Relation Name"], _column_of(n.get("Filter"))) for n in whole))


def _served_by_index(table: dict[str, Any], leading: dict[tuple[str, str], str | None]) -> bool:
    """Whether an index narrows the scan: it has the condition, and begins with the column that is asked for."""
    for node in _nodes(table):
        if "Index Cond" in node:
            begins_with, asked = leading.get((table["Schema"], node["Index Name"])), _column_of(node["Index Cond"])
            if None in (begins_with, asked) or begins_with == asked:
                return True
    return False


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for below in plan.get("Plans", []):
        yield from _nodes(below)


def _column_of(condition: str | None) -> str | None:
    asked = _COLUMN_ASKED.search(condition or "")
    return asked[1].strip('"').replace('""', '"') if asked else None
