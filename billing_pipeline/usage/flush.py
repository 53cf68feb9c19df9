"""The usage flow as one thing: each stage with its settings applied, and all of them in order.

Dagster's assets call the stages one by one; the command runs `flush`.  Both come through here, so a run started by
hand can do no more than the schedule: the gate is asked before anything is cut or sent, whoever asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

from psycopg import Connection

from billing_pipeline.database.clock import DatabaseClock
from billing_pipeline.database.connection import connect
from billing_pipeline.settings import Level, Settings
from billing_pipeline.stripe_api.catalogue import active_meters, require_meters
from billing_pipeline.stripe_api.client import StripeClient, account_id, make_client
from billing_pipeline.stripe_api.meter_events import V1MeterSink
from billing_pipeline.stripe_api.summaries import hour_summaries, minute_summary
from billing_pipeline.usage import gate
from billing_pipeline.usage.aggregate import AggregationReport, Scope, aggregate, recorded_since
from billing_pipeline.usage.catalogue import load_catalogue
from billing_pipeline.usage.confirm import ConfirmReport, confirm
from billing_pipeline.usage.contract import ContractReport, require_contract, validate_contract
from billing_pipeline.usage.cut import CutReport, cut
from billing_pipeline.usage.submit import SubmitReport, submit

SAFE_SEND = timedelta(hours=20)
"""No send later than this after an entry's first attempt: Stripe forgets identifiers after "at least 24 hours"."""

PAST_MAX = timedelta(days=35) - timedelta(hours=1)
"""Stripe takes timestamps at most 35 days old; the hour is margin for a flush under way."""


@dataclass(frozen=True, slots=True)
class FlushReport:
    """What one flush did, stage by stage."""

    contract: ContractReport | None
    aggregation: AggregationReport
    cut: CutReport
    submit: SubmitReport
    confirm: ConfirmReport


class UsageFlow:
    """The stages of the usage flow over one connection; `settings` decide, the database's clock tells the time."""

    def __init__(self, connection: Connection[Any], database_url: str, settings: Settings) -> None:
        self.connection = connection
        self.settings = settings
        self.catalogue = load_catalogue(settings)
        self.clock: Callable[[], datetime] = DatabaseClock(connection)
        self._database_url = database_url

    @cached_property
    def stripe(self) -> StripeClient:
        """The client for everything but sending."""
        return make_client(self.settings)

    @cached_property
    def meters_at_stripe(self) -> dict[str, str]:
        """Event name -> meter id, read once per flow.  Raises `StripeRefused` when one of the catalogue is missing."""
        meters = active_meters(self.stripe, self.settings)
        require_meters(self.catalogue, meters)
        return meters

    def validate_contract(self, *, whole_lookback: bool = False) -> ContractReport:
        """Stage 1, over the rows recorded since the last aggregation, or the whole lookback."""
        since = None if whole_lookback else self._recorded_since()
        return validate_contract(
            self.connection,
            self._database_url,
            source=self.settings.billing_source_relation,
            catalogue=self.catalogue,
            since=since,
            lookback=self._lookback,
            now=self.clock(),
        )

    def aggregate(self, scope: Scope | None = None) -> AggregationReport:
        """Stage 2."""
        return aggregate(
            self.connection,
            source=self.settings.billing_source_relation,
            catalogue=self.catalogue,
            lookback=self._lookback,
            overlap=timedelta(seconds=self.settings.billing_cutoff_overlap_seconds),
            clock=self.clock,
            scope=scope,
        )

    def cut(self) -> CutReport:
        """Stage 3, behind the gate; cuts nothing while billing is off."""
        if self.settings.level is Level.OFF:
            return CutReport()
        return cut(
            self.connection,
            catalogue=self.catalogue,
            identity=self.pass_gate(),
            grace=timedelta(seconds=self.settings.billing_window_grace_seconds),
            past_max=PAST_MAX,
            clock=self.clock,
        )

    def submit(self, on_progress: Callable[[int], None] = lambda sent: None) -> SubmitReport:
        """Stage 4, behind the gate; sends nothing unless billing is live."""
        if self.settings.level is not Level.LIVE:
            return SubmitReport()
        self.pass_gate()
        require_meters(self.catalogue, self.meters_at_stripe)
        return submit(
            self.connection,
            V1MeterSink(self.settings),
            clock=self.clock,
            concurrency=self.settings.stripe_max_concurrency,
            safe_send=SAFE_SEND,
            past_max=PAST_MAX,
            on_progress=on_progress,
        )

    def confirm(self) -> ConfirmReport:
        """Stage 5; reads only."""
        if self.settings.level is Level.OFF:
            return ConfirmReport()
        return confirm(self.connection, _StripeSummaries(self), clock=self.clock)

    def pass_gate(self) -> gate.Identity:
        """The identity, if everything that must hold before sending holds.  Raises `GateClosed`."""
        identity = gate.bind(
            self.connection,
            stripe_account=account_id(self.stripe, self.settings),
            livemode=self.settings.livemode,
            now=self.clock(),
        )
        gate.require_open(identity)
        if self.settings.stripe_billing_validate_contract_before_flush:
            require_contract(self.connection, fail_closed=self.settings.stripe_billing_contract_fail_closed)
        return identity

    @property
    def _lookback(self) -> timedelta:
        return timedelta(days=self.settings.stripe_billing_contract_lookback_days)

    def _recorded_since(self) -> datetime | None:
        return recorded_since(self.connection, timedelta(seconds=self.settings.billing_cutoff_overlap_seconds))


class _StripeSummaries:
    """The confirmer's view of Stripe."""

    def __init__(self, flow: UsageFlow) -> None:
        self._flow = flow

    def hours(self, event_name: str, customer: str, start: datetime, end: datetime) -> dict[datetime, int]:
        meter_id = self._flow.meters_at_stripe[event_name]
        return hour_summaries(
            self._flow.stripe, self._flow.settings, meter_id=meter_id, customer=customer, start=start, end=end
        )

    def minute(self, event_name: str, customer: str, minute: datetime) -> int:
        meter_id = self._flow.meters_at_stripe[event_name]
        return minute_summary(
            self._flow.stripe, self._flow.settings, meter_id=meter_id, customer=customer, minute=minute
        )


@contextmanager
def open_flow(settings: Settings, database_url: str) -> Iterator[UsageFlow]:
    """A flow over a connection of its own."""
    with connect(database_url) as connection:
        yield UsageFlow(connection, database_url, settings)


def flush(
    flow: UsageFlow, *, scope: Scope | None = None, on_progress: Callable[[int], None] = lambda sent: None
) -> FlushReport:
    """Run every stage once, in order."""
    validates = flow.settings.stripe_billing_validate_contract_before_flush
    contract = flow.validate_contract() if validates else None
    aggregation = flow.aggregate(scope)
    cut_report = flow.cut()
    submit_report = flow.submit(on_progress)
    return FlushReport(contract, aggregation, cut_report, submit_report, flow.confirm())
