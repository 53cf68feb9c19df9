"""Whatever gets lost between us and Stripe, an entry counts once and the ledger says what it knows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from billing_pipeline.database.connection import connect
from billing_pipeline.domain.entries import Outcome
from billing_pipeline.errors import (
    GateClosed,
    LedgerFrozen,
    StripeRefused,
    StripeUnavailable,
    Unavailable,
)
from billing_pipeline.settings import load_settings
from billing_pipeline.stripe_api.meter_events import Answer, V1MeterSink
from billing_pipeline.usage.flush import UsageFlow
from billing_pipeline.usage.gate import require_clock
from billing_pipeline.usage.lease import LeaseLost
from billing_pipeline.usage.submit import SubmitContext, submit
from billing_pipeline_tests.builders import billable_event, insert_events
from billing_pipeline_tests.fix_flow import counted_by_stripe
from billing_pipeline_tests.fix_proxy import Mishap

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


@pytest.mark.parametrize(
    ("mishap", "second_answer"),
    [
        (Mishap.LOSE_REQUEST, "ok"),
        (Mishap.LOSE_ANSWER, "duplicate"),
        (Mishap.CUT_ANSWER, "duplicate"),
        (Mishap.FOREIGN_ANSWER, "ok"),
        (Mishap.SERVER_ERROR, "duplicate"),
    ],
)
def test_usage_is_billed_once_when_something_is_lost(flow, entry, simulator, proxy, mishap, second_answer):
    proxy.mishaps = [mishap]
    report = send(flow, base=proxy.url)
    assert (report.unknown, state(flow)) == (1, "ambiguous")

    send(flow, base=proxy.url, later=timedelta(minutes=11))

    assert attempts(flow) == ["unknown", second_answer]
    assert state(flow) == "accepted"
    assert counted_by_stripe(simulator) == {entry: 10}


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


def test_a_refused_connection_executes_nothing_and_starts_no_clock(flow, entry):
    send(flow, base="http://127.0.0.1:9")

    assert (state(flow), attempts(flow)) == ("pending", ["not_executed"])
    first_attempt_at = flow.connection.execute("SELECT first_attempt_at FROM ledger_entries").fetchone()[0]
    assert first_attempt_at is None


def test_nothing_is_sent_after_stripe_may_have_forgotten_the_identifier(flow, entry, simulator, proxy):
    proxy.mishaps = [Mishap.LOSE_ANSWER]
    send(flow, base=proxy.url)

    report = send(flow, later=flow.settings.protocol_times.safe_send + timedelta(seconds=1))

    assert report.attempts == 0
    assert state(flow) == "ambiguous"


def test_an_entry_too_old_for_stripe_is_held_and_not_sent(flow, entry):
    report = send(flow, later=flow.settings.protocol_times.past_max)

    hold_reason = flow.connection.execute("SELECT hold_reason FROM ledger_entries").fetchone()[0]
    assert (report.attempts, hold_reason) == (0, "older_than_stripe_accepts")


def test_an_entry_stripe_refuses_is_owed_and_not_sent_again(flow, entry, simulator):
    flow.stripe.v1.customers.delete(entry[0])

    assert send(flow).rejected == 1

    assert state(flow) == "rejected"
    assert flow.cut().entries == 0, "a refused amount waits for a person, or it would be refused for ever"
    assert send(flow, later=timedelta(minutes=30)).attempts == 0
    message = flow.connection.execute("SELECT error_message FROM attempts").fetchone()[0]
    assert "No such customer" in message


def test_a_refusal_after_an_unknown_attempt_decides_nothing(flow, entry, simulator, proxy):
    proxy.mishaps = [Mishap.LOSE_ANSWER]
    send(flow, base=proxy.url)
    flow.stripe.v1.customers.delete(entry[0])

    send(flow, later=timedelta(minutes=11))

    assert attempts(flow) == ["unknown", "rejected"]
    assert state(flow) == "ambiguous", "the first attempt may have counted, and here it did"
    assert counted_by_stripe(simulator) == {entry: 10}


def test_a_duplicate_of_something_never_sent_freezes_the_ledger(flow, entry, simulator):
    identifier = flow.connection.execute("SELECT identifier FROM ledger_entries").fetchone()[0]
    flow.stripe.v1.billing.meter_events.create(
        {
            "event_name": "prompt_tokens",
            "identifier": identifier,
            "payload": {"stripe_customer_id": entry[0], "value": "1"},
        }
    )

    with pytest.raises(LedgerFrozen, match="never sent"):
        send(flow)

    with pytest.raises(LedgerFrozen, match="Nothing was sent"):
        flow.submit()
    assert state(flow) == "ambiguous"


def test_a_refused_key_stops_sending_and_changes_no_entry(flow, entry, simulator):
    with pytest.raises(StripeRefused) as refusal:
        send(flow, key="sk_live_0123456789abcdef")

    assert "0123456789" not in str(refusal.value)
    assert (state(flow), attempts(flow)) == ("pending", ["not_executed"])


def test_stripe_down_changes_nothing_and_says_where(flow, entry):
    unreachable = load_settings(**flow.settings.model_dump() | {"stripe_api_base": "http://127.0.0.1:9"})

    with pytest.raises(StripeUnavailable, match=r"does not answer at http://127\.0\.0\.1:9"):
        UsageFlow(flow.connection, "", unreachable, holder="test").submit()

    assert (state(flow), attempts(flow)) == ("pending", [])


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


class CrashingSink:
    """A worker that dies on its way to Stripe."""

    channel = "v1"
    batch_size = 1

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        return None

    async def send(self, events):
        raise SystemError("killed")


class WitnessSink(CrashingSink):
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


class SleepySink(CrashingSink):
    """A worker that is paused while its request is under way."""

    slept = False

    async def send(self, events):
        self.slept = True
        return [Answer(Outcome.OK)]
