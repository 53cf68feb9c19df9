"""The usage flow wired to this test's own database and simulator, the way a flush sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from psycopg import Connection

from billing_pipeline.settings import Settings, load_settings
from billing_pipeline.stripe_api.catalogue import CANARY_EMAIL, set_up_catalogue
from billing_pipeline.stripe_api.customers import create_customers
from billing_pipeline.usage.flow import UsageFlow
from billing_pipeline_tests.builders import map_customer
from billing_pipeline_tests.fix_simulator import RunningSimulator, SimulatorClock


def live_settings(database_url: str, simulator: RunningSimulator, state_dir: Path, **others: Any) -> Settings:
    """Settings that bill in earnest, against the simulator."""
    return load_settings(
        billing_state_dir=state_dir,
        database_url=database_url,
        enable_billing=True,
        billing_mode="live",
        stripe_secret_key=simulator.key,
        stripe_api_base=simulator.url,
        **others,
    )


@pytest.fixture
def settings(database_url: str, simulator: RunningSimulator, tmp_path: Path) -> Settings:
    """Live settings against the simulator, with a state folder of this test's own."""
    return live_settings(database_url, simulator, tmp_path)


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


class Subscriptions:
    """Makes and changes subscriptions at any time of the simulator's clock, which is put back afterwards."""

    def __init__(self, simulator: RunningSimulator) -> None:
        self._simulator = simulator
        self._client = simulator.client()
        self._prices: dict[str, str] = {}

    def create(self, customer: str, at: datetime, *event_names: str) -> str:
        """Subscribe a customer to meters from `at` on, monthly; returns the subscription's id."""
        items: Any = [{"price": self._price(name)} for name in event_names or ("prompt_tokens",)]
        with self.at(at):
            return self._client.v1.subscriptions.create({"customer": customer, "items": items}).id

    def reset_anchor(self, subscription: str, at: datetime) -> None:
        """End the current period at `at` and begin another."""
        with self.at(at):
            self._client.v1.subscriptions.update(subscription, {"billing_cycle_anchor": "now"})

    def cancel(self, subscription: str, at: datetime) -> None:
        """End the subscription at `at`."""
        with self.at(at):
            self._client.v1.subscriptions.cancel(subscription)

    @contextmanager
    def at(self, instant: datetime) -> Iterator[None]:
        """Stripe's clock shows `instant` inside the block."""
        clock = self._simulator.clock
        assert isinstance(clock, SimulatorClock)
        # Half a second on: Stripe's times are whole seconds, and the clock does not stand still.
        back = (clock() - instant - timedelta(milliseconds=500)).total_seconds()
        clock.advance(seconds=-back)
        try:
            yield
        finally:
            clock.advance(seconds=back)

    def _price(self, event_name: str) -> str:
        if event_name not in self._prices:
            [meter] = [m for m in self._client.v1.billing.meters.list().data if m.event_name == event_name]
            product = self._client.v1.products.create({"name": event_name})
            recurring: Any = {"interval": "month", "usage_type": "metered", "meter": meter.id}
            self._prices[event_name] = self._client.v1.prices.create(
                {"currency": "usd", "product": product.id, "unit_amount": 1, "recurring": recurring}
            ).id
        return self._prices[event_name]


@pytest.fixture
def subscriptions(flow: UsageFlow, simulator: RunningSimulator) -> Subscriptions:
    """Subscriptions to the meters of `flow`'s catalogue."""
    return Subscriptions(simulator)


def counted_in_periods(simulator: RunningSimulator, customer: str, *edges: datetime) -> list[int]:
    """The judge's side: units of one customer before the first edge, between each two, and after the last."""
    totals = [0] * (len(edges) + 1)
    for record in simulator.journal("meter_event"):
        if record["customer"] == customer:
            at = datetime.fromtimestamp(record["timestamp"], UTC)
            totals[sum(edge <= at for edge in edges)] += int(record["value"])
    return totals


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
