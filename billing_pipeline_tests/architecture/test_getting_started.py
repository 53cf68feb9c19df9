"""docs/getting-started.md can be typed in as it stands: its SQL, its files, its keys and its exit codes."""

from __future__ import annotations

import inspect
import re
import tomllib
from dataclasses import fields
from pathlib import Path

import pytest
from psycopg import sql

from billing_pipeline import errors
from billing_pipeline.cli.import_events import import_events_command
from billing_pipeline.database.connection import connect
from billing_pipeline.database.migrate import migrate
from billing_pipeline.domain.catalogue import parse_catalogue
from billing_pipeline.usage.import_mapping import ImportMapping, load_mapping

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
