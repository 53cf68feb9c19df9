"""Whatever gets lost between us and Stripe, an entry counts once and the ledger says what it knows."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from billing_pipeline.database.connection import connect
from billing_pipeline.domain.entries import Outcome
from billing_pipeline.errors import (
    GateClosed,
    StripeRefused,
    Unavailable,
)
from billing_pipeline.settings import load_settings
from billing_pipeline.stripe_api.meter_events import Answer, V1MeterSink, V2StreamSink
from billing_pipeline.usage.flow import UsageFlow
from billing_pipeline.usage.gate import require_clock
from billing_pipeline.usage.lease import LeaseLost
from billing_pipeline.usage.submit import SubmitContext, submit
from billing_pipeline_tests.builders import billable_event, insert_events
from billing_pipeline_tests.fix_flow import counted_by_stripe
from billing_pipeline_tests.fix_proxy import Mishap
from billing_pipeline_tests.fix_sink import StandInSink

CLOSED = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=3)


def send(flow, *, base=None, later=timedelta(0), sink=None, key=None):
    """Submit through `base` (the simulator itself by default), `later` than now."""
    given = {"stripe_api_base": base, "stripe_secret_key": key}
    settings = load_settings(**flow.settings.model_dump() | {name: value for name, value in given.items() if value})
    clock = flow.clock
    flow.clock = lambda: clock() + later
    try:
        return submit(flow.connection, sink or V1MeterSink(settings), context(flow), clock=flow.clock)
    finally:
        flow.clock = clock


def context(flow):
    return SubmitContext(
        identity=flow.pass_gate() if flow.clock() - datetime.now(UTC) < timedelta(minutes=1) else identity_of(flow),
        lease=flow.take_lease(),
        lease_ttl=timedelta(hours=1),
        mark=flow.mark,
        times=flow.settings.protocol_times,
        concurrency=4,
        canary_customer=None,
        event_names=(),
    )


def identity_of(flow):
    from billing_pipeline.usage.gate import read_identity

    return read_identity(flow.connection)


@pytest.fixture
def entry(flow, bill):
    """One entry of 10 units, cut and not sent; returns the judge's key of its hour."""
    customers = bill("acme")
    insert_events(flow.connection, billable_event(quantity=Decimal(10), occurred_at=CLOSED))
    flow.validate_contract()
    flow.aggregate()
    assert flow.cut().entries == 1
    return (customers["acme"], "prompt_tokens", CLOSED)


def state(flow):
    return flow.connection.execute("SELECT state::text FROM ledger_entries").fetchone()[0]


def attempts(flow):
    rows = flow.connection.execute("SELECT outcome FROM attempts ORDER BY attempt_id")
    return [row[0] for row in rows]


def test_a_worker_that_died_after_its_claim_is_followed_by_another(flow, entry, simulator):
    with pytest.raises(ExceptionGroup):
        send(flow, sink=CrashingSink())
    assert (state(flow), attempts(flow)) == ("ambiguous", [None])
    assert send(flow).attempts == 0, "its claim still runs"

    send(flow, later=flow.settings.protocol_times.entry_lease + timedelta(seconds=1))

    assert (state(flow), attempts(flow)) == ("accepted", [None, "ok"])
    assert counted_by_stripe(simulator) == {entry: 10}


def test_the_attempt_is_committed_and_the_mark_raised_before_the_request_leaves(flow, entry, database_url):
    sink = WitnessSink(database_url, flow.mark)

    send(flow, sink=sink)

    ((seen_state, attempt_id, marked),) = sink.seen
    assert seen_state == "ambiguous"
    assert marked == attempt_id


def test_nothing_is_sent_when_the_mark_cannot_be_raised(flow, entry, simulator):
    past_the_gate = context(flow)
    lock = flow.settings.billing_state_dir / "high_water_mark.lock"
    lock.unlink()
    lock.mkdir()

    with pytest.raises(Unavailable, match="Nothing is sent without it"):
        submit(flow.connection, V1MeterSink(flow.settings), past_the_gate, clock=flow.clock)

    assert (state(flow), attempts(flow)) == ("pending", ["not_executed"])
    assert counted_by_stripe(simulator) == {}


