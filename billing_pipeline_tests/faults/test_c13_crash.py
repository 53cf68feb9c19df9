"""C13: what the database has committed survives a crash of its server, and a server that is set not to is refused."""

from __future__ import annotations

from datetime import timedelta

import pytest
from psycopg.sql import SQL, Identifier

from billing_pipeline.errors import GateClosed
from billing_pipeline.settings import load_settings
from billing_pipeline.usage.flow import UsageFlow
from billing_pipeline.usage.flush import flush
from billing_pipeline.usage.gate import durability_faults, require_durable
from billing_pipeline_tests.builders import insert_events
from billing_pipeline_tests.cli import command
from billing_pipeline_tests.faults.conftest import usage, wait_until
from billing_pipeline_tests.fix_flow import counted_by_stripe
from billing_pipeline_tests.fix_proxy import Mishap


@pytest.mark.slow
def test_c13_a_server_killed_in_mid_flush_comes_back_with_every_attempt_and_bills_once(drill, proxy, tmp_path):
    customers = drill.set_up("acme", "globex")
    events = usage(["acme", "globex"])
    insert_events(drill.connection, *events)
    proxy.mishap_of_send = {4: Mishap.HOLD_ANSWER}
    worker = command.start(
        "flush-now",
        folder=tmp_path,
        DATABASE_URL=drill.url,
        BILLING_STATE_DIR=drill.state_dir,
        STRIPE_API_BASE=proxy.url,
        STRIPE_SECRET_KEY=drill.simulator.key,
        ENABLE_BILLING="true",
        BILLING_MODE="live",
        STRIPE_MAX_CONCURRENCY=1,
    )
    assert proxy.reached.wait(60)
    drill.crash()
    proxy.let_go()
    _, err = worker.communicate(timeout=60)
    assert worker.returncode == 1
    assert "Traceback" not in err

    drill.start()
    assert drill.connection.execute("SELECT count(*) FROM attempts").fetchone() == (6,)
    drill.pass_time(timedelta(seconds=drill.settings.stripe_usage_flush_lock_ttl_seconds + 1))
    flush(drill.flow)

    totals = {}
    for event in events:
        key = (customers[event["organization_id"]], event["event_type"], event["occurred_at"].replace(minute=0))
        totals[key] = totals.get(key, 0) + int(event["quantity"])
    assert counted_by_stripe(drill.simulator) == totals


@pytest.mark.slow
def test_c13_the_embedded_server_keeps_what_it_commits(drill):
    assert durability_faults(drill.connection) == []
    require_durable(drill.connection)


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["fsync", "synchronous_commit"])
def test_c13_live_usage_is_not_sent_from_a_database_that_may_forget(drill, setting):
    drill.set_up("acme")
    live = load_settings(**drill.settings.model_dump() | {"stripe_secret_key": "sk_live_0123456789abcdef"})
    flow = UsageFlow(drill.connection, drill.url, live, holder="test")
    flow.stripe = drill.flow.stripe  # the simulator takes no live key
    flow.pass_gate(contract=False)
    drill.connection.execute(SQL("ALTER SYSTEM SET {} = off").format(Identifier(setting)))
    drill.connection.execute("SELECT pg_reload_conf()")
    wait_until(lambda: durability_faults(drill.connection) == [f"{setting} is off"])

    with pytest.raises(GateClosed, match=f"may forget what it commits: {setting} is off. Nothing is sent"):
        flow.cut()
