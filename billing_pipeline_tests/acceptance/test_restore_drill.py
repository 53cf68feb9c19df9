"""The restore drill: a database brought back from a snapshot sends nothing twice and loses nothing.

Flush, snapshot the server's files, flush more, put the snapshot back, start again.
"""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from billing_pipeline.database import embedded
from billing_pipeline.database.connection import connect
from billing_pipeline.database.migrate import migrate
from billing_pipeline.domain.adoption import Step
from billing_pipeline.errors import GateClosed, LedgerFrozen
from billing_pipeline.settings import load_settings
from billing_pipeline.stripe_api.catalogue import set_up_catalogue
from billing_pipeline.stripe_api.customers import create_customers
from billing_pipeline.usage.adopt import adopt, release, require_settled
from billing_pipeline.usage.aggregate import Scope
from billing_pipeline.usage.flush import UsageFlow, flush
from billing_pipeline_tests.builders import billable_event, copy_events, insert_events, map_customer
from billing_pipeline_tests.fix_flow import counted_by_stripe
from billing_pipeline_tests.fix_simulator import SimulatorClock, make_core, running_simulator

THIS_HOUR = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
HOUR = timedelta(hours=1)
ORGANIZATIONS = ("acme", "globex")


class Drill:
    """A ledger on a server of its own, a Stripe beside it, and one clock for both."""

    def __init__(self, state_dir, simulator, time):
        self.state_dir, self.simulator, self.time = state_dir, simulator, time
        self.shift = timedelta(0)
        self.start()

    def start(self):
        self.url = embedded.ensure_running(self.state_dir).url()
        migrate(self.url, create_source=True)
        self.settings = load_settings(
            database_url=self.url,
            billing_state_dir=self.state_dir,
            enable_billing=True,
            billing_mode="live",
            stripe_secret_key=self.simulator.key,
            stripe_api_base=self.simulator.url,
        )
        self._context = connect(self.url)
        self.connection = self._context.__enter__()
        self.flow = UsageFlow(self.connection, self.url, self.settings, holder="drill")
        clock = self.flow.clock
        self.flow.clock = lambda: clock() + self.shift

    def stop(self):
        self._context.__exit__(None, None, None)
        embedded.stop(self.state_dir)

    def pass_time(self, duration):
        self.shift += duration
        self.time.advance(seconds=duration.total_seconds())

    def snapshot(self, folder):
        self.stop()
        subprocess.run(["cp", "-a", self.state_dir / "postgres", folder], check=True)
        self.start()

    def restore(self, folder):
        self.stop()
        shutil.rmtree(self.state_dir / "postgres")
        subprocess.run(["cp", "-a", folder, self.state_dir / "postgres"], check=True)
        self.start()

    def calls(self):
        return len(self.simulator.journal("meter_event"))


@pytest.fixture
def drill(tmp_path):
    time = SimulatorClock()
    with running_simulator(make_core(time)) as simulator:
        drill = Drill(tmp_path / "state", simulator, time)
        yield drill
        drill.stop()


def usage(numbers, *, hours_ago, tag):
    return [
        billable_event(
            event_id=f"{tag}-{organization_id}-{number}-{hour}",
            organization_id=organization_id,
            quantity=Decimal(number + hour),
            occurred_at=THIS_HOUR - hour * HOUR + timedelta(minutes=number % 60),
            recorded_at=datetime.now(UTC),
        )
        for organization_id in ORGANIZATIONS
        for number in numbers
        for hour in hours_ago
    ]


@pytest.mark.slow
def test_a_restored_ledger_is_noticed_before_the_first_send_and_recovers_to_the_truth(drill, tmp_path):
    set_up_catalogue(drill.flow.stripe, drill.settings, drill.flow.catalogue)
    customers = create_customers(drill.flow.stripe, drill.settings, ORGANIZATIONS)
    for organization_id, customer in customers.items():
        map_customer(drill.connection, organization_id, customer)
    before = usage(range(3), hours_ago=(2, 3, 4), tag="before")
    insert_events(drill.connection, *before)
    flush(drill.flow)
    unsent = usage(range(3), hours_ago=(5,), tag="unsent")
    insert_events(drill.connection, *unsent)
    drill.flow.aggregate()
    drill.flow.cut()
    drill.snapshot(tmp_path / "snapshot")

    # The timeline that will be lost: it sends what was cut, late rows for old hours, and a new hour.
    after = usage(range(5), hours_ago=(2, 4), tag="late") + usage(range(2), hours_ago=(6,), tag="new")
    insert_events(drill.connection, *after)
    flush(drill.flow)
    assert drill.calls() > 0
    drill.restore(tmp_path / "snapshot")

    # Noticed before the first send, whoever tries.
    sent_before = drill.calls()
    for attempt in (flush, lambda flow: flow.submit(), lambda flow: flow.cut()):
        with pytest.raises(LedgerFrozen, match="restored from a backup"):
            attempt(drill.flow)
    assert drill.calls() == sent_before

    # Recovery waits for what may still be under way, and for a canary sent after the freeze.
    drill.flow.send_canaries_while_frozen()
    with pytest.raises(GateClosed, match="may still turn up"):
        require_settled(drill.connection, drill.settings.protocol_times, now=drill.flow.clock())
    drill.pass_time(timedelta(hours=9, minutes=1))
    with pytest.raises(GateClosed, match="Nobody has adopted"):
        release(drill.connection, actor="Ann", reason="x", now=drill.flow.clock())
    drill.flow.send_canaries_while_frozen()
    require_settled(drill.connection, drill.settings.protocol_times, now=drill.flow.clock())

    report = adopt(
        drill.connection,
        drill.flow.summaries,
        catalogue=drill.flow.catalogue,
        mark=drill.flow.mark,
        since=THIS_HOUR - timedelta(days=2),
        actor="Ann",
        reason="disk failure",
        clock=drill.flow.clock,
    )
    assert report.conflicts == ()
    assert report.count(Step.ADOPT, Step.REPLACE_AND_ADOPT) > 0
    with pytest.raises(GateClosed, match="a second person"):
        release(drill.connection, actor=" ann ", reason="mine", now=drill.flow.clock())
    with pytest.raises(LedgerFrozen):
        flush(drill.flow)
    release(drill.connection, actor="Bob", reason="looked at the report", now=drill.flow.clock())

    # The source was restored with the ledger, so the product replays what it recorded since.
    copy_events(drill.connection, after)
    drill.flow.aggregate(Scope.FULL)
    flush(drill.flow)
    flush(drill.flow)

    truth = Counter()
    for event in (*before, *unsent, *after):
        hour = event["occurred_at"].replace(minute=0)
        truth[(customers[event["organization_id"]], "prompt_tokens", hour)] += int(event["quantity"])
    assert counted_by_stripe(drill.simulator) == dict(truth)
    minutes = Counter(
        (record["customer"], record["event_name"], record["timestamp"])
        for record in drill.simulator.journal("meter_event")
    )
    assert max(minutes.values()) == 1, "no minute was ever counted twice"
    identifiers = [record["identifier"] for record in drill.simulator.journal("meter_event")]
    assert len(identifiers) == len(set(identifiers))
