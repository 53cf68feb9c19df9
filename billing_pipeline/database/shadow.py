"""A second copy of the projections, in a schema of its own, filled from the inbox and held against the live one.

Used by the rebuild.  The search path puts the copy first, so the code that writes live rows writes these; everything
else (the inbox, the mappings) is still the live one.
The statements are made from the tables' own columns, because they are the same for each.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from psycopg import Connection
from psycopg.sql import SQL, Composed, Identifier
from sqlalchemy import Table

from billing_pipeline.database import queries
from billing_pipeline.database.base import SCHEMA
from billing_pipeline.database.projection_tables import PROJECTIONS, customer_organizations, entitlements
from billing_pipeline.domain.projections.projected import READ

SHADOW = "billing_pipeline_rebuild"
COPIED = (*PROJECTIONS, customer_organizations, entitlements)
WHOSE = "known_customer_organizations"
"""The view that says whose a customer is, from the projections."""

LOCK = "rebuild of the projections"
"""The lease that a rebuild holds, for there is one copy."""

LONGEST_REBUILD = timedelta(hours=1)

NOT_CONTENT = {"source", "changed_at"}
"""Of two events that say the same in one second either may be the source; when a gate changed is known live only."""

SAYS_SOMETHING = {entitlements.name: SQL(" WHERE active OR reason IN ('subscription', 'checkout')")}
"""What an organization had once and has no more is history: that row says no, as no row does."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A row that is not the same live and rebuilt.  `kind` is only_live, only_rebuilt or differs (in `columns`)."""

    table_name: str
    object_id: str
    kind: str
    columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Compared:
    """How many rows the rebuilt table has, and how many rows are not the same live."""

    table_name: str
    rows: int
    differ: int


def only_one(connection: Connection[Any], holder: str, *, now: datetime) -> bool:
    """Whether `holder` may rebuild until it is `done`; False while another does, or has died within the last hour."""
    # A lease and no lock of the session, which a pooler may give to the next transaction's stranger.
    lease = {"lock_key": LOCK, "holder": holder, "expires_at": now + LONGEST_REBUILD, "now": now}
    return bool(queries.fetch_dicts(connection, "acquire_lease", lease))


def done(connection: Connection[Any], holder: str) -> None:
    """Drop the copy and let others rebuild."""
    _drop(connection)
    queries.execute(connection, "release_lease", {"lock_key": LOCK, "holder": holder})


def make_shadow(connection: Connection[Any]) -> None:
    """An empty copy of every projection, in place of what a rebuild that died left."""
    _drop(connection)
    connection.execute(SQL("CREATE SCHEMA {}").format(Identifier(SHADOW)))
    for table in COPIED:
        # Unlogged: it is worth nothing after a crash.
        statement = SQL("CREATE UNLOGGED TABLE {} (LIKE {} INCLUDING ALL)")
        connection.execute(statement.format(_in(SHADOW, table), _in(SCHEMA, table)))
    for name, columns in {
        "differences": "table_name text, object_id text, part text, kind text, columns text[], "
        "PRIMARY KEY (table_name, object_id, part)",
        "concerned": "stripe_customer_id text PRIMARY KEY",
    }.items():
        connection.execute(SQL("CREATE UNLOGGED TABLE {} ({})").format(Identifier(SHADOW, name), SQL(columns)))
    # The definition has bare names, as we find these tables; with the copy first on the path they mean the copy.
    [(definition,)] = connection.execute("SELECT pg_get_viewdef(%s)", [f"{SCHEMA}.{WHOSE}"]).fetchall()
    write_to_shadow(connection)
    connection.execute(SQL("CREATE VIEW {} AS {}").format(Identifier(SHADOW, WHOSE), SQL(definition)))
    write_live(connection)


def write_to_shadow(connection: Connection[Any]) -> None:
    """From now to the transaction's end, the projections' names mean the copy."""
    _search(connection, SHADOW, SCHEMA, "public")


def write_live(connection: Connection[Any]) -> None:
    """From now to the transaction's end, the projections' names mean what is live, as usual."""
    _search(connection, SCHEMA, "public")


