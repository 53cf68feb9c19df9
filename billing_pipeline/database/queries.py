"""Loads the named statements of `sql/*.sql` and runs them.

A statement begins with `-- name: some_name`, a part of several with `-- part: some_name`; the comment lines below it
say why it is written that way.
The same name is used by the function that runs it and by the test that proves it, so one search finds all three.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import resources
from typing import Any, LiteralString, TypeVar, cast

from psycopg import Connection
from psycopg.rows import class_row, dict_row
from psycopg.sql import SQL, Composable, Composed, Identifier

Row = TypeVar("Row")

_NAME = re.compile(r"^-- (name|part): (\w+)\s*$", re.MULTILINE)
_COMMENT = re.compile(r"\A(--.*\n)+")
STREAMED_AT_ONCE = 5_000


def statements() -> dict[str, LiteralString]:
    """Every named statement of the package, by name."""
    return _named("name")


def part(name: str) -> SQL:
    """A named part of other statements."""
    return SQL(_named("part")[name])


@cache
def _named(kind: str) -> dict[str, LiteralString]:
    found: dict[str, LiteralString] = {}
    for file in sorted(resources.files("billing_pipeline.database").joinpath("sql").iterdir(), key=lambda f: f.name):
        parts = _NAME.split(file.read_text(encoding="utf-8"))
        for marked, name, body in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
            if marked != kind:
                continue
            if name in found:
                raise ValueError(f"two statements are named {name}; the second is in {file.name}")
            # The text comes from our own package data, never from a user.
            found[name] = cast(LiteralString, body.strip() if kind == "name" else _COMMENT.sub("", body.strip()))
    return found


def relation(qualified_name: str) -> Composed:
    """A table or view name such as `public.billable_events`, quoted part by part."""
    return SQL(".").join(Identifier(part) for part in qualified_name.split("."))


def _compose(name: str, parts: Mapping[str, Composable] | None) -> Composed | SQL:
    statement = SQL(statements()[name])
    return statement.format(**parts) if parts else statement


def execute(
    connection: Connection[Any],
    name: str,
    params: Mapping[str, Any] | None = None,
    *,
    parts: Mapping[str, Composable] | None = None,
) -> int:
    """Run a statement; return the number of rows it touched."""
    return connection.execute(_compose(name, parts), params).rowcount


def fetch(
    connection: Connection[Any],
    name: str,
    row: type[Row],
    params: Mapping[str, Any] | None = None,
    *,
    parts: Mapping[str, Composable] | None = None,
) -> list[Row]:
    """Run a statement and build one `row` (a frozen dataclass) per result row."""
    # Binary: the driver reads numbers and times without going through text.
    with connection.cursor(row_factory=class_row(row), binary=True) as cursor:
        return cursor.execute(_compose(name, parts), params).fetchall()


def stream(
    connection: Connection[Any],
    name: str,
    row: type[Row],
    params: Mapping[str, Any] | None = None,
    *,
    parts: Mapping[str, Composable] | None = None,
    at_once: int = STREAMED_AT_ONCE,
) -> Iterator[Row]:
    """The same row by row, `at_once` of them in memory, for a result of any size; only inside a transaction."""
    with connection.cursor(name=name, row_factory=class_row(row)) as cursor:
        cursor.itersize = at_once
        yield from cursor.execute(_compose(name, parts), params)


def fetch_dicts(
    connection: Connection[Any],
    name: str,
    params: Mapping[str, Any] | None = None,
    *,
    parts: Mapping[str, Composable] | None = None,
) -> list[dict[str, Any]]:
    """Run a statement and return its rows as dictionaries, for reports."""
    with connection.cursor(row_factory=dict_row) as cursor:
        return cursor.execute(_compose(name, parts), params).fetchall()
