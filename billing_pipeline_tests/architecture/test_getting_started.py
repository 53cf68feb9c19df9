"""docs/getting-started.md can be typed in as it stands: its SQL, its files, its keys and its exit codes."""

from __future__ import annotations

import inspect
import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
from psycopg import sql

import billing_pipeline
from billing_pipeline import errors
from billing_pipeline.cli.import_events import import_events_command
from billing_pipeline.database.connection import connect
from billing_pipeline.database.migrate import migrate
from billing_pipeline.domain.catalogue import parse_catalogue
from billing_pipeline.domain.source_columns import NEEDED, READ_AS, parse_source_columns, unsuitable
from billing_pipeline.settings import load_settings
from billing_pipeline.usage.import_mapping import ImportMapping, load_mapping
from billing_pipeline.usage.source_contract import holds_an_event_once
from billing_pipeline_tests.builders import source_of

TEXT = (Path(__file__).parents[2] / "docs/getting-started.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)


def columns_of(database_url: str) -> list[tuple[str, ...]]:
    question = """
        SELECT column_name, data_type, is_nullable, column_default FROM information_schema.columns
         WHERE table_schema = 'public' AND table_name = 'billable_events' ORDER BY ordinal_position"""
    with connect(database_url) as connection:
        return connection.execute(question).fetchall()


def test_its_source_is_the_one_of_the_embedded_database(database_url, empty_database_url):
    migrate(empty_database_url, create_source=False)
    with connect(empty_database_url) as connection:
        for statement in blocks("sql"):
            connection.execute(sql.SQL(statement))

    assert columns_of(empty_database_url) == columns_of(database_url)
    assert all(f"| `{column}` | `" in TEXT for column, *_ in columns_of(database_url))


def test_its_mapping_of_columns_is_one():
    settings = dict(line.split("=", 1) for line in blocks("sh")[0].splitlines())

    assert set(parse_source_columns(settings["BILLING_SOURCE_COLUMNS"])) == set(NEEDED)
    assert load_settings(billing_source_relation=settings["BILLING_SOURCE_RELATION"])


@pytest.mark.parametrize("expected", ["text", "numeric", "jsonb"])
def test_the_types_it_names_are_those_that_are_read(expected):
    spoken = {"varchar": "character varying", "char": "character"}
    name = next(name for name, read_as in READ_AS.items() if read_as == expected)
    named = re.findall(r"`(\w+)`", re.search(rf"^\| `{expected}` \| (.*) \|$", TEXT, re.MULTILINE)[1])

    assert [t for t in named if unsuitable(name, "x", spoken.get(t, t), is_enum=False)] == []


def test_its_view_of_a_table_partitioned_by_time_is_counted(connection):
    view = re.search(r"CREATE VIEW public.billing_source.*?;", TEXT, re.DOTALL)[0]
    connection.execute(
        "CREATE SCHEMA app;"
        "CREATE TABLE app.monthly_events (LIKE public.billable_events, PRIMARY KEY (event_id, occurred_at))"
        " PARTITION BY RANGE (occurred_at)"
    )
    connection.execute(sql.SQL(view))

    assert not holds_an_event_once(connection, source_of(connection, "app.monthly_events"))
    assert holds_an_event_once(connection, source_of(connection, "public.billing_source"))


def test_every_reason_about_the_source_is_explained():
    package = Path(billing_pipeline.__file__).parent
    code = "".join((package / name).read_text() for name in ("usage/source_contract.py", "domain/source_shape.py"))
    reasons = set(re.findall(r'"(source_\w+|event_id_not_unique)"', code)) - {"source_columns"}

    assert {reason for reason in reasons if f"`{reason}`" not in TEXT} == set()


def test_its_catalogue_is_one():
    catalogue = parse_catalogue(next(block for block in blocks("toml") if "[meters." in block), origin="the document")

    assert {meter.name for meter in catalogue.meters} == {"prompt_tokens", "generated_tokens", "active_users"}


def test_its_mapping_is_one_and_every_key_is_explained(tmp_path):
    file = tmp_path / "mapping.toml"
    file.write_text(next(block for block in blocks("toml") if "[[events]]" in block))
    assert load_mapping(file, {}).columns() == ("when", "account", "tokens_in", "tokens_out", "region")
    assert set(tomllib.loads(file.read_text())) <= {field.name for field in fields(ImportMapping)}

    explained = dict(re.findall(r"^\| `(\w+)` \| `(--[\w-]+)` \|", TEXT, re.MULTILINE))
    assert set(explained) == {field.name for field in fields(ImportMapping)}
    options = {name.replace("_", "-") for name in inspect.signature(import_events_command).parameters} | {"property"}
    assert {option.removeprefix("--") for option in explained.values()} <= options


@pytest.mark.parametrize("name", [name for name, found in vars(errors).items() if inspect.isclass(found)])
def test_every_exit_code_is_explained(name):
    assert not issubclass(found := getattr(errors, name), BaseException) or f"\n| {found.exit_code} |" in TEXT
