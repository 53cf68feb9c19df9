"""What the stages of the usage flow stand on: connection, settings, clock, source, Stripe, the lease and the gate.

`usage/flow.py` adds the stages.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from psycopg import Connection

from billing_pipeline.database.clock import DatabaseClock
from billing_pipeline.database.source import Source, read_source
from billing_pipeline.domain.reach import reach_start
from billing_pipeline.settings import Settings
from billing_pipeline.stripe_api.catalogue import StripeMeter, read_meters
from billing_pipeline.stripe_api.client import StripeClient, make_client, read_account
from billing_pipeline.stripe_api.meter_events import make_sink
from billing_pipeline.stripe_api.subscriptions import ItemPeriod, item_periods
from billing_pipeline.stripe_api.summaries import StripeSummaries
from billing_pipeline.usage import gate
from billing_pipeline.usage.catalogue import load_catalogue
from billing_pipeline.usage.contract import require_contract
from billing_pipeline.usage.lease import Lease, acquire, release
from billing_pipeline.usage.mark import HighWaterMark
from billing_pipeline.usage.send import MeterSink
from billing_pipeline.usage.table_contract import require_known_event_types


class FlowContext:
    """All of it over one connection; `settings` decide, the database's clock tells the time."""

    def __init__(self, connection: Connection[Any], database_url: str, settings: Settings, *, holder: str) -> None:
        self.connection = connection
        self.settings = settings
        self.catalogue = load_catalogue(settings)
        require_known_event_types(settings.required_event_types, self.catalogue)
        self.clock: Callable[[], datetime] = DatabaseClock(connection)
        self.mark = HighWaterMark(settings.mark_url)
        self.new_sink: Callable[[], MeterSink] = lambda: make_sink(settings)
        self.database_url = database_url
        self.flush_id: int | None = None
        """The fence of this flow's lease, once it has one: no other flush has the same."""
        self._holder = holder

    def take_lease(self) -> Lease:
        """The right to flush, kept by this flow's holder through all stages.  Raises `LeaseHeld`."""
        lease = acquire(
            self.connection,
            lock_key=self.settings.stripe_usage_flush_lock_key,
            holder=self._holder,
            ttl=self.lease_ttl,
            now=self.clock(),
        )
        self.flush_id = lease.fence
        return lease

    def give_lease_back(self) -> None:
        """After the last stage, whatever came of it."""
        release(self.connection, lock_key=self.settings.stripe_usage_flush_lock_key, holder=self._holder)

    @cached_property
    def stripe(self) -> StripeClient:
        """The client for everything but sending."""
        return make_client(self.settings)

    @cached_property
    def meters_at_stripe(self) -> dict[str, StripeMeter]:
        """Stripe's meters by event name, read once per flow."""
        return read_meters(self.stripe, self.settings)

    @cached_property
    def summaries(self) -> StripeSummaries:
        """What Stripe shows."""
        meter_ids = {name: meter.meter_id for name, meter in self.meters_at_stripe.items()}
        return StripeSummaries(self.stripe, self.settings, meter_ids)

    def read_source(self) -> Source:
        """The source as it is now; each stage asks anew, because it may change in between."""
        return read_source(self.connection, self.settings)

    def periods_at_stripe(self) -> list[ItemPeriod]:
        """The billing periods that Stripe shows now, of every metered subscription item."""
        event_names = {meter.meter_id: name for name, meter in self.meters_at_stripe.items()}
        ended_since = reach_start(self.clock())
        return item_periods(self.stripe, self.settings, event_names, ended_since=ended_since)

    def pass_gate(self, *, contract: bool = True) -> gate.Identity:
        """The identity, if everything that must hold before sending holds.  Raises `GateClosed`."""
        account = read_account(self.stripe, self.settings)
        now = self.clock()
        identity = gate.bind(
            self.connection, stripe_account=account.account_id, livemode=self.settings.livemode, now=now
        )
        gate.require_open(self.connection, identity, self.mark, now=now)
        gate.require_clock(now, account.stripe_time)
        if self.settings.livemode:
            gate.require_durable(self.connection)
        if contract and self.settings.stripe_billing_validate_contract_before_flush:
            require_contract(
                self.connection,
                fail_closed=self.settings.stripe_billing_contract_fail_closed,
                now=now,
                age_max=self.lease_ttl,
            )
        return identity

    @property
    def contract_stops(self) -> bool:
        """Whether a table fault of the contract stops a flush."""
        return (
            self.settings.stripe_billing_validate_contract_before_flush
            and self.settings.stripe_billing_contract_fail_closed
        )

    @property
    def lease_ttl(self) -> timedelta:
        return timedelta(seconds=self.settings.stripe_usage_flush_lock_ttl_seconds)
