"""A flush is refused on a database that takes no writes, before Stripe is asked for anything; looking is not."""

from __future__ import annotations

import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg.sql import SQL, Identifier

from billing_pipeline.errors import DatabaseUnavailable
from billing_pipeline.settings import load_settings
from billing_pipeline.usage.flow import open_flow
from billing_pipeline_tests.cli.command import billing_pipeline


@pytest.fixture
def read_only(database_url, connection):
    """The test's database, set to read-only for every new session."""
    name = Identifier(conninfo_to_dict(database_url)["dbname"])
    connection.execute(SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(name))
    return database_url


def test_a_flow_is_not_opened_where_nothing_can_be_written(read_only):
    with (
        pytest.raises(DatabaseUnavailable, match=r"default_transaction_read_only is on.*Turn it off, or point"),
        open_flow(load_settings(), read_only, holder="test"),
    ):
        pass


@pytest.mark.parametrize("command", ["flush-now", "create-customers", "stripe-setup"])
def test_a_command_that_writes_says_so_before_it_asks_stripe(tmp_path, read_only, command):
    # Nobody answers there, and a command that asks would tell of that.
    nobody = {"STRIPE_API_BASE": "http://127.0.0.1:1"}
    code, out, err = billing_pipeline(
        command, folder=tmp_path, DATABASE_URL=read_only, BILLING_STATE_DIR="state", **nobody
    )

    assert (code, out, err.count("\n")) == (1, "", 1)
    assert "takes no writes: default_transaction_read_only is on" in err


@pytest.mark.parametrize("command", [("ledger", "status"), ("reconcile",)])
def test_a_command_that_only_looks_works_there(tmp_path, read_only, command):
    code, out, err = billing_pipeline(*command, folder=tmp_path, DATABASE_URL=read_only, BILLING_STATE_DIR="state")

    assert (code, err) == (0, "")
    assert out
