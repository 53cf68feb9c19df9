"""What the fault tests share: a Stripe whose clock a test moves, real worker processes, and the judge.

The judge compares the simulator's own journal with sums from the rows that the test wrote, never with the ledger.
"""

from __future__ import annotations

import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from billing_pipeline.reconciliation.invariants import violations
from billing_pipeline.settings import Settings
from billing_pipeline.usage.flow import UsageFlow
from billing_pipeline.usage.flush import FlushReport, flush
from billing_pipeline_tests.builders import billable_event, insert_events
from billing_pipeline_tests.cli import command
from billing_pipeline_tests.faults.drill import Drill
from billing_pipeline_tests.fix_flow import counted_by_stripe
from billing_pipeline_tests.fix_simulator import RunningSimulator, SimulatorClock, make_core, running_simulator

THIS_HOUR = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
HOUR = timedelta(hours=1)
ORGANIZATIONS = ("acme", "globex", "initech")
REACHED_SECONDS_MAX = 60
"""A worker needs a second or two to start; more means that it never came to the place a test waits for."""


@pytest.fixture
def stripe_time() -> SimulatorClock:
    """Stripe's clock."""
    return SimulatorClock()


@pytest.fixture
def simulator(stripe_time: SimulatorClock) -> Iterator[RunningSimulator]:
    """A fresh account, whose time `World.pass_time` moves together with the ledger's."""
    with running_simulator(make_core(stripe_time)) as running:
        yield running


@dataclass
class World:
    """Three organizations with usage in three closed hours, not flushed yet, and everything to flush it with."""

    flow: UsageFlow
    simulator: RunningSimulator
    settings: Settings
    folder: Path
    customers: dict[str, str]
    time: SimulatorClock
    events: list[dict[str, Any]] = field(default_factory=list)
    workers: list[subprocess.Popen[str]] = field(default_factory=list)

    def record_usage(self, *events: dict[str, Any]) -> None:
        """The product writes rows; the judge remembers them."""
        insert_events(self.flow.connection, *events)
        self.events += events

    def worker(self, *arguments: str, before: str = "", **settings: object) -> subprocess.Popen[str]:
        """A `billing-pipeline` process on this world, `flush-now` unless told otherwise; ended with the test."""
        here = {
            "DATABASE_URL": self.database_url,
            "BILLING_STATE_DIR": self.settings.billing_state_dir,
            "STRIPE_API_BASE": self.simulator.url,
            "STRIPE_SECRET_KEY": self.simulator.key,
            "ENABLE_BILLING": "true",
            "BILLING_MODE": "live",
        }
        process = command.start(*(arguments or ("flush-now",)), folder=self.folder, before=before, **here | settings)
        self.workers.append(process)
        return process

    def kill_at(self, reached: threading.Event, worker: subprocess.Popen[str]) -> None:
        """SIGKILL the worker where it waits; fails when it never gets there."""
        if not reached.wait(REACHED_SECONDS_MAX):
            worker.kill()
            pytest.fail(f"the worker did not come to the chosen place: {worker.communicate()}")
        worker.send_signal(signal.SIGKILL)
        worker.communicate()
        self.wait_for_backends_to_end()

    def wait_for_backends_to_end(self) -> None:
        """Until PostgreSQL has noticed that its clients are gone, and rolled back what they had open."""
        others = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        wait_until(lambda: self.flow.connection.execute(others).fetchone() == (0,))

    def pass_time(self, duration: timedelta) -> None:
        """Let time pass for the ledger's clock, as this test's own flow sees it, and for Stripe."""
        clock = self.flow.clock
        self.flow.clock = lambda: clock() + duration
        self.time.advance(seconds=duration.total_seconds())

    def outlive_leases(self) -> None:
        """Let what a dead worker held run out: its flush lease, and its claim on entries."""
        self.pass_time(timedelta(seconds=self.settings.stripe_usage_flush_lock_ttl_seconds) + timedelta(seconds=1))

    def flush(self) -> FlushReport:
        """One flush in this process, by this test's clock."""
        return flush(self.flow)

    def truth(self) -> dict[tuple[str, str, datetime], int]:
        """Units per customer, event name and hour, summed from the rows alone."""
        totals: Counter[tuple[str, str, datetime]] = Counter()
        for event in self.events:
            hour = event["occurred_at"].replace(minute=0, second=0, microsecond=0)
            totals[(self.customers[event["organization_id"]], event["event_type"], hour)] += int(event["quantity"])
        return dict(totals)

    def require_truth(self) -> None:
        """Stripe counted exactly the truth, each minute once, and the ledger's invariants hold."""
        assert counted_by_stripe(self.simulator) == self.truth()
        mark = self.flow.mark.read()
        assert (
            violations(
                self.flow.connection,
                settings=self.settings,
                mark=mark.attempt_id if mark else 0,
                now=self.flow.clock(),
            )
            == []
        )

    @property
    def database_url(self) -> str:
        """Where the ledger is."""
        assert self.settings.database_url is not None
        return self.settings.database_url.get_secret_value()


@pytest.fixture
def world(
    flow: UsageFlow,
    bill: Callable[..., dict[str, str]],
    simulator: RunningSimulator,
    settings: Settings,
    stripe_time: SimulatorClock,
    tmp_path: Path,
) -> Iterator[World]:
    """Nine entries' worth of usage, not flushed yet."""
    world = World(flow, simulator, settings, tmp_path, bill(*ORGANIZATIONS), stripe_time)
    world.record_usage(*usage())
    yield world
    for worker in world.workers:
        if worker.poll() is None:
            worker.kill()
            worker.communicate()


def wait_until(condition: Callable[[], bool], *, seconds_max: float = REACHED_SECONDS_MAX) -> None:
    """Wait for a condition that something else brings about; fails when it does not come."""
    deadline = time.monotonic() + seconds_max
    while not condition():
        if time.monotonic() > deadline:
            pytest.fail(f"after {seconds_max} s what the test waits for had not come")
        time.sleep(0.02)


def usage(
    organizations: Iterable[str] = ORGANIZATIONS, hours_ago: Iterable[int] = (3, 4, 5), **overrides: Any
) -> list[dict[str, Any]]:
    """Two rows an organization and hour, each hour with a sum of its own."""
    return [
        billable_event(
            **{
                "organization_id": organization_id,
                "quantity": Decimal(100 * number + hour + 10 * minute),
                "occurred_at": THIS_HOUR - hour * HOUR + timedelta(minutes=minute),
                "recorded_at": datetime.now(UTC),
            }
            | overrides
        )
        for number, organization_id in enumerate(organizations, start=1)
        for hour in hours_ago
        for minute in (1, 31)
    ]


@pytest.fixture
def drill(simulator: RunningSimulator, stripe_time: SimulatorClock) -> Iterator[Drill]:
    """A ledger on a server of its own, beside this test's Stripe."""
    # Not in pytest's own folder: every pytest that starts closes it to other users, such as the server's.
    with tempfile.TemporaryDirectory(prefix="billing-drill-") as folder:
        drill = Drill(Path(folder) / "state", simulator, stripe_time)
        yield drill
        drill.stop()
