"""The contract's asset checks say what is so, not only what the last validation saw."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from billing_pipeline.orchestration.checks import rows_pass_the_contract, source_has_the_contract_columns
from billing_pipeline.orchestration.resources import BillingResource
from billing_pipeline.usage.aggregate import Scope
from billing_pipeline_tests.builders import billable_event, insert_events


@pytest.fixture
def billing(settings, monkeypatch):
    """What an asset check gets, with its settings from the environment as in a worker."""
    monkeypatch.setenv("DATABASE_URL", settings.database_url.get_secret_value())
    monkeypatch.setenv("BILLING_STATE_DIR", str(settings.billing_state_dir))
    return BillingResource()


def test_rows_pass_the_contract__fails_as_long_as_a_row_waits_in_quarantine(flow, billing):
    occurred_at = datetime.now(UTC) - timedelta(hours=5)
    insert_events(flow.connection, billable_event(event_id="bad", quantity=None, occurred_at=occurred_at))
    flow.validate_contract()
    flow.aggregate()
    insert_events(flow.connection, billable_event(occurred_at=datetime.now(UTC), recorded_at=datetime.now(UTC)))

    assert flow.validate_contract(Scope.TOUCHED).quarantined == 0
    waiting = rows_pass_the_contract(billing=billing)
    assert (waiting.passed, waiting.description) == (False, "quantity_missing: 1")

    flow.connection.execute("UPDATE public.billable_events SET quantity = 1")
    flow.validate_contract(Scope.TOUCHED)
    assert rows_pass_the_contract(billing=billing).passed


def test_source_has_the_contract_columns__fails_for_a_source_that_may_hold_an_event_twice(flow, billing):
    flow.validate_contract()
    assert source_has_the_contract_columns(billing=billing).passed

    flow.connection.execute("ALTER TABLE public.billable_events DROP CONSTRAINT billable_events_pkey")
    flow.validate_contract()

    found = source_has_the_contract_columns(billing=billing)
    assert (found.passed, found.description) == (False, "event_id_not_unique: 1")
