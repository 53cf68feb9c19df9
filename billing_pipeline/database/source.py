"""The source as it is now: one relation of the team's, read under our column names, made in one place.

Every statement with `{source}` gets it here.  Where each column has our name and type it is the plain relation; else a
subselect that renames and casts, which the planner dissolves, so that the relation's own indexes serve either way.
Casts are applied only where they are exact; a column of another type is left as it is, for the contract to refuse.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from psycopg import Connection
from psycopg.sql import SQL, Composable, Identifier

from billing_pipeline.database import queries
from billing_pipeline.domain.source_columns import INTEGERS, NEEDED, READ_AS
from billing_pipeline.domain.source_shape import SourceColumn, SourceShape
from billing_pipeline.settings import Settings

KINDS = {"r": "table", "p": "partitioned table", "v": "view", "m": "materialized view", "f": "foreign table"}

_TEXT_AS_KEY = {
    "uuid": "CASE WHEN {text} ~ '^[0-9a-f]{{8}}(-[0-9a-f]{{4}}){{3}}-[0-9a-f]{{12}}$' THEN {text}::uuid END",
    "integer": "CASE WHEN {text} ~ '^(0|-?[1-9][0-9]{{0,18}})$' THEN CASE WHEN {text}::numeric "
    "BETWEEN -9223372036854775808 AND 9223372036854775807 THEN {text}::bigint END END",
    "character": "{text}::bpchar",
}
"""An id of ours as a key of theirs, null where it cannot be one: `event_id = ...` on their side finds no index."""


@dataclass(frozen=True, slots=True)
class Source:
    """A relation as `BILLING_SOURCE_RELATION` names it, and what PostgreSQL says it is; no shape: it does not exist."""

    relation: str
    columns: tuple[tuple[str, str], ...]
    """Our names and theirs, where `BILLING_SOURCE_COLUMNS` maps them."""
    shape: SourceShape | None

    @property
    def can_be_locked(self) -> bool:
        """Whether LOCK TABLE takes it, and for a view what it reads too."""
        return self.shape is not None and self.shape.kind in ("table", "partitioned table", "view")

    @property
    def table(self) -> Composable:
        """The relation itself, quoted."""
        return queries.relation(self.relation)

    @property
    def sql(self) -> Composable:
        """What stands for `{source}` after FROM or JOIN; it has every column of ours, and wants an alias."""
        return self._select(list(READ_AS)) if self._needs_subselect else self.table

    @property
    def parts(self) -> dict[str, Composable]:
        """For statements: `{source}`, and `{same_event}`, which joins it as `s` with an `event_id` of ours in `q`."""
        same: Composable = SQL("s.event_id = q.event_id")
        if key := self._key:
            # The key is for their index; that the ids are equal as text is asked besides.
            mine = SQL(_TEXT_AS_KEY[key]).format(text=SQL("q.event_id"))
            same = SQL("s.event_key = {} AND s.event_id = q.event_id").format(mine)
        return {"source": self.sql, "same_event": same}

    @property
    def id_parts(self) -> dict[str, Composable]:
        """For questions about their own id column, without a cast: `{source}`, and `{an_id}`, a null of its type.

        Each type we take has one text per value, so what is unique there is unique as text.
        """
        column = self.column("event_id")
        id_type = column.type if column else "text"
        # As PostgreSQL spells it, quoted where it must be.
        return {"source": self._select(["event_id"], cast=False), "an_id": SQL(f"NULL::{id_type}")}

    def column(self, name: str) -> SourceColumn | None:
        """The column that is our `name`, where there is one."""
        return self.shape.column(name) if self.shape else None

    def theirs(self, name: str) -> str:
        """Their name of our column `name`."""
        return dict(self.columns).get(name, name)

    @property
    def _key(self) -> str | None:
        """Which of their keys the text of an id is turned into, where text itself finds no index."""
        column = self.column("event_id")
        found = "integer" if column and column.type in INTEGERS else column.type if column else ""
        return found if found in _TEXT_AS_KEY else None

    @property
    def _needs_subselect(self) -> bool:
        if self.shape is None:
            return any(ours != column for ours, column in self.columns)
        return any(
            (found := self.column(name)) is None or found.column != name or found.type != wanted
            for name, wanted in READ_AS.items()
        )

    def _select(self, names: list[str], *, cast: bool = True) -> Composable:
        outputs = [self._output(name, cast) for name in names]
        if cast and self._key:
            outputs.append(SQL("{} AS event_key").format(Identifier(self.theirs("event_id"))))
        return SQL("(SELECT {} FROM {})").format(SQL(", ").join(outputs), self.table)

    def _output(self, name: str, cast: bool) -> Composable:
        column, ours = self.column(name), Identifier(name)
        if column is None and name not in NEEDED:
            return SQL("NULL::{} AS {}").format(SQL(READ_AS[name]), ours)
        value: Composable = Identifier(self.theirs(name))
        if cast and column and column.type != READ_AS[name] and not column.unsuitable:
            value = SQL("{}::{}").format(value, SQL(READ_AS[name]))
        return SQL("{} AS {}").format(value, ours)


def read_source(connection: Connection[Any], settings: Settings) -> Source:
    """The source that the settings name, as it is now; one read of the catalogs, and none of the relation."""
    return _read(connection, settings.billing_source_relation, settings.source_columns)


def read_again(connection: Connection[Any], source: Source) -> Source:
    """The same source as it is now."""
    return _read(connection, source.relation, dict(source.columns))


def _read(connection: Connection[Any], relation: str, columns: Mapping[str, str]) -> Source:
    quoted = queries.relation(relation).as_string(connection)
    found = queries.fetch_dicts(connection, "source_columns", {"relation": quoted})
    if not found:
        return Source(relation, tuple(columns.items()), None)
    by_name = {row["name"]: row for row in found}
    shape = SourceShape(
        kind=KINDS.get(found[0]["kind"], "no table or view"),
        columns=tuple(
            SourceColumn(name, row["name"], row["type"], row["declared"], tuple(row["labels"]))
            for name in READ_AS
            if (row := by_name.get(columns.get(name, name))) is not None
        ),
    )
    return Source(relation, tuple(columns.items()), shape)
