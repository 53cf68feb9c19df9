"""What a database lacks is told in one sentence with the next step: never a traceback, never a password."""

from psycopg.sql import SQL, Identifier

from billing_pipeline.database.connection import connect
from billing_pipeline.database.location import with_database
from billing_pipeline.database.migrate import migrate
from billing_pipeline_tests.cli.command import billing_pipeline


def refusal(*arguments: str, folder, **settings: object) -> str:
    """The one sentence of a command that a person has to help."""
    code, out, err = billing_pipeline(*arguments, folder=folder, **settings)

    assert (code, out) == (2, ""), err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    return err


def test_a_missing_source_is_named_with_where_its_sql_is(tmp_path, empty_database_url):
    migrate(empty_database_url, create_source=False)

    told = refusal("reconcile", folder=tmp_path, DATABASE_URL=empty_database_url)
    assert 'relation "public.billable_events" does not exist' in told
    assert "docs/getting-started.md" in told
    assert "BILLING_SOURCE_RELATION" in told


def test_a_missing_column_is_named(tmp_path, empty_database_url):
    migrate(empty_database_url, create_source=False)
    with connect(empty_database_url) as connection:
        connection.execute("CREATE TABLE public.billable_events (event_id text PRIMARY KEY)")

    told = refusal("reconcile", folder=tmp_path, DATABASE_URL=empty_database_url)
    assert "does not exist. The columns that a source needs are in docs/getting-started.md" in told


def test_a_login_without_rights_is_told_what_to_grant(tmp_path, own_server_url):
    role, name = "poor_login", "refusals"
    with connect(own_server_url) as admin:
        admin.execute(SQL("CREATE DATABASE {}").format(Identifier(name)))
        admin.execute(SQL("CREATE ROLE {} LOGIN").format(Identifier(role)))
    url = with_database(own_server_url, name)
    try:
        migrate(url, create_source=True)
        told = refusal("reconcile", folder=tmp_path, DATABASE_URL=url.replace("user=postgres", f"user={role}"))
        assert "permission denied for schema billing_pipeline. Grant the login" in told
    finally:
        with connect(own_server_url) as admin:
            admin.execute(SQL("DROP DATABASE {} WITH (FORCE)").format(Identifier(name)))
            admin.execute(SQL("DROP ROLE {}").format(Identifier(role)))


def test_a_database_that_does_not_exist_is_named(tmp_path, empty_database_url):
    told = refusal("migrate", folder=tmp_path, DATABASE_URL=with_database(empty_database_url, "no_such_database"))

    assert "refuses the login" in told
    assert 'database "no_such_database" does not exist. Create it, or correct DATABASE_URL.' in told
