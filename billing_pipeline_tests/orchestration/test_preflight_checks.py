"""The job `preflight` asks every probe as a check, blocks nothing, and no flush asks them beside it."""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from billing_pipeline.definitions import defs
from billing_pipeline.domain.probes import PROBES
from billing_pipeline.usage import gate
from billing_pipeline_tests.builders import billable_event, insert_events
from billing_pipeline_tests.fix_flow import counted_by_stripe
from billing_pipeline_tests.usage.test_preflight import whole_database

ABOUT_DAGSTER = {"dagster", "dagster_location", "dagster_daemons", "dagster_schedule"}


@pytest.fixture(autouse=True)
def environment(settings, monkeypatch):
    """A run reads its settings from the environment, as a worker of its own would."""
    given = {
        "DATABASE_URL": settings.database_url.get_secret_value(),
        "BILLING_STATE_DIR": str(settings.billing_state_dir),
        "STRIPE_SECRET_KEY": settings.stripe_key,
        "STRIPE_API_BASE": settings.stripe_api_base,
        "ENABLE_BILLING": "1",
        "BILLING_MODE": "live",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


@pytest.fixture
def instance(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home/dagster.yaml").write_text("telemetry: {enabled: false}\nrun_monitoring: {enabled: true}\n")
    with dg.DagsterInstance.from_config(os.fspath(tmp_path / "home")) as instance:
        yield instance


def run(job, instance=None):
    return defs.resolve_job_def(job).execute_in_process(raise_on_error=False, instance=instance)


def checks(result):
    return {check.check_name: check for check in result.get_asset_check_evaluations()}


def found(check):
    return check.metadata["result"].value, check.metadata["found"].value


def all_text(result):
    return " ".join(str(check) for check in checks(result).values())


def test_the_job_asks_exactly_the_probes_and_changes_nothing(flow, bill, simulator):
    bill("acme")
    insert_events(flow.connection, billable_event(occurred_at=datetime.now(UTC) - timedelta(hours=5)))
    before = whole_database(flow.connection), simulator.journal()

    result = run("preflight")

    told = checks(result)
    assert result.success
    assert list(told) == list(PROBES)
    results = {name: check.metadata["result"].value for name, check in told.items()}
    assert results | {"durability": "pass"} == dict.fromkeys(PROBES, "pass") | {
        "contract": "warn",
        "prices": "warn",
        "dagster": "warn",
    } | dict.fromkeys(ABOUT_DAGSTER - {"dagster"}, "skip")
    assert {name: check.passed for name, check in told.items()} == {
        name: result == "pass" for name, result in results.items()
    }
    assert {check.severity for check in told.values() if not check.passed} == {dg.AssetCheckSeverity.WARN}
    assert told["prices"].metadata["do_next"].value == PROBES["prices"].remedy
    assert told["prices"].metadata["see"].value == "docs/operations.md#preflight-prices"
    assert (whole_database(flow.connection), simulator.journal()) == before


def test_a_failure_is_an_error_that_blocks_nothing(flow, simulator):
    gate.bind(flow.connection, stripe_account="acct_other", livemode=False, now=flow.clock())
    gate.freeze(flow.connection, "restored", now=flow.clock())

    result = run("preflight")

    failed = {
        name
        for name, check in checks(result).items()
        if not check.passed and check.severity is dg.AssetCheckSeverity.ERROR
    }
    assert (result.success, failed) == (True, {"frozen", "ledger_account"})
    assert checks(result)["frozen"].description.startswith("fail: frozen since ")


def test_wrong_settings_fail_one_check_and_skip_the_rest_without_showing_a_secret(environment):
    environment.setenv("STRIPE_SECRET_KEY", "planted-key")
    environment.setenv("DATABASE_URL", "postgresql://billing:planted@127.0.0.1:1/billing")
    environment.setenv("BILLING_MARK_URL", "s3://planted/mark?token=planted")

    result = run("preflight")
    told = checks(result)
    assert result.success
    assert found(told["settings"])[0] == "fail"
    assert {found(check)[0] for name, check in told.items() if name != "settings"} == {"skip"}
    assert "planted" not in all_text(result)

    environment.setenv("STRIPE_SECRET_KEY", "sk_test_planted_key_WXYZ")
    shown = all_text(run("preflight"))
    assert "planted" not in shown
    assert "sk_test_…WXYZ" in shown


@pytest.mark.parametrize("job", ["usage_flush", "validate_contract"])
def test_no_other_job_asks_them(flow, bill, simulator, job):
    bill("acme")
    insert_events(flow.connection, billable_event(occurred_at=datetime.now(UTC) - timedelta(hours=5)))

    told = checks(run(job))

    assert told
    assert set(told).isdisjoint(PROBES)
    assert sum(counted_by_stripe(simulator).values()) == (1 if job == "usage_flush" else 0)


def test_one_check_alone_is_asked_with_what_it_needs(flow):
    key = dg.AssetCheckKey(dg.AssetKey("ledger_entries"), "frozen")
    job = dg.define_asset_job("asked", selection=dg.AssetSelection.checks(key))
    location = dg.Definitions(assets=defs.assets, asset_checks=defs.asset_checks, resources=defs.resources, jobs=[job])

    told = checks(location.resolve_job_def("asked").execute_in_process(raise_on_error=False))

    assert {name: check.passed for name, check in told.items()} == {"frozen": True}


def test_inside_a_run_its_own_instance_tells_of_daemons_and_schedule(flow, instance):
    told = checks(run("preflight", instance))
    assert found(told["dagster"]) == ("pass", f"Dagster {dg.__version__}, which runs this check")
    assert found(told["dagster_location"])[0] == "pass"
    assert found(told["dagster_daemons"])[0] == "fail"
    assert "SCHEDULER has not been heard of ever" in found(told["dagster_daemons"])[1]
    assert found(told["dagster_schedule"]) == ("warn", "hourly_usage_flush is off, so no flush runs by itself")

    from dagster._daemon.types import DaemonHeartbeat

    for daemon in instance.get_required_daemon_types():
        instance.add_daemon_heartbeat(DaemonHeartbeat(time.time(), daemon, "test", []))
    told = checks(run("preflight", instance))
    assert found(told["dagster_daemons"])[0] == "pass"
    assert "MONITORING" in found(told["dagster_daemons"])[1]


def test_every_job_and_schedule_is_there_and_off_until_somebody_turns_it_on():
    repository = defs.get_repository_def()

    jobs = {job.name for job in repository.get_all_jobs() if not job.name.startswith("__")}
    assert jobs == {
        "usage_flush",
        "validate_contract",
        "preflight",
        "smoke_organization",
        "explain_usage",
        "dispatch_stripe_events",
        "replay_stripe_events",
        "sweep_stripe_events",
        "rebuild_projections",
        "purge_event_bodies",
        "feed_billing_events",
        "close_periods",
    }
    assert {
        schedule.name: (schedule.job_name, schedule.cron_schedule, schedule.default_status.value)
        for schedule in repository.schedule_defs
    } == {
        "hourly_usage_flush": ("usage_flush", "13 * * * *", "STOPPED"),
        "daily_preflight": ("preflight", "43 5 * * *", "STOPPED"),
        "hourly_dispatch": ("dispatch_stripe_events", "3 * * * *", "STOPPED"),
        "hourly_event_sweep": ("sweep_stripe_events", "43 * * * *", "STOPPED"),
        "daily_object_reread": ("sweep_stripe_events", "58 2 * * *", "STOPPED"),
        "daily_rebuild": ("rebuild_projections", "28 4 * * *", "STOPPED"),
        "daily_purge": ("purge_event_bodies", "58 4 * * *", "STOPPED"),
        "hourly_feed": ("feed_billing_events", "8 * * * *", "STOPPED"),
    }
    assert {sensor.name: sensor.default_status.value for sensor in repository.sensor_defs} == {
        "stripe_events_to_replay": "STOPPED",
        "invoices_to_close": "STOPPED",
    }
    at = datetime(2026, 3, 10, 5, 43, tzinfo=UTC)
    tick = repository.get_schedule_def("daily_preflight").evaluate_tick(
        dg.build_schedule_context(scheduled_execution_time=at)
    )
    assert [request.run_key for request in tick.run_requests] == [at.isoformat()]


@pytest.mark.parametrize(
    ("given", "tags"),
    [({}, {"billing/queue": "default"}), ({"STRIPE_BILLING_QUEUE": "money"}, {"billing/queue": "money"})],
)
def test_the_hourly_run_carries_the_name_of_its_queue(monkeypatch, given, tags):
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    at = datetime(2026, 3, 10, 5, 13, tzinfo=UTC)
    schedule = defs.get_repository_def().get_schedule_def("hourly_usage_flush")

    [request] = schedule.evaluate_tick(dg.build_schedule_context(scheduled_execution_time=at)).run_requests

    assert request.run_key == at.isoformat()
    assert tags.items() <= request.tags.items()


def test_the_hourly_run_starts_whatever_the_settings_are_and_says_itself_what_is_wrong(monkeypatch):
    monkeypatch.setenv("DAGSTER_PORT", "many")
    at = datetime(2026, 3, 10, 5, 13, tzinfo=UTC)
    schedule = defs.get_repository_def().get_schedule_def("hourly_usage_flush")

    assert len(schedule.evaluate_tick(dg.build_schedule_context(scheduled_execution_time=at)).run_requests) == 1