def stop_writers(connection: Connection[Any]) -> None:
    """Let nobody else write a live projection until the transaction ends; readers go on."""
    # In the order in which the dispatcher writes them, so that neither waits for the other.
    names = SQL(", ").join(_in(SCHEMA, table) for table in COPIED)
    connection.execute(SQL("LOCK TABLE {} IN SHARE ROW EXCLUSIVE MODE").format(names))


def take_over(connection: Connection[Any], kinds: Mapping[str, str]) -> int:
    """Copy the live rows whose event or answer has no payload any more, since nothing else knows them; return how many.

    `kinds` are the kinds of objects by table, as answers name them.
    """
    return sum(
        connection.execute(_taking(table), {"read": READ, "kind": kinds[table.name]}).rowcount for table in PROJECTIONS
    )


def compare(connection: Connection[Any]) -> list[Compared]:
    """Put every difference between the copy and what is live into the copy's `differences`; count them by table."""
    connection.execute(SQL("TRUNCATE {}").format(_DIFFERENCES))
    found = []
    for table in COPIED:
        # Nothing else tells the planner how much there is.
        connection.execute(SQL("ANALYZE {}").format(_in(SHADOW, table)))
        differ = connection.execute(_comparison(table), {"table": table.name}).rowcount
        [(rows,)] = connection.execute(SQL("SELECT count(*) FROM {}").format(_in(SHADOW, table))).fetchall()
        found.append(Compared(table.name, rows, differ))
    return found


def differences(connection: Connection[Any], *, limit: int) -> list[Difference]:
    """The first of them, by table."""
    statement = SQL(
        "SELECT table_name, concat_ws(' ', object_id, nullif(part, '')), kind, columns FROM {} "
        "ORDER BY array_position(%(tables)s::text[], table_name), object_id, part LIMIT %(limit)s"
    ).format(_DIFFERENCES)
    params = {"tables": [table.name for table in COPIED], "limit": limit}
    return [
        Difference(table, object_id, kind, tuple(columns))
        for table, object_id, kind, columns in connection.execute(statement, params)
    ]


def put_right(connection: Connection[Any]) -> int:
    """Make the live projections what the copy says, where they differ; return how many rows changed.

    Whose entitlements may follow is in the copy's `concerned` afterwards.
    """
    changed = 0
    for table in PROJECTIONS:
        params = {"table": table.name}
        connection.execute(_concerning(table), params)
        changed += connection.execute(_removal(table), params).rowcount
        changed += connection.execute(_replacement(table), params).rowcount
    statement = SQL("INSERT INTO {} SELECT object_id FROM {} WHERE table_name = %s ON CONFLICT DO NOTHING").format(
        Identifier(SHADOW, "concerned"), _DIFFERENCES
    )
    connection.execute(statement, [customer_organizations.name])
    return changed


def customers_concerned(connection: Connection[Any], *, after: str, limit: int) -> list[str]:
    """Customers of whom an object was put right, in order after one of them."""
    statement = SQL("SELECT stripe_customer_id FROM {} WHERE stripe_customer_id > %s ORDER BY 1 LIMIT %s")
    found = connection.execute(statement.format(Identifier(SHADOW, "concerned")), [after, limit])
    return [customer for (customer,) in found]


def organizations_concerned(connection: Connection[Any], *, after: str, limit: int) -> list[str]:
    """Organizations whose entitlements differ, in order after one of them."""
    statement = SQL(
        "SELECT DISTINCT object_id FROM {} WHERE table_name = %s AND object_id > %s ORDER BY 1 LIMIT %s"
    ).format(_DIFFERENCES)
    found = connection.execute(statement, [entitlements.name, after, limit])
    return [organization for (organization,) in found]


_DIFFERENCES = Identifier(SHADOW, "differences")


def _drop(connection: Connection[Any]) -> None:
    connection.execute(SQL("DROP SCHEMA IF EXISTS {} CASCADE").format(Identifier(SHADOW)))


def _search(connection: Connection[Any], *schemas: str) -> None:
    connection.execute(SQL("SET LOCAL search_path TO {}").format(SQL(", ").join(map(Identifier, schemas))))


def _in(schema: str, table: Table) -> Identifier:
    return Identifier(schema, table.name)


def _columns(table: Table) -> list[str]:
    return [column.name for column in table.columns]


