"""A ledger and a Stripe that live by one clock, and whatever a test lets happen between them.

Faults are taken in order, one per request that carries meter events; then all is well again.
`trial` runs a test once per channel: v1 and the v2 stream.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from psycopg import Connection

from billing_pipeline.reconciliation.invariants import violations
from billing_pipeline.settings import Settings, load_settings
from billing_pipeline.stripe_api.catalogue import set_up_catalogue
from billing_pipeline.stripe_api.customers import create_customers
from billing_pipeline.stripe_api.meter_events import make_sink
from billing_pipeline.stripe_simulator.faults import Fault, FaultKind
from billing_pipeline.stripe_simulator.wire import Request
from billing_pipeline.usage.flow import UsageFlow
from billing_pipeline.usage.flush import flush
from billing_pipeline.usage.gate import read_identity
from billing_pipeline.usage.submit import SubmitContext, SubmitReport, submit
from billing_pipeline_tests.builders import billable_event, insert_events, map_customer
from billing_pipeline_tests.fix_flow import canary_of, counted_by_stripe, live_settings
from billing_pipeline_tests.fix_simulator import RunningSimulator, SimulatorClock, make_core, running_simulator

SENDING = ("/v1/billing/meter_events", "/v2/billing/meter_event_stream")
HOUR = timedelta(hours=1)
METER = "prompt_tokens"
V1_ONLY = pytest.mark.parametrize("channel", ["v1"])
V2_ONLY = pytest.mark.parametrize("channel", ["v2_stream"])


class Weather:
    """The simulator's fault plan: what becomes of the next requests, and which requests there were."""

    def __init__(self) -> None:
        self.faults: list[FaultKind | Fault | None] = []
        self.other_faults: Callable[[Request], Fault | None] = lambda request: None
        self.before_send: Callable[[int], None] = lambda number: None
        self.requests: list[Request] = []
        self.lag = timedelta(0)

    def __call__(self, number: int, request: Request) -> Fault | None:
        self.requests.append(request)
        if request.path not in SENDING:
            return self.other_faults(request)
        self.before_send(len(self.sent))
        fault = self.faults.pop(0) if self.faults else None
        return Fault(fault) if isinstance(fault, FaultKind) else fault

    @property
    def sent(self) -> list[Request]:
        """The requests that carried meter events."""
        return [request for request in self.requests if request.path in SENDING]