def test_a_flush_that_lost_its_lease_claims_nothing(flow, entry, simulator):
    held = context(flow)
    flow.give_lease_back()
    other = UsageFlow(flow.connection, "", flow.settings, holder="another")
    other.take_lease()

    with pytest.raises(LeaseLost, match="another took over"):
        submit(flow.connection, V1MeterSink(flow.settings), held, clock=flow.clock)

    assert (state(flow), attempts(flow)) == ("pending", [])


def test_a_worker_that_wakes_after_its_claim_ran_out_records_nothing(flow, entry):
    late = flow.settings.protocol_times.entry_lease + timedelta(seconds=1)
    sink = SleepySink()
    clock = flow.clock
    held = context(flow)

    submit(flow.connection, sink, held, clock=lambda: clock() + (late if sink.slept else timedelta(0)))

    assert attempts(flow)[0] is None, "its own answer came too late to be believed"


def test_a_database_clock_far_from_stripes_closes_the_gate():
    now = datetime.now(UTC)

    require_clock(now, now - timedelta(seconds=60))
    with pytest.raises(GateClosed, match="mend the database server's time"):
        require_clock(now, now - timedelta(seconds=61))


class CrashingSink(StandInSink):
    """A worker that dies on its way to Stripe."""

    async def send(self, events):
        raise SystemError("killed")


class WitnessSink(StandInSink):
    """Looks from outside, over a connection of its own, at what is durable when the request would leave."""

    def __init__(self, database_url, mark):
        self.database_url = database_url
        self.mark = mark
        self.seen = []

    async def send(self, events):
        with connect(self.database_url) as outside:
            row = outside.execute(
                "SELECT state::text, attempt_id FROM ledger_entries JOIN attempts USING (entry_id)"
                " WHERE identifier = %s",
                (events[0].identifier,),
            ).fetchone()
        self.seen.append((*row, self.mark.read().attempt_id))
        return [Answer(Outcome.OK)]


class SleepySink(StandInSink):
    """A worker that is paused while its request is under way."""

    slept = False

    async def send(self, events):
        self.slept = True
        return [Answer(Outcome.OK)]


def add_entries(flow, bill, organizations):
    """One entry of 10 units per organization, cut and not sent; returns the judge's keys."""
    customers = bill(*organizations)
    insert_events(
        flow.connection,
        *(
            billable_event(event_id=f"evt_{name}", organization_id=name, quantity=Decimal(10), occurred_at=CLOSED)
            for name in organizations
        ),
    )
    flow.validate_contract()
    flow.aggregate()
    assert flow.cut().entries == len(organizations)
    return {(customer, "prompt_tokens", CLOSED) for customer in customers.values()}


@pytest.mark.parametrize("batch_size", [1, 3, 2000])
@pytest.mark.parametrize("sink", [V1MeterSink, V2StreamSink])
def test_every_entry_is_sent_once_however_the_batches_fall(flow, bill, simulator, sink, batch_size):
    keys = add_entries(flow, bill, [f"org_{n}" for n in range(7)])
    few = replace(context(flow), batch_size=batch_size)

    report = submit(flow.connection, sink(flow.settings), few, clock=flow.clock)

    assert (report.attempts, report.accepted) == (7, 7)
    assert counted_by_stripe(simulator) == dict.fromkeys(keys, 10)
    assert attempts(flow) == ["ok"] * 7
    assert listed(flow) == []


def test_what_was_claimed_ahead_is_not_sent_once_the_key_is_refused(flow, bill, simulator):
    add_entries(flow, bill, [f"org_{n}" for n in range(4)])
    sink = RefusedSink()

    with pytest.raises(StripeRefused):
        submit(flow.connection, sink, replace(context(flow), batch_size=2, concurrency=1), clock=flow.clock)

    assert sink.requests == 1
    assert attempts(flow) == ["not_executed"] * 4
    assert states(flow) == ["pending"] * 4


