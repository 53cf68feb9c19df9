"""The asset check `nothing_is_on_hold`, and what a flush's own run says of what it held."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import dagster as dg
import pytest

from billing_pipeline.definitions import defs
from billing_pipeline.usage.hold import Chosen, release_all
from billing_pipeline_tests.builders import billable_event, insert_events


@pytest.fixture
def run(settings, monkeypatch, tmp_path):
    """A run reads its settings from the environment, as a worker of its own would."""
    meters = '[meters.prompt_tokens]\nevent_types = ["prompt_tokens"]\naggregation = "sum"\nhour_max = 100\n'
    (tmp_path / "meters.toml").write_text(meters)
    monkeypatch.setenv("BILLING_METERS_FILE", str(tmp_path / "meters.toml"))
    monkeypatch.setenv("DATABASE_URL", settings.database_url.get_secret_value())
    monkeypatch.setenv("BILLING_STATE_DIR", str(settings.billing_state_dir))
    monkeypatch.setenv("STRIPE_SECRET_KEY", settings.stripe_key)
    monkeypatch.setenv("STRIPE_API_BASE", settings.stripe_api_base)
    monkeypatch.setenv("ENABLE_BILLING", "1")
    monkeypatch.setenv("BILLING_MODE", "live")
    return lambda: defs.resolve_job_def("usage_flush").execute_in_process(raise_on_error=False)


def check_of(result):
    [found] = [c for c in result.get_asset_check_evaluations() if c.check_name == "nothing_is_on_hold"]
    return found


def test_what_is_held_warns_with_the_oldest_and_what_to_do_until_it_is_released(flow, bill, run):
    bill("acme")
    at = flow.clock().replace(minute=0, second=0, microsecond=0) - timedelta(hours=5)
    insert_events(flow.connection, billable_event(quantity=Decimal(101), occurred_at=at))

    result = run()

    found = check_of(result)
    assert (found.passed, found.severity) == (False, dg.AssetCheckSeverity.WARN)
    assert found.description == "more_than_the_meters_hour_max"
    [row] = found.metadata["oldest"].records
    assert (row.data["organization"], row.data["units"]) == ("acme", "101")
    assert row.data["detail"] == "the hour comes to 101 units, hour_max is 100"
    assert "Ask whether the usage is real" in found.metadata["do_next"].value
    assert result.success, "a warning stops nothing"
    metadata = result.asset_materializations_for_node("ledger_entries")[0].metadata
    assert metadata["held"].value == "more_than_the_meters_hour_max 1"
    assert metadata["windows_held"].value == 1

    chosen = Chosen("more_than_the_meters_hour_max")
    release_all(flow.connection, chosen, actor="Ann", reason="it is real", now=flow.clock())
    assert check_of(run()).passed
