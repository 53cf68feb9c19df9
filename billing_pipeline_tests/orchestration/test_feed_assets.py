"""Dagster keeps the live feed whole and short, says what is in it, and holds every payload against the schema."""

from datetime import timedelta

import pytest

from billing_pipeline.definitions import defs
from billing_pipeline.orchestration.feed_assets import hourly_feed
from billing_pipeline_tests.feed.conftest import Feeding, feed_settings
from billing_pipeline_tests.webhooks.events import event, invoice, store, subscription

pytestmark = pytest.mark.slow


@pytest.fixture
def environment(settings, monkeypatch):
    """A run reads its settings from the environment, as a worker of its own would."""
    monkeypatch.setenv("DATABASE_URL", settings.database_url.get_secret_value())
    monkeypatch.setenv("BILLING_STATE_DIR", str(settings.billing_state_dir))
    monkeypatch.setenv("STRIPE_SECRET_KEY", settings.stripe_key)
    monkeypatch.setenv("STRIPE_API_BASE", settings.stripe_api_base)
    monkeypatch.setenv("ENABLE_BILLING_STREAM", "true")
    return monkeypatch


@pytest.fixture
def now(connection, environment):
    return connection.execute("SELECT clock_timestamp()").fetchone()[0]


def run(**config):
    run_config = {"ops": {"billing_event_feed": {"config": config}}} if config else {}
    result = defs.resolve_job_def("feed_billing_events").execute_in_process(run_config=run_config, raise_on_error=False)
    assert result.success
    [told] = result.get_asset_materialization_events()
    [check] = result.get_asset_check_evaluations()
    return {name: found.value for name, found in told.materialization.metadata.items()}, check


def feeding(connection, now, **settings):
    return Feeding(connection, now=now, settings=feed_settings(**settings))


def test_it_tells_what_was_handled_and_not_told_and_finds_what_the_feed_lacks(connection, now):
    feeding(connection, now, enable_billing_stream=False).handle(
        event("customer.subscription.created", subscription()),
    )
    feeding(connection, now).handle(event("invoice.created", invoice()))

    told, check = run()

    assert (told["events_told"], told["events_found"], told["events_waiting"]) == (2, 1, 0)
    assert told["dagster/row_count"] == 2
    assert {record.data["event_type"] for record in told["by_type"].records} == {
        "customer.subscription.created",
        "invoice.created",
    }
    assert check.passed
    assert check.metadata["payloads"].value == 2
    assert run()[0]["events_told"] == 0


def test_it_looks_no_further_back_than_it_is_told(connection, now):
    old = feeding(connection, now - timedelta(hours=30), enable_billing_stream=False)
    old.handle(event("customer.subscription.created", subscription()))

    assert run()[0]["events_found"] == 0
    assert run(hours=48)[0]["events_told"] == 1


def test_old_rows_go_whether_the_stream_is_on_or_off(connection, now, environment):
    old = feeding(connection, now - timedelta(days=31))
    old.feed(*(event("customer.subscription.updated", subscription(), at=at) for at in range(3)))
    environment.setenv("ENABLE_BILLING_STREAM", "false")
    store(connection, [event("invoice.created", invoice())], now=now)

    told, _ = run()

    assert (told["stream_is_on"], told["rows_purged"], told["dagster/row_count"]) == (False, 2, 1)
    assert "events_told" not in told


def test_a_payload_that_does_not_fit_fails_the_check_and_is_named(connection, now):
    feeding(connection, now).feed(event("customer.subscription.created", subscription()))
    connection.execute("UPDATE billing_event_feed SET payload = payload - 'status'")

    _, check = run()

    assert not check.passed
    assert check.description == "1 of 1 payloads do not fit"
    [record] = check.metadata["misfits"].value.records
    assert record.data["faults"] == "$: required"


def test_the_hourly_job_is_off_until_somebody_turns_it_on():
    assert hourly_feed.default_status.value == "STOPPED"
    assert hourly_feed.cron_schedule == "8 * * * *"