def _names(names: Iterable[str], of: str | None = None) -> Composed:
    return SQL(", ").join(Identifier(of, name) if of else Identifier(name) for name in names)


def _taking(table: Table) -> Composed:
    return SQL(
        "INSERT INTO {shadow} SELECT l.* FROM {live} l JOIN stripe_events e ON e.stripe_event_id = l.source "
        "WHERE e.payload IS NULL "
        "UNION ALL SELECT l.* FROM {live} l WHERE l.source = %(read)s AND EXISTS ("
        "SELECT FROM object_snapshots s WHERE s.object_kind = %(kind)s AND s.object_id = l.{key} "
        "AND s.read_at = l.version_at AND s.payload IS NULL)"
    ).format(shadow=_in(SHADOW, table), live=_in(SCHEMA, table), key=Identifier(_columns(table)[0]))


def _comparison(table: Table) -> Composed:
    keys = [column.name for column in table.primary_key]
    content = [name for name in _columns(table) if name not in NOT_CONTENT]
    key, part = (
        SQL("coalesce(l.{0}, r.{0})").format(Identifier(keys[place])) if place < len(keys) else SQL("''")
        for place in range(2)
    )
    sides = [
        SQL("(SELECT * FROM {}{})").format(_in(schema, table), SAYS_SOMETHING.get(table.name, SQL("")))
        for schema in (SCHEMA, SHADOW)
    ]
    return SQL(
        "INSERT INTO {differences} "
        "SELECT %(table)s, {key}, {part}, "
        "CASE WHEN r.{first} IS NULL THEN 'only_live' WHEN l.{first} IS NULL THEN 'only_rebuilt' ELSE 'differs' END, "
        "CASE WHEN r.{first} IS NULL OR l.{first} IS NULL THEN '{{}}' ELSE ARRAY("
        "SELECT a.key FROM jsonb_each(to_jsonb(l)) a JOIN jsonb_each(to_jsonb(r)) b USING (key) "
        "WHERE a.value <> b.value AND a.key = ANY ({content}) ORDER BY a.key) END "
        "FROM {live} l FULL JOIN {shadow} r USING ({keys}) "
        "WHERE ({live_content}) IS DISTINCT FROM ({shadow_content})"
    ).format(
        differences=_DIFFERENCES,
        key=key,
        part=part,
        first=Identifier(keys[0]),
        content=content,
        live=sides[0],
        shadow=sides[1],
        keys=_names(keys),
        live_content=_names(content, "l"),
        shadow_content=_names(content, "r"),
    )


def _concerning(table: Table) -> Composed:
    return SQL(
        "INSERT INTO {concerned} SELECT stripe_customer_id "
        "FROM (SELECT * FROM {live} UNION ALL SELECT * FROM {shadow}) s "
        "WHERE {key} IN (SELECT object_id FROM {differences} WHERE table_name = %(table)s) "
        "AND stripe_customer_id IS NOT NULL ON CONFLICT DO NOTHING"
    ).format(
        concerned=Identifier(SHADOW, "concerned"),
        live=_in(SCHEMA, table),
        shadow=_in(SHADOW, table),
        key=Identifier(_columns(table)[0]),
        differences=_DIFFERENCES,
    )


def _removal(table: Table) -> Composed:
    return SQL(
        "DELETE FROM {live} l USING {differences} d "
        "WHERE d.table_name = %(table)s AND d.kind = 'only_live' AND l.{key} = d.object_id"
    ).format(live=_in(SCHEMA, table), differences=_DIFFERENCES, key=Identifier(_columns(table)[0]))


def _replacement(table: Table) -> Composed:
    columns = _columns(table)
    return SQL(
        "INSERT INTO {live} ({columns}) "
        "SELECT {rebuilt} FROM {shadow} r JOIN {differences} d ON d.object_id = r.{key} AND d.table_name = %(table)s "
        "ON CONFLICT ({key}) DO UPDATE SET ({columns}) = ROW({new})"
    ).format(
        live=_in(SCHEMA, table),
        columns=_names(columns),
        rebuilt=_names(columns, "r"),
        shadow=_in(SHADOW, table),
        differences=_DIFFERENCES,
        key=Identifier(columns[0]),
        new=_names(columns, "excluded"),
    )