class Trial:
    """One organization's usage on its way to Stripe; the judge is the simulator's journal."""

    def __init__(
        self,
        connection: Connection[Any],
        database_url: str,
        simulator: RunningSimulator,
        time: SimulatorClock,
        weather: Weather,
        settings: Settings,
    ) -> None:
        self.connection, self.database_url = connection, database_url
        self.simulator, self.time, self.weather, self.settings = simulator, time, weather, settings
        self.shift = timedelta(0)
        self.flow = self.another_flow()
        self.closed = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - 3 * HOUR
        """An hour that closed long enough ago to be cut."""
        set_up_catalogue(self.flow.stripe, settings, self.flow.catalogue)
        self.customers: dict[str, str] = {}
        self.customer = self.bill("acme")
        self.flow.pass_gate()

    def another_flow(self, **overrides: Any) -> UsageFlow:
        """A flow as the next run would have it, optionally with other settings."""
        settings = load_settings(**self.settings.model_dump() | overrides)
        flow = UsageFlow(self.connection, self.database_url, settings, holder="trial")
        database_clock = flow.clock
        flow.clock = lambda: database_clock() + self.shift
        return flow

    def bill(self, organization_id: str) -> str:
        """Give an organization a customer at Stripe."""
        self.customers |= create_customers(self.flow.stripe, self.settings, [organization_id])
        map_customer(self.connection, organization_id, self.customers[organization_id])
        return self.customers[organization_id]

    def use(self, units: int, *, hours_before: int = 0, **overrides: Any) -> None:
        """Record usage in the closed hour, or so many hours before it."""
        at = self.closed - hours_before * HOUR
        given = {"quantity": Decimal(units), "occurred_at": at, "recorded_at": self.flow.clock()}
        insert_events(self.connection, billable_event(**given | overrides))

    def cut(self) -> int:
        """State whatever is owed; returns the number of new entries."""
        self.flow.validate_contract()
        self.flow.aggregate()
        return self.flow.cut().entries

    def entry(self, units: int = 10) -> tuple[str, str, datetime]:
        """One entry, cut and not sent; returns the judge's key of its hour."""
        self.use(units)
        assert self.cut() == 1
        return (self.customer, METER, self.closed)

    def send(self, **overrides: Any) -> SubmitReport:
        """Submit alone, without the gate and the canaries of a flush, optionally with other settings."""
        flow = self.another_flow(**overrides)
        return submit(self.connection, make_sink(flow.settings), self.context(flow), clock=self.flow.clock)

    def context(self, flow: UsageFlow) -> SubmitContext:
        """What `submit` needs, without canaries."""
        return SubmitContext(
            identity=read_identity(self.connection),
            lease=self.flow.take_lease(),
            lease_ttl=HOUR,
            mark=flow.mark,
            times=flow.settings.protocol_times,
            concurrency=flow.settings.stripe_max_concurrency,
            canary_customer=None,
            event_names=(),
        )

    def prove(self) -> None:
        """Read Stripe's error reports and summaries."""
        self.flow.apply_error_reports()
        self.flow.confirm()

    def flush(self) -> None:
        """A whole flush, as the schedule runs it."""
        flush(self.flow)

    def pass_time(self, **duration: float) -> None:
        """Let the ledger's and Stripe's clock go on together."""
        self.shift += timedelta(**duration)
        self.time.advance(**duration)

    def states(self) -> list[str]:
        """The entries' states, oldest entry first."""
        return [row[0] for row in self.rows("SELECT state::text FROM ledger_entries ORDER BY entry_id")]

    def outcomes(self) -> list[str | None]:
        """The attempts' outcomes, oldest attempt first."""
        return [row[0] for row in self.rows("SELECT outcome FROM attempts ORDER BY attempt_id")]

    def rows(self, question: str, *params: Any) -> list[tuple[Any, ...]]:
        """What the database answers."""
        return self.connection.execute(question, params).fetchall()

    def counted(self) -> dict[tuple[str, str, datetime], int]:
        """Units per customer, meter and hour that Stripe counted."""
        return counted_by_stripe(self.simulator)

    def usage_requests(self) -> int:
        """Requests that carried usage, canaries left out."""
        canary = canary_of(self.simulator)
        return sum(canary is None or canary not in repr(request.params) for request in self.weather.sent)

    def require_invariants(self) -> None:
        """Every invariant of the ledger holds now."""
        mark = self.flow.mark.read()
        found = violations(
            self.connection, settings=self.settings, mark=mark.attempt_id if mark else 0, now=self.flow.clock()
        )
        assert found == []


@contextmanager
def running_trial(
    connection: Connection[Any], database_url: str, folder: Path, channel: str, **core_options: Any
) -> Iterator[Trial]:
    """A trial over `channel`; `core_options` are those of the simulator, and `processing` of its server."""
    time, weather = SimulatorClock(), Weather()
    processing = core_options.pop("processing", timedelta(0))
    options = {"fault": weather, "lag": lambda record: weather.lag, "error_samples_max": 1} | core_options
    with running_simulator(make_core(time, **options), processing=processing) as simulator:
        settings = live_settings(
            database_url,
            simulator,
            folder,
            stripe_meter_sink=channel,
            stripe_meter_events_per_second=100_000,
            stripe_timeout_seconds=1,
        )
        yield Trial(connection, database_url, simulator, time, weather, settings)


@pytest.fixture(params=["v1", "v2_stream"])
def channel(request: pytest.FixtureRequest) -> str:
    """Which of Stripe's endpoints takes the meter events."""
    return str(request.param)


@pytest.fixture
def trial(connection: Connection[Any], database_url: str, tmp_path: Path, channel: str) -> Iterator[Trial]:
    """A trial whose simulator has no lag and takes any number of requests."""
    with running_trial(connection, database_url, tmp_path, channel) as running:
        yield running
