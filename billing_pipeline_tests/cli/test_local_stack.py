"""A configured database is migrated only on request; without a key the simulator runs for as long as it is needed."""

import socket
from pathlib import Path

import pytest
from pydantic import SecretStr

from billing_pipeline.cli.children import answers
from billing_pipeline.cli.local_stack import listens, local_stack
from billing_pipeline.database.connection import connect
from billing_pipeline.database.location import resolve_dagster_url, resolve_database_url
from billing_pipeline.errors import UserError
from billing_pipeline.settings import Settings, load_settings
from billing_pipeline_tests.cli.command import billing_pipeline
from billing_pipeline_tests.fix_postgres import drop_database


@pytest.fixture
def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def settings_for(database_url: str, folder: Path, port: int) -> Settings:
    return load_settings(database_url=SecretStr(database_url), billing_state_dir=folder, simulator_port=port)


def test_migrate_applies_once_and_says_so(tmp_path, empty_database_url):
    first = billing_pipeline("migrate", folder=tmp_path, DATABASE_URL=empty_database_url)
    second = billing_pipeline("migrate", folder=tmp_path, DATABASE_URL=empty_database_url)

    assert first[0] == second[0] == 0
    assert "applied 0001" in first[1]
    assert "up to date" in second[1]


def test_a_configured_source_is_never_created(tmp_path, empty_database_url):
    billing_pipeline("migrate", folder=tmp_path, DATABASE_URL=empty_database_url)

    with connect(empty_database_url) as connection:
        assert connection.execute("SELECT to_regclass('public.billable_events')").fetchone() == (None,)


def test_a_configured_database_without_migrations_is_refused_with_the_command(tmp_path, empty_database_url, free_port):
    settings = settings_for(empty_database_url, tmp_path, free_port)

    with (
        pytest.raises(UserError, match=r"lacks the schema changes 0001.*billing-pipeline migrate"),
        local_stack(settings),
    ):
        pytest.fail("it must not start")


@pytest.mark.slow
def test_the_simulator_runs_for_the_time_of_the_block(tmp_path, database_url, free_port):
    health = f"http://127.0.0.1:{free_port}/_health"
    settings = settings_for(database_url, tmp_path, free_port)
    with local_stack(settings) as stack:
        assert stack.database_url == database_url
        assert answers(health)
        with local_stack(settings) as inner:
            assert inner.simulator is None
        assert answers(health)

    assert not listens(free_port)
    assert (tmp_path / "stripe_simulator.jsonl").exists()


def test_with_a_key_there_is_no_simulator(tmp_path, database_url, free_port):
    settings = settings_for(database_url, tmp_path, free_port)
    with local_stack(settings.model_copy(update={"stripe_secret_key": SecretStr("sk_test_0123456789")})) as stack:
        assert stack.simulator is None
        assert not listens(free_port)


def test_another_program_on_the_simulators_port_is_named(tmp_path, database_url):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        settings = settings_for(database_url, tmp_path, port)
        with pytest.raises(UserError, match=rf"Port {port} is used.*SIMULATOR_PORT"), local_stack(settings):
            pytest.fail("it must not start")


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg", "postgresql+psycopg2"])
def test_every_spelling_of_the_scheme_is_taken(scheme, tmp_path):
    settings = settings_for(f"{scheme}://me:p%40ss@db.example:5433/billing?sslmode=require", tmp_path, 1)

    assert resolve_database_url(settings) == "postgresql://me:p%40ss@db.example:5433/billing?sslmode=require"


def test_dagster_gets_a_database_of_its_own_through_psycopg2(tmp_path, database_url, server_url):
    import sqlalchemy

    settings = settings_for(database_url, tmp_path, 1)
    url = resolve_dagster_url(settings)
    name = sqlalchemy.make_url(url).database
    try:
        assert resolve_dagster_url(settings) == url
        assert url.startswith("postgresql+psycopg2://")
        engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
        with engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT current_database()").scalar() == name
        assert name == f"{connection_name(database_url)}_dagster"
    finally:
        drop_database(server_url, name)


def connection_name(database_url: str) -> str:
    with connect(database_url) as connection:
        return connection.info.dbname


def test_dagsters_configured_database_is_taken_as_it_is(tmp_path):
    settings = load_settings(dagster_database_url=SecretStr("postgres://me:p%40ss@db.example/runs"))

    assert resolve_dagster_url(settings) == "postgresql+psycopg2://me:p%40ss@/runs?host=db.example"
