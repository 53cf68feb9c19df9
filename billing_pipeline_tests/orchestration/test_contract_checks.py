"""The contract's asset checks: one per rule, on what is so and not only on what the last validation saw."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import dagster as dg
import pytest

from billing_pipeline.definitions import defs
from billing_pipeline.domain.contract_rules import RULES, Part, rules_of
from billing_pipeline.usage.aggregate import Scope
from billing_pipeline_tests.builders import billable_event, insert_events
from billing_pipeline_tests.fix_flow import counted_by_stripe
from billing_pipeline_tests.usage.test_volume import steady_days

CLOSED = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=5)


@pytest.fixture(autouse=True)
def _environment(settings, monkeypatch):
    """A run reads its settings from the environment, as a worker of its own would."""
    monkeypatch.setenv("DATABASE_URL", settings.database_url.get_secret_value())
    monkeypatch.setenv("BILLING_STATE_DIR", str(settings.billing_state_dir))
    monkeypatch.setenv("STRIPE_SECRET_KEY", settings.stripe_key)
    monkeypatch.setenv("STRIPE_API_BASE", settings.stripe_api_base)
    monkeypatch.setenv("ENABLE_BILLING", "1")
    monkeypatch.setenv("BILLING_MODE", "live")


def run(job):
    return defs.resolve_job_def(job).execute_in_process(raise_on_error=False)


def checks(result):
    return {check.check_name: check for check in result.get_asset_check_evaluations()}


def failed(result):
    return {name: check.severity for name, check in checks(result).items() if not check.passed and name in RULES}


def materialized(result):
    return {event.asset_key.to_user_string() for event in result.get_asset_materialization_events()}


def asked(*names):
    """What these checks alone say now."""
    selection = dg.AssetSelection.checks(*(dg.AssetCheckKey(dg.AssetKey("billable_events"), name) for name in names))
    job = dg.define_asset_job("asked", selection=selection)
    repository = dg.Definitions(
        assets=defs.assets, asset_checks=defs.asset_checks, resources=defs.resources, jobs=[job]
    )
    return checks(repository.resolve_job_def("asked").execute_in_process(raise_on_error=False))


def test_every_rule_is_a_check_and_its_words_are_the_rules(flow):
    graph = defs.resolve_asset_graph()
    found = {
        key.name: (key.asset_key.to_user_string(), graph.get_check_spec(key).description)
        for key in graph.asset_check_keys
        if key.name in RULES
    }

    assert found == {
        rule.reason: (
            "usage_windows" if rule.part is Part.VOLUME else "billable_events",
            f"Fails when this is so: {rule.meaning}\n\nThen: {rule.remedy}",
        )
        for rule in RULES.values()
    }


def test_a_row_check_fails_as_long_as_a_row_waits_in_quarantine(flow):
    insert_events(flow.connection, billable_event(event_id="bad", quantity=None, occurred_at=CLOSED))
    flow.validate_contract()
    flow.aggregate()
    insert_events(flow.connection, billable_event(occurred_at=datetime.now(UTC), recorded_at=datetime.now(UTC)))

    assert flow.validate_contract(Scope.TOUCHED).quarantined == 0
    found = asked("quantity_missing", "quantity_negative")
    waiting = found["quantity_missing"]
    assert (waiting.passed, waiting.severity, waiting.description) == (
        False,
        dg.AssetCheckSeverity.WARN,
        f"1 (bad): {RULES['quantity_missing'].meaning}",
    )
    assert waiting.metadata["faults"].value.records[0].data == {
        "reason": "quantity_missing",
        "severity": "row",
        "count": 1,
        "samples": "bad",
    }
    assert found["quantity_negative"].passed

    flow.connection.execute("UPDATE public.billable_events SET quantity = 1")
    flow.validate_contract(Scope.TOUCHED)
    assert asked("quantity_missing")["quantity_missing"].passed


def test_what_was_not_asked_is_no_pass(flow):
    never = asked("lookback_empty", "source_missing")
    assert {name: check.passed for name, check in never.items()} == {"lookback_empty": False, "source_missing": True}

    flow.connection.execute("ALTER TABLE public.billable_events DROP CONSTRAINT billable_events_pkey")
    flow.validate_contract()
    found = asked("event_id_not_unique", "lookback_empty", "source_missing")

    assert {name: check.passed for name, check in found.items()} == {
        "event_id_not_unique": False,
        "lookback_empty": False,
        "source_missing": True,
    }
    assert found["lookback_empty"].description.startswith("Not asked, because the source cannot be read")


@pytest.mark.parametrize("fail_closed", [False, True])
def test_a_table_fault_stops_the_flush_before_anything_is_counted_only_when_failing_closed(
    flow, bill, simulator, monkeypatch, fail_closed
):
    bill("acme")
    insert_events(flow.connection, billable_event(event_type="api_request", occurred_at=CLOSED))
    monkeypatch.setenv("STRIPE_BILLING_CONTRACT_REQUIRED_EVENT_TYPES", "prompt_tokens")
    monkeypatch.setenv("STRIPE_BILLING_CONTRACT_FAIL_CLOSED", str(fail_closed))

    result = run("usage_flush")

    severity = dg.AssetCheckSeverity.ERROR if fail_closed else dg.AssetCheckSeverity.WARN
    assert failed(result) == {"required_event_type_absent": severity}
    assert result.success is not fail_closed
    assert ("usage_windows" in materialized(result)) is not fail_closed
    assert sum(counted_by_stripe(simulator).values()) == (0 if fail_closed else 1)


@pytest.mark.parametrize("fail_closed", [False, True])
def test_an_hour_in_other_units_is_never_stated_when_failing_closed(flow, bill, simulator, monkeypatch, fail_closed):
    bill("acme")
    insert_events(
        flow.connection, *steady_days(flow.clock(), "prompt_tokens", quantity=5, per_hour=120, hour_times=1000)
    )
    monkeypatch.setenv("STRIPE_BILLING_CONTRACT_FAIL_CLOSED", str(fail_closed))

    result = run("usage_flush")

    severity = dg.AssetCheckSeverity.ERROR if fail_closed else dg.AssetCheckSeverity.WARN
    assert failed(result) == {"units_jumped": severity}
    assert "usage_windows" in materialized(result)
    assert ("ledger_entries" in materialized(result)) is not fail_closed
    assert bool(counted_by_stripe(simulator)) is not fail_closed
    page = checks(result)["units_jumped"].metadata["daily_volume"].value
    assert page.startswith("**prompt_tokens**\n\n![")
    assert "data:image/svg+xml," in page

    # Mended upstream, the next run goes on by itself.
    flow.connection.execute("UPDATE public.billable_events SET quantity = 5, recorded_at = now()")
    mended = run("usage_flush")
    assert (mended.success, failed(mended)) == (True, {})


def test_a_flush_that_does_not_validate_is_not_stopped_by_an_old_validation(flow, bill, simulator, monkeypatch):
    bill("acme")
    flow.connection.execute("ALTER TABLE public.billable_events RENAME quantity TO amount")
    flow.validate_contract()
    flow.give_lease_back()
    flow.connection.execute("ALTER TABLE public.billable_events RENAME amount TO quantity")
    insert_events(flow.connection, billable_event(occurred_at=CLOSED))
    monkeypatch.setenv("STRIPE_BILLING_CONTRACT_FAIL_CLOSED", "1")
    monkeypatch.setenv("STRIPE_BILLING_VALIDATE_CONTRACT_BEFORE_FLUSH", "0")

    result = run("usage_flush")

    assert result.success
    assert set(failed(result).values()) == {dg.AssetCheckSeverity.WARN}
    assert {"source_columns_wrong"}.isdisjoint(failed(result))
    assert checks(result)["lookback_empty"].description.startswith("Not asked, because the source cannot be read, or")
    assert sum(counted_by_stripe(simulator).values()) == 1


@pytest.mark.parametrize("fail_closed", [False, True])
def test_the_job_validate_contract_asks_every_rule_and_counts_nothing(flow, monkeypatch, fail_closed):
    monkeypatch.setenv("STRIPE_BILLING_CONTRACT_FAIL_CLOSED", str(fail_closed))
    # It validates also where a flush would not.
    monkeypatch.setenv("STRIPE_BILLING_VALIDATE_CONTRACT_BEFORE_FLUSH", str(fail_closed))

    result = run("validate_contract")

    assert result.success is not fail_closed
    assert set(checks(result)) == {rule.reason for rule in rules_of(*Part)}
    assert set(failed(result)) == {"lookback_empty"}
    assert materialized(result) == {"billable_events"}
    assert flow.connection.execute("SELECT count(*) FROM aggregations").fetchone() == (0,)
