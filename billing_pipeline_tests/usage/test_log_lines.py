"""The log lines operators search for, word for word and with their fields, and what no log line ever holds."""

from __future__ import annotations

import logging
import traceback
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import dagster as dg
import psutil
import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg.sql import SQL, Identifier

from billing_pipeline.database.connection import connect
from billing_pipeline.definitions import defs
from billing_pipeline.domain.identifiers import idempotency_key
from billing_pipeline.settings import load_settings
from billing_pipeline.stripe_simulator.sessions import token_of
from billing_pipeline.usage.flow import UsageFlow
from billing_pipeline.usage.flush import flush
from billing_pipeline_tests.builders import billable_event, insert_events
from billing_pipeline_tests.cli import command
from billing_pipeline_tests.fix_postgres import require_superuser
from billing_pipeline_tests.fix_proxy import Mishap

CLOSED = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=3)
MILESTONES = "billing_pipeline.milestones"
SEND = "billing_pipeline.usage.send"
KEY = "sk_test_planted0key0of0this0test"
PASSWORD = "planted-password-of-this-test"


@pytest.fixture
def usage(flow, bill):
    """Two entries' worth."""
    bill("acme", "globex")
    for organization_id in ("acme", "globex"):
        event = billable_event(organization_id=organization_id, quantity=Decimal(7), occurred_at=CLOSED)
        insert_events(flow.connection, event)


def lines(caplog, logger):
    return [record for record in caplog.records if record.name == logger]


def words(caplog, logger):
    return [record.getMessage() for record in lines(caplog, logger)]


def entries(flow):
    rows = flow.connection.execute(
        "SELECT organization_id, identifier FROM ledger_entries JOIN usage_windows USING (window_id) ORDER BY entry_id"
    )
    return rows.fetchall()


def test_line_c37_to_c41_a_flush_says_that_it_began_each_batch_and_that_it_ended(flow, usage, caplog):
    caplog.set_level(logging.INFO)

    flush(flow)

    assert words(caplog, MILESTONES) == [
        "Stripe usage flush started",
        "Stripe usage flush batch started",
        "Stripe usage flush batch completed",
        "Stripe usage flush completed",
        "Stripe usage flush money at risk",
    ]
    started, batch, batch_done, done, _ = lines(caplog, MILESTONES)
    assert [record.action for record in (started, batch, batch_done, done)] == [
        "flush_started",
        "batch_started",
        "batch_completed",
        "flush_completed",
    ]
    assert batch.size == 2
    assert batch_done.totals["ok"] == 2
    assert (done.totals["attempts"], done.totals["accepted"], done.totals["units_accepted"]) == (2, 2, 14)


def test_line_c38_a_flush_with_nothing_to_send_says_so(flow, bill, caplog):
    bill("acme")
    caplog.set_level(logging.INFO)

    flush(flow)

    assert words(caplog, MILESTONES) == [
        "Stripe usage flush started",
        "Stripe usage flush found no pending events",
        "Stripe usage flush completed",
        "Stripe usage flush money at risk",
    ]
    assert words(caplog, SEND) == []


def test_line_c42_c44_each_entry_says_that_it_is_sent_and_that_it_arrived(flow, usage, caplog, simulator):
    caplog.set_level(logging.INFO)

    flush(flow)

    for organization_id, identifier in entries(flow):
        attempt, succeeded = [record for record in lines(caplog, SEND) if record.identifier == identifier]
        assert attempt.getMessage() == "Stripe meter event submit attempt"
        assert succeeded.getMessage() == "Stripe meter event submit succeeded"
        for record in (attempt, succeeded):
            assert record.levelno == logging.INFO
            assert record.organization_id == organization_id
            assert record.idempotency_key == idempotency_key(identifier, 1)
            assert record.attempt == 1
        assert succeeded.outcome == "ok"
        assert succeeded.stripe_request_id.startswith("req_")
    assert len(lines(caplog, SEND)) == 4


@pytest.mark.parametrize(("mishap", "outcome"), [(Mishap.LOSE_ANSWER, "unknown"), (Mishap.SERVER_ERROR, "unknown")])
def test_line_c43_a_failed_send_says_so_and_the_next_attempt_counts_up(flow, usage, caplog, proxy, mishap, outcome):
    through_proxy = load_settings(
        **flow.settings.model_dump() | {"stripe_api_base": proxy.url, "stripe_max_concurrency": 1}
    )
    proxied = UsageFlow(flow.connection, "", through_proxy, holder="test")
    flow.validate_contract()
    flow.aggregate()
    flow.cut()
    caplog.set_level(logging.INFO)
    proxy.mishap_of_send = {1: mishap}
    proxied.submit()

    (failed,) = [record for record in lines(caplog, SEND) if record.levelno == logging.WARNING]
    assert failed.getMessage() == "Stripe meter event submit failed"
    assert (failed.organization_id, failed.identifier) in entries(flow)
    assert failed.idempotency_key == idempotency_key(failed.identifier, 1)
    assert (failed.attempt, failed.outcome) == (1, outcome)
    assert failed.error_code

    caplog.clear()
    flow.connection.execute("UPDATE open_entries SET retry_at = NULL")
    proxied.submit()
    attempt, succeeded = lines(caplog, SEND)
    assert attempt.identifier == succeeded.identifier == failed.identifier
    assert attempt.attempt == succeeded.attempt == 2
    assert attempt.idempotency_key == idempotency_key(failed.identifier, 2)


