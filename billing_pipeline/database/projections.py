"""Keeps, of each Stripe object, the greatest version that was ever seen: one set-based statement per table.

The statements are made from the tables' own columns, because they are the same for each.
Whoever writes holds the objects' locks until commit, so a tie between two transactions is seen by the second.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from psycopg import Connection
from psycopg.rows import class_row
from psycopg.sql import SQL, Composed, Identifier
from psycopg.types.json import Jsonb

from billing_pipeline.database.tables import PROJECTIONS

VERSION = ("terminal", "version_at", "version_rank", "version_digest")
"""What makes a row of an object greater than another, the first difference first."""

Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Tie:
    """Two different contents of one object in one of Stripe's seconds; both are the latest that is known."""

    object_id: str
    version_at: datetime


def lock_objects(connection: Connection[Any], object_ids: Iterable[str]) -> None:
    """Wait until nobody else writes these objects, and keep them until the transaction ends."""
    # In the order of the locks' own numbers, so that two batches cannot wait for each other.
    connection.execute(
        "SELECT pg_advisory_xact_lock(number) FROM (SELECT DISTINCT hashtextextended(id, 8721) AS number "
        "FROM unnest(%s::text[]) AS id ORDER BY 1) locks",
        [list(object_ids)],
    )


def ties(connection: Connection[Any], table: str, rows: Sequence[Row]) -> list[Tie]:
    """The objects of which these rows and the kept one do not say the same of their latest second."""
    with connection.cursor(row_factory=class_row(Tie)) as cursor:
        params = {"rows": Jsonb(rows), "ids": [row[_key(table)] for row in rows]}
        return cursor.execute(_ties(table), params).fetchall()


def keep_greatest(connection: Connection[Any], table: str, rows: Sequence[Row]) -> set[str]:
    """Write the rows that are greater than what is kept; return their objects' ids."""
    return {key for (key,) in connection.execute(_keep(table), {"rows": Jsonb(rows)})}


def digests(connection: Connection[Any], table: str, object_ids: Sequence[str]) -> dict[str, str]:
    """The digest of each of these objects as it is kept."""
    statement = SQL("SELECT {key}, version_digest FROM {table} WHERE {key} = ANY (%s)")
    named = statement.format(key=Identifier(_key(table)), table=Identifier(table))
    return dict(connection.execute(named, [list(object_ids)]).fetchall())


@cache
def _columns(table: str) -> tuple[str, ...]:
    return next(tuple(column.name for column in known.columns) for known in PROJECTIONS if known.name == table)


def _key(table: str) -> str:
    return _columns(table)[0]


def _names(names: Iterable[str], of: str | None = None) -> Composed:
    return SQL(", ").join(Identifier(of, name) if of else Identifier(name) for name in names)


@cache
def _keep(table: str) -> Composed:
    columns = _columns(table)
    return SQL(
        "INSERT INTO {table} AS kept ({columns}) "
        "SELECT DISTINCT ON ({key}) {columns} FROM jsonb_populate_recordset(NULL::{table}, %(rows)s) "
        "ORDER BY {key}, {descending} "
        "ON CONFLICT ({key}) DO UPDATE SET ({columns}) = ROW({new}) WHERE ({new_version}) > ({old_version}) "
        "RETURNING kept.{key}"
    ).format(
        table=Identifier(table),
        key=Identifier(columns[0]),
        columns=_names(columns),
        descending=SQL(", ").join(SQL("{} DESC").format(Identifier(name)) for name in VERSION),
        new=_names(columns, "excluded"),
        new_version=_names(VERSION, "excluded"),
        old_version=_names(VERSION, "kept"),
    )


@cache
def _ties(table: str) -> Composed:
    return SQL(
        "SELECT {key} AS object_id, version_at FROM ("
        "SELECT {key}, version_at, version_digest, "
        "rank() OVER (PARTITION BY {key} ORDER BY terminal DESC, version_at DESC) AS place FROM ("
        "SELECT {key}, terminal, version_at, version_digest "
        "FROM jsonb_populate_recordset(NULL::{table}, %(rows)s) "
        "UNION ALL SELECT {key}, terminal, version_at, version_digest FROM {table} WHERE {key} = ANY (%(ids)s)"
        ") seen) placed WHERE place = 1 "
        "GROUP BY {key}, version_at HAVING count(DISTINCT version_digest) > 1"
    ).format(table=Identifier(table), key=Identifier(_key(table)))
