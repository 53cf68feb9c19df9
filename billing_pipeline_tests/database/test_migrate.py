"""The migrations lead where tables.py says, once, whoever else is migrating."""

import re
import subprocess
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from psycopg.sql import SQL, Identifier
from sqlalchemy import create_engine

from billing_pipeline.database import migrate as migrations
from billing_pipeline.database.connection import connect
from billing_pipeline.database.location import with_database
from billing_pipeline.database.migrate import migrate, pending_revisions
from billing_pipeline.database.tables import SCHEMA, metadata, source_metadata
from billing_pipeline.database.wheel import programs
from billing_pipeline.errors import DatabaseUnavailable, UserError
from billing_pipeline_tests.fix_postgres import fresh_database

SCRIPTS = ScriptDirectory(str(Path(migrations.__file__).with_name("migrations")))
REVISIONS = [script.revision for script in SCRIPTS.walk_revisions()][::-1]


def schema_of(database_url: str) -> str:
    """The whole schema as pg_dump writes it: triggers, functions and comments too."""
    dump = subprocess.run(
        [programs() / "pg_dump", "--schema-only", "--exclude-table=*.alembic_version", database_url],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    # psql's guard words in the dump are random, and some servers set options of columns by themselves; we set none.
    noise = r"^\\(un)?restrict .*$|^ALTER TABLE ONLY \S+ ALTER COLUMN \S+ SET (\(|STORAGE|COMPRESSION|STATISTICS).*;$"
    return re.sub(noise, "", dump, flags=re.MULTILINE)


def test_migrations_build_exactly_what_tables_py_says(database_url, server_url):
    with fresh_database(server_url, "template0") as expected_url:
        engine = create_engine(expected_url.replace("postgresql://", "postgresql+psycopg://"))
        metadata.create_all(engine)
        source_metadata.create_all(engine)
        engine.dispose()
        expected = schema_of(expected_url)

    assert "CREATE TRIGGER guard_change" in expected
    assert schema_of(database_url) == expected


@pytest.mark.parametrize("revision", REVISIONS)
def test_each_revision_upgrades_from_the_one_before(revision, empty_database_url):
    before = SCRIPTS.get_revision(revision).down_revision
    upgrade_to(empty_database_url, before)

    assert pending_revisions(empty_database_url) == REVISIONS[REVISIONS.index(revision) :]
    upgrade_to(empty_database_url, revision)
    assert pending_revisions(empty_database_url) == REVISIONS[REVISIONS.index(revision) + 1 :]


def upgrade_to(database_url: str, revision: str | None) -> None:
    if revision is not None:
        with migrations._connect(database_url) as connection, connection.begin():
            migrations._create_schema(connection)
            command.upgrade(migrations._config(connection), revision)


def test_revisions_are_numbered_files_that_say_their_purpose():
    for number, revision in enumerate(REVISIONS, start=1):
        name = Path(SCRIPTS.get_revision(revision).path).name

        assert revision == f"{number:04d}"
        assert re.fullmatch(rf"{revision}_[a-z_]+\.py", name)


def test_migrating_twice_changes_nothing(empty_database_url):
    assert migrate(empty_database_url, create_source=True) == REVISIONS
    first = schema_of(empty_database_url)

    assert migrate(empty_database_url, create_source=True) == []
    assert schema_of(empty_database_url) == first


def test_four_callers_at_once_migrate_once(empty_database_url):
    start = threading.Barrier(4)

    def call(_: int) -> list[str]:
        start.wait()
        return migrate(empty_database_url, create_source=True)

    with ThreadPoolExecutor(4) as pool:
        applied = list(pool.map(call, range(4)))

    assert sorted(applied) == [[], [], [], REVISIONS]


def test_the_source_belongs_to_the_team_unless_asked_for(empty_database_url):
    migrate(empty_database_url, create_source=False)

    with connect(empty_database_url) as connection:
        assert connection.execute("SELECT to_regclass('public.billable_events')").fetchone() == (None,)


def test_an_existing_source_is_left_as_it_is(empty_database_url):
    with connect(empty_database_url) as connection:
        connection.execute("CREATE TABLE public.billable_events (event_id text)")
    migrate(empty_database_url, create_source=True)

    with connect(empty_database_url) as connection:
        columns = connection.execute("SELECT * FROM public.billable_events").description
    assert [column.name for column in columns] == ["event_id"]


def test_c17_a_failing_migration_leaves_nothing_behind(empty_database_url):
    with connect(empty_database_url) as connection:
        connection.execute(f"CREATE SCHEMA {SCHEMA}")
        connection.execute(f"CREATE TABLE {SCHEMA}.evidence (in_the_way text)")
    before = schema_of(empty_database_url)

    with pytest.raises(UserError, match=r"evidence.*already exists"):
        migrate(empty_database_url, create_source=True)

    assert schema_of(empty_database_url) == before


def test_a_server_that_goes_away_is_told_in_one_sentence(empty_database_url):
    with connect(empty_database_url) as other, ThreadPoolExecutor(1) as pool:
        other.execute("SELECT pg_advisory_lock(%s)", (migrations.MIGRATION_LOCK,))
        migrating = pool.submit(migrate, empty_database_url, create_source=True)
        waiting = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        while not (pids := other.execute(waiting).fetchall()):
            time.sleep(0.01)
        other.execute("SELECT pg_terminate_backend(%s)", pids[0])

        with pytest.raises(DatabaseUnavailable, match=r"What was not committed is undone"):
            migrating.result(timeout=10)


def test_a_newer_schema_is_refused_with_what_to_do(database_url, connection):
    connection.execute("UPDATE alembic_version SET version_num = '9999'")

    for call in (pending_revisions, lambda url: migrate(url, create_source=False)):
        with pytest.raises(UserError, match=r"9999, which this version does not know.*Install the version"):
            call(database_url)


def test_a_login_without_rights_is_told_so(own_server_url):
    role, name = "migrate_reader", "migrate_by_reader"
    with connect(own_server_url) as admin:
        admin.execute(SQL("CREATE ROLE {} LOGIN").format(Identifier(role)))
        admin.execute(SQL("CREATE DATABASE {}").format(Identifier(name)))
    url = with_database(own_server_url, name).replace("user=postgres", f"user={role}")
    try:
        with pytest.raises(UserError, match=r"nothing was changed: permission denied.*Migrate with a login"):
            migrate(url, create_source=False)
        with pytest.raises(UserError, match=r"nothing was changed: permission denied"):
            migrate(url, create_source=True)
    finally:
        with connect(own_server_url) as admin:
            admin.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))
            admin.execute(SQL("DROP ROLE {}").format(Identifier(role)))
