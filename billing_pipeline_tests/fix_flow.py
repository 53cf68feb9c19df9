"""The usage flow wired to this test's own database and simulator, the way a flush sees them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from psycopg import Connection

from billing_pipeline.settings import Settings, load_settings
from billing_pipeline.stripe_api.catalogue import CANARY_EMAIL, set_up_catalogue
from billing_pipeline.stripe_api.customers import create_customers
from billing_pipeline.usage.flush import UsageFlow
from billing_pipeline_tests.builders import map_customer
from billing_pipeline_tests.fix_simulator import RunningSimulator


@pytest.fixture
def settings(database_url: str, simulator: RunningSimulator, tmp_path: Path) -> Settings:
    """Live settings against the simulator, with a state folder of this test's own."""
    return load_settings(
        billing_state_dir=tmp_path,
        database_url=database_url,
        enable_billing=True,
        billing_mode="live",
        stripe_secret_key=simulator.key,
        stripe_api_base=simulator.url,
    )


@pytest.fixture
def flow(connection: Connection[Any], database_url: str, settings: Settings) -> UsageFlow:
    """A flow whose catalogue is set up at the simulator."""
    flow = UsageFlow(connection, database_url, settings, holder="test")
    set_up_catalogue(flow.stripe, settings, flow.catalogue)
    return flow


@pytest.fixture
def bill(flow: UsageFlow) -> Callable[..., dict[str, str]]:
    """Give organizations customers at the simulator and map them; returns organization -> customer."""

    def bill(*organization_ids: str) -> dict[str, str]:
        customers = create_customers(flow.stripe, flow.settings, organization_ids)
        for organization_id, customer in customers.items():
            map_customer(flow.connection, organization_id, customer)
        # A new mapping marks all its organization's hours as touched, which would hide whether new rows do.
        flow.connection.execute(
            "UPDATE customer_mappings SET created_at = created_at - interval '1 day' "
            "WHERE NOT EXISTS (SELECT FROM aggregations)"
        )
        return customers

    return bill


def counted_by_stripe(simulator: RunningSimulator) -> dict[tuple[str, str, datetime], int]:
    """The judge's side: units per customer, event name and UTC hour, summed from the simulator's journal alone."""
    totals: dict[tuple[str, str, datetime], int] = {}
    canary = canary_of(simulator)
    for record in simulator.journal("meter_event"):
        if record["customer"] == canary:
            continue
        at = datetime.fromtimestamp(record["timestamp"], UTC)
        key = (record["customer"], record["event_name"], at.replace(minute=0, second=0, microsecond=0))
        totals[key] = totals.get(key, 0) + int(record["value"])
    return totals


def canary_of(simulator: RunningSimulator) -> str | None:
    """The canary's customer, whose units are nobody's usage."""
    canaries = simulator.client().v1.customers.list({"email": CANARY_EMAIL}).data
    return canaries[0].id if canaries else None