def test_what_was_under_way_is_recorded_when_the_mark_fails_for_the_next_batch(flow, bill, simulator):
    keys = add_entries(flow, bill, ["org_1", "org_2"])
    held = replace(context(flow), batch_size=1, mark=MarkThatFailsLater(flow.mark))

    with pytest.raises(Unavailable):
        submit(flow.connection, V1MeterSink(flow.settings), held, clock=flow.clock)

    assert sorted(states(flow)) == ["accepted", "pending"]
    assert sorted(attempts(flow)) == ["not_executed", "ok"]
    send(flow, later=timedelta(seconds=10))
    assert counted_by_stripe(simulator) == dict.fromkeys(keys, 10)


def test_the_entry_that_must_be_sent_first_goes_first(flow, bill, proxy):
    """Deadlines: 20 h after a lost answer come before 35 days after a slot, and older slots before newer."""
    customers = bill("old", "lost", "new")
    for organization_id, hours in (("old", 30), ("lost", 0), ("new", 0)):
        event = billable_event(
            event_id=organization_id, organization_id=organization_id, occurred_at=CLOSED - timedelta(hours=hours)
        )
        insert_events(flow.connection, event)
    flow.validate_contract()
    flow.aggregate()
    assert flow.cut().entries == 3
    flow.connection.execute(
        "UPDATE ledger_entries SET hold_reason = 'for this test' WHERE stripe_customer_id <> %s", (customers["lost"],)
    )
    proxy.mishaps = [Mishap.LOSE_REQUEST]
    send(flow, base=proxy.url)
    assert states(flow).count("ambiguous") == 1
    flow.connection.execute("UPDATE ledger_entries SET hold_reason = NULL")

    sink = NotingSink()
    order = replace(context(flow), concurrency=1)
    clock = flow.clock
    submit(flow.connection, sink, order, clock=lambda: clock() + timedelta(minutes=11))

    assert sink.customers == [customers["lost"], customers["old"], customers["new"]]


def test_a_worker_paused_before_its_claim_sends_nothing_of_it(flow, entry, simulator, monkeypatch):
    """Paused between reading the clock and claiming: the claim has run out before it is made."""
    pause = (flow.settings.protocol_times.entry_lease + timedelta(seconds=1)) // timedelta(microseconds=1) * 1_000
    clock, held = flow.clock, context(flow)
    clock_gettime_ns = time.clock_gettime_ns
    readings = []

    def clock_then_pause():
        readings.append(clock())
        return readings[-1]

    # The second reading is the first claim's.
    monkeypatch.setattr(time, "clock_gettime_ns", lambda which: clock_gettime_ns(which) + pause * (len(readings) > 1))
    submit(flow.connection, V1MeterSink(flow.settings), held, clock=clock_then_pause)

    assert attempts(flow)[0] == "not_executed"
    assert counted_by_stripe(simulator) == {}


def test_an_entry_on_hold_is_neither_sent_nor_read_until_it_is_released(flow, entry, simulator):
    flow.connection.execute("UPDATE ledger_entries SET hold_reason = 'for this test'")
    assert send(flow).attempts == 0
    assert flow.connection.execute("SELECT retry_at = 'infinity' FROM open_entries").fetchone()[0]

    flow.connection.execute("UPDATE ledger_entries SET hold_reason = NULL")

    assert send(flow).accepted == 1
    assert counted_by_stripe(simulator) == {entry: 10}


def listed(flow):
    return [row[0] for row in flow.connection.execute("SELECT entry_id FROM open_entries ORDER BY entry_id")]


def states(flow):
    return [row[0] for row in flow.connection.execute("SELECT state::text FROM ledger_entries ORDER BY entry_id")]


class RefusedSink(StandInSink):
    """A key that has been revoked."""

    requests = 0

    async def send(self, events):
        self.requests += 1
        return [Answer(Outcome.NOT_EXECUTED, 401, "key", "Invalid API Key provided", stop=True)]


class NotingSink(StandInSink):
    """Takes everything, and notes in which order."""

    def __init__(self):
        self.customers = []

    async def send(self, events):
        self.customers += [event.stripe_customer_id for event in events]
        return [Answer(Outcome.OK)]


class MarkThatFailsLater:
    """A mark whose storage goes away after the first batch."""

    def __init__(self, mark):
        self.mark = mark
        self.raised = 0

    def raise_to(self, mark):
        self.raised += 1
        if self.raised > 1:
            raise Unavailable("The high-water mark cannot be written.")
        self.mark.raise_to(mark)
