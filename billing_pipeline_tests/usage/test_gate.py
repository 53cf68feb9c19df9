"""The gate knows whose ledger it is, freezes it once, and makes do with a server that hides who it is."""

from __future__ import annotations

import os

import pytest
from psycopg.sql import SQL, Identifier

from billing_pipeline.errors import IdentityMismatch
from billing_pipeline.usage.gate import bind, freeze, read_identity
from billing_pipeline_tests.fix_postgres import require_superuser


@pytest.fixture
def poor_login(flow):
    """The flow's connection as a login that may ask the server nothing about itself."""
    require_superuser(flow.connection)
    role = Identifier(f"billing_poor_{os.getpid()}")
    flow.connection.execute(SQL("CREATE ROLE {}").format(role))
    flow.connection.execute(SQL("GRANT ALL ON SCHEMA billing_pipeline TO {}").format(role))
    flow.connection.execute(SQL("GRANT ALL ON ALL TABLES IN SCHEMA billing_pipeline TO {}").format(role))
    flow.connection.execute("REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC")
    flow.connection.execute(SQL("SET ROLE {}").format(role))
    yield flow.connection
    flow.connection.execute("RESET ROLE")
    flow.connection.execute(SQL("DROP OWNED BY {}").format(role))
    flow.connection.execute(SQL("DROP ROLE {}").format(role))


def test_a_ledger_that_never_flushed_belongs_to_nobody(flow):
    with pytest.raises(IdentityMismatch, match="not bound to a Stripe account yet"):
        read_identity(flow.connection)


def test_a_frozen_ledger_keeps_its_first_reason(flow):
    now = flow.clock()
    bind(flow.connection, stripe_account="acct_1", livemode=False, now=now)

    freeze(flow.connection, "restored", now=now)
    freeze(flow.connection, "something else", now=now)

    assert read_identity(flow.connection).frozen_reason == "restored"
    assert flow.connection.execute("SELECT count(*) FROM ledger_operations WHERE action = 'freeze'").fetchone() == (1,)


def test_a_server_that_hides_who_it_is_is_no_obstacle(flow, poor_login):
    identity = bind(poor_login, stripe_account="acct_1", livemode=False, now=flow.clock())

    assert (identity.database_system_id, identity.database_timeline) == (None, None)
    assert identity.stripe_account == "acct_1"
