"""Every named statement fits the schema: PostgreSQL parses and plans it, with nulls for its values."""

import re
from string import Formatter

import pytest
from psycopg import Connection, Error
from psycopg.errors import UndefinedColumn

from billing_pipeline.database.connection import connect
from billing_pipeline.database.queries import part, statements
from billing_pipeline_tests.fix_postgres import fresh_database

PARAMETER = re.compile(r"%\((\w+)\)[sb]")
RELATION = re.compile(r"(?:FROM|JOIN|INTO|UPDATE|TABLE|COPY|LIKE)\s+\{(\w+)\}")
PREPARABLE = ("SELECT", "INSERT", "UPDATE", "DELETE", "MERGE", "VALUES", "WITH")
INSTANT = re.compile(r"now|since|.*_(at|start|end|before|after|since|until)")
INTERVAL = re.compile(r"(entry_)?lease|safe_send|absence_after|.*_(age|max|interval)")
"""Values that the driver sends with these types, known by their names; the others PostgreSQL infers from their use."""
PARTS = {
    "fault": "fault_of_row",
    "rows": "rows_of_all_hours",
    "counted": "counted_whole",
    "quantity": "quantity_of_period_levels",
    "property_missing": "missing_property",
    "filtered_meters": "meters_by_filter",
    "windows": "windows_of_touched_hours",
    "months": "months_of_touched_hours",
    "first_hours": "first_touched_hours",
}
"""Places whose part has another name, or is one of several."""
NULLS = {"properties": "s.properties", "looked_at_singly": "true", "an_id": "NULL::text"}


def type_of(name: str) -> str:
    if INTERVAL.fullmatch(name):
        return "interval"
    return "timestamptz" if INSTANT.fullmatch(name) else "unknown"


def null(name: str) -> str:
    return "NULL" if type_of(name) == "unknown" else f"NULL::{type_of(name)}"


def composed(statement: str) -> str:
    """The statement without its comment, its relations named and every other part a null."""
    body = re.sub(r"\A(--.*\n|\s)+", "", statement).rstrip("; \n")
    fields = {field for _, field, _, _ in Formatter().parse(body) if field}
    relations = set(RELATION.findall(body))
    parts = {name: part_of(name, is_relation=name in relations) for name in fields}
    return body.format(**parts) if fields else body


def part_of(name: str, *, is_relation: bool) -> str:
    """What may stand in this place: a part of the package where one is for it, else a relation or a null."""
    try:
        return composed(part(PARTS.get(name, name))._obj)
    except KeyError:
        return "public.billable_events" if is_relation else NULLS.get(name) or null(name)


def check(connection: Connection, statement: str) -> str:
    """Prepare and plan one statement; one that cannot be prepared runs, for the statements that need its effect."""
    body = composed(statement)
    names = list(dict.fromkeys(PARAMETER.findall(body)))
    if not body.startswith(PREPARABLE):
        return run(connection, PARAMETER.sub(lambda found: null(found[1]), body))
    for number, name in enumerate(names, start=1):
        body = re.sub(rf"%\({name}\)[sb]", f"${number}", body)
    types = f"({', '.join(map(type_of, names))})" if names else ""
    values = f"({', '.join('NULL' for _ in names)})" if names else ""
    connection.execute("DEALLOCATE ALL")
    connection.execute(f"PREPARE it {types} AS {body.replace('%%', '%')}")
    return connection.execute(f"EXPLAIN EXECUTE it {values}").fetchone()[0]


def run(connection: Connection, body: str) -> str:
    if made := re.match(r"CREATE TEMP(?:ORARY)? TABLE (\w+)", body):
        # Two statements may make the same table, for one reader or the other.
        connection.execute(f"DROP TABLE IF EXISTS pg_temp.{made[1]}")
    with connection.cursor() as cursor:
        if body.startswith("COPY"):
            with cursor.copy(body):
                pass
        else:
            cursor.execute(body)
        return cursor.statusmessage


@pytest.fixture(scope="module")
def planned(server_url, template):
    """What the planner says to each statement, in the order of the files: one error does not hide another."""
    found: dict[str, str | Error] = {}
    with fresh_database(server_url, template) as url, connect(url) as connection, connection.transaction():
        connection.prepare_threshold = None
        for name, statement in statements().items():
            try:
                with connection.transaction():
                    found[name] = check(connection, statement)
            except Error as exc:
                found[name] = exc
    return found


@pytest.mark.parametrize("name", sorted(statements()))
def test_statement_fits_the_schema(name, planned):
    if isinstance(planned[name], Error):
        raise planned[name]
    assert planned[name]


def test_statement_with_an_unknown_column_is_found(connection):
    with pytest.raises(UndefinedColumn, match='column "no_such_column" does not exist'):
        check(connection, "-- why\nSELECT no_such_column FROM ledger_entries WHERE entry_id = %(entry_id)s;")
