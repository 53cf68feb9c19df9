"""A simulator whose clock stands still, with one meter and one customer: most rules need no more."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
import stripe

from billing_pipeline.stripe_simulator.core import SimulatedStripe
from billing_pipeline.stripe_simulator.journal import Record
from billing_pipeline_tests.fix_simulator import (
    SimulatorClock,
    client_without_sockets,
    journal_of,
    make_core,
    streaming,
)

NOON = datetime(2026, 6, 15, 12, 0, 30, tzinfo=UTC)


@dataclass(frozen=True)
class Account:
    """A small account seen through the SDK, and the clock it lives by."""

    core: SimulatedStripe
    clock: SimulatorClock
    client: stripe.StripeClient
    meter: str
    customer: str

    def journal(self, kind: str | None = None) -> list[Record]:
        return journal_of(self.core, kind)

    @property
    def now(self) -> int:
        return int(self.clock().timestamp())

    def send(self, value: str = "1", *, options: dict[str, Any] | None = None, **overrides: Any) -> Any:
        """Send one meter event; `overrides` replace parameters, None leaves one out."""
        params = {
            "event_name": "api_calls",
            "payload": {"stripe_customer_id": self.customer, "value": value},
            **overrides,
        }
        given: Any = {name: param for name, param in params.items() if param is not None}
        return self.client.v1.billing.meter_events.create(given, options)  # type: ignore[arg-type]

    def stream(self, *events: dict[str, Any]) -> None:
        """Send events in one request of the stream, on a session of its own."""
        service = streaming(self.client, lambda token: client_without_sockets(self.core, token))
        service.create({"events": list(events)})

    def event(self, value: str = "1", **overrides: Any) -> dict[str, Any]:
        """One event as v2 takes it; `overrides` replace parameters, None leaves one out."""
        params = {
            "event_name": "api_calls",
            "payload": {"stripe_customer_id": self.customer, "value": value},
            **overrides,
        }
        return {name: param for name, param in params.items() if param is not None}

    def total(self) -> float:
        """What the summaries show for the customer in the 36 days before now and the hour after it."""
        start, end = (self.now // 3600 - 36 * 24) * 3600, (self.now // 3600 + 1) * 3600
        return sum(s.aggregated_value for s in self.summaries(start, end).data)

    def summaries(self, start: int, end: int, **params: Any) -> Any:
        given: Any = {"customer": self.customer, "start_time": start, "end_time": end, **params}
        return self.client.v1.billing.meters.event_summaries.list(self.meter, given)

    def refused(self, error: type[stripe.StripeError] = stripe.InvalidRequestError, **send: Any) -> Any:
        """The error of a meter event that must not be counted; checks that it left no trace in the counts."""
        counted = len(self.journal("meter_event"))
        with pytest.raises(error) as caught:
            self.send(**send)

        assert len(self.journal("meter_event")) == counted
        return caught.value


def make_account(
    *, meter: Any = None, client: Any = None, clock: Any = None, core: Any = None, **options: Any
) -> Account:
    """A new account at noon; `meter` replaces the meter's parameters, `options` are the simulator's."""
    clock = clock or SimulatorClock(still_at=NOON)
    core = core or make_core(clock, **options)
    client = client or client_without_sockets(core)
    created = client.v1.billing.meters.create(
        {
            "display_name": "API calls",
            "event_name": "api_calls",
            "default_aggregation": {"formula": "sum"},
            **(meter or {}),
        }
    )
    return Account(core, clock, client, created.id, client.v1.customers.create({"name": "Acme"}).id)


@pytest.fixture
def account() -> Account:
    return make_account()
