"""The assets of the usage flow belong together and should be fresh; a run says which flush it was."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import dagster as dg
import pytest

from billing_pipeline.definitions import defs
from billing_pipeline.orchestration.usage_assets import FLUSH_TAG, USAGE_ASSETS
from billing_pipeline.usage.lease import acquire
from billing_pipeline_tests.builders import billable_event, insert_events

AT = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=3)


@pytest.mark.parametrize("asset", USAGE_ASSETS, ids=lambda asset: asset.key.to_user_string())
def test_every_asset_is_of_the_flow_and_says_how_fresh_it_should_be(asset):
    [spec] = asset.specs

    assert (spec.group_name, spec.owners, spec.tags["billing/flow"]) == ("usage", ["team:billing"], "usage")
    assert spec.kinds & {"postgres", "stripe"}
    assert spec.freshness_policy is not None


@pytest.fixture
def billed(flow, bill, simulator, monkeypatch):
    """The environment of a code location over this test's database and simulator, with an hour's usage to bill."""
    bill("acme")
    insert_events(flow.connection, billable_event(organization_id="acme", quantity=Decimal(7), occurred_at=AT))
    for name, value in {
        "DATABASE_URL": flow.database_url,
        "BILLING_STATE_DIR": str(flow.settings.billing_state_dir),
        "STRIPE_API_BASE": simulator.url,
        "STRIPE_SECRET_KEY": simulator.key,
        "ENABLE_BILLING": "true",
        "BILLING_MODE": "live",
    }.items():
        monkeypatch.setenv(name, value)
    return flow


def run(instance):
    result = defs.resolve_job_def("usage_flush").execute_in_process(instance=instance)
    return result, instance.get_run_by_id(result.run_id).tags


@pytest.mark.slow
def test_each_run_is_a_flush_with_a_number_of_its_own(billed):
    with dg.instance_for_test() as instance:
        results, tags = zip(*(run(instance) for _ in range(2)), strict=True)

    assert all(result.success for result in results)
    first, second = (int(found[FLUSH_TAG]) for found in tags)
    assert first < second
    metadata = {
        event.asset_key.to_user_string(): event.materialization.metadata
        for event in results[0].get_asset_materialization_events()
    }
    assert metadata["meter_events"]["flush_id"].value == first
    assert metadata["meter_event_confirmations"]["units_unconfirmed"].value == 0


@pytest.mark.slow
def test_a_run_that_was_skipped_is_no_flush_and_is_fresh_all_the_same(billed):
    acquire(billed.connection, lock_key="usage-flush", holder="x", ttl=timedelta(hours=1), now=datetime.now(UTC))
    with dg.instance_for_test() as instance:
        result, tags = run(instance)

    assert result.success
    assert FLUSH_TAG not in tags
    skipped = [
        event.asset_key.to_user_string()
        for event in result.get_asset_materialization_events()
        if event.materialization.metadata["skipped"].value
    ]
    assert "meter_events" in skipped