def test_line_c43_a_refusal_names_stripes_request(flow, usage, bill, caplog):
    flow.validate_contract()
    flow.aggregate()
    flow.cut()
    customer = flow.connection.execute("SELECT stripe_customer_id FROM ledger_entries ORDER BY entry_id").fetchone()[0]
    flow.stripe.v1.customers.delete(customer)
    caplog.set_level(logging.INFO)

    flow.submit()

    (failed,) = [record for record in lines(caplog, SEND) if record.levelno == logging.WARNING]
    assert failed.outcome == "rejected"
    assert failed.stripe_request_id.startswith("req_")


@pytest.fixture
def planted(flow, usage, database_url, settings, tmp_path):
    """Settings with secrets that can be searched for, of a login that has the password."""
    require_superuser(flow.connection)
    role = f"planted_{tmp_path.name}"[:60]
    create = SQL("CREATE ROLE {} SUPERUSER LOGIN PASSWORD {}").format(Identifier(role), PASSWORD)
    flow.connection.execute(create)
    user = conninfo_to_dict(database_url)["user"]
    url = database_url.replace(f"//{user}", f"//{role}:{PASSWORD}", 1)
    yield load_settings(**settings.model_dump() | {"database_url": url, "stripe_secret_key": KEY})
    flow.connection.execute(SQL("DROP ROLE {}").format(Identifier(role)))


def in_environment(settings):
    return {
        "DATABASE_URL": settings.database_url.get_secret_value(),
        "BILLING_STATE_DIR": settings.billing_state_dir,
        "STRIPE_API_BASE": settings.stripe_api_base,
        "STRIPE_SECRET_KEY": settings.stripe_key,
        "ENABLE_BILLING": "true",
        "BILLING_MODE": "live",
    }


def everything(record):
    """A record as any formatter could show it: its words, its fields, its exception."""
    shown = [record.getMessage(), repr(vars(record))]
    if record.exc_info:
        shown += traceback.format_exception(*record.exc_info)
    return "\n".join(shown)


def require_no_secret(text, *more):
    assert [secret for secret in (KEY, PASSWORD, *more) if secret in text] == []


@pytest.mark.parametrize("sink", ["v1", "v2_stream"])
def test_no_log_record_holds_a_secret_at_any_level(planted, caplog, simulator, sink):
    caplog.set_level(logging.DEBUG)
    url = planted.database_url.get_secret_value()
    with connect(url) as connection:
        chosen = load_settings(**planted.model_dump() | {"stripe_meter_sink": sink})
        assert flush(UsageFlow(connection, url, chosen, holder="test")).submit.accepted == 2

    tokens = [token_of(record["object"]) for record in simulator.journal("meter_event_session")]
    assert bool(tokens) == (sink == "v2_stream")
    require_no_secret("\n".join(map(everything, caplog.records)), *tokens)


@pytest.mark.parametrize(
    "broken",
    [
        {"stripe_api_base": "http://127.0.0.1:9"},
        {"stripe_secret_key": "sk_live_planted0key0of0this0test"},
        {"database_url": f"postgresql://someone:{PASSWORD}@127.0.0.1:9/nowhere"},
        {"database_url": f"postgresql://someone:{PASSWORD}@x@127.0.0.1:9/nowhere"},
        {"billing_source_relation": "public.nothing"},
    ],
    ids=["stripe down", "key refused", "database down", "malformed address", "source missing"],
)
def test_no_error_of_a_flush_holds_a_secret(planted, caplog, broken):
    caplog.set_level(logging.DEBUG)
    settings = load_settings(**planted.model_dump() | broken)
    url = settings.database_url.get_secret_value()

    with pytest.raises(Exception) as failure:  # noqa: PT011 # whatever it is, it must not tell
        flush_with(settings, url)

    shown = "".join(traceback.format_exception(failure.value)) + "\n".join(map(everything, caplog.records))
    require_no_secret(shown, "sk_live_planted0key0of0this0test")


def flush_with(settings, url):
    with connect(url) as connection:
        flush(UsageFlow(connection, url, settings, holder="test"))


def test_no_secret_is_in_a_process_list_or_in_what_a_defect_prints(planted, proxy, tmp_path):
    proxy.mishap_of_send = {1: Mishap.HOLD_REQUEST}
    here = in_environment(planted) | {"STRIPE_API_BASE": proxy.url}
    # A defect at the end: its traceback is for people, who show it to others.
    defect = (
        "from billing_pipeline.usage.flow import UsageFlow\n"
        "def confirm(flow): raise RuntimeError(repr(flow.settings))\n"
        "UsageFlow.confirm = confirm\n"
    )
    worker = command.start("flush-now", folder=tmp_path, before=defect, **here)
    assert proxy.reached.wait(60)
    me = psutil.Process(worker.pid)
    arguments = [" ".join(process.cmdline()) for process in (me, *me.children(recursive=True))]
    proxy.let_go()
    out, err = worker.communicate(timeout=60)

    require_no_secret("\n".join(arguments))
    assert "RuntimeError" in err
    require_no_secret(out + err)


def test_no_secret_is_in_a_runs_config_or_events(planted, monkeypatch):
    for name, value in in_environment(planted).items():
        monkeypatch.setenv(name, str(value))

    with dg.DagsterInstance.ephemeral() as instance:
        result = defs.resolve_job_def("usage_flush").execute_in_process(instance=instance)
        run = instance.get_run_by_id(result.run_id)
        events = instance.all_logs(result.run_id)

    assert result.success
    assert events
    require_no_secret(f"{run.run_config}{run.tags}" + "".join(event.to_json() for event in events))
