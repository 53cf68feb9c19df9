"""Whatever gets lost between us and Stripe, an entry counts once and the ledger says what it knows."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from billing_pipeline.errors import IdentityMismatch, LedgerFrozen, StripeRefused, StripeUnavailable
from billing_pipeline.settings import load_settings
from billing_pipeline.stripe_api.meter_events import V1MeterSink
from billing_pipeline.usage.flush import PAST_MAX, SAFE_SEND, UsageFlow, flush
from billing_pipeline.usage.submit import LEASE, submit
from billing_pipeline_tests.builders import billable_event, insert_events
from billing_pipeline_tests.fix_flow import counted_by_stripe
from billing_pipeline_tests.fix_proxy import Mishap

CLOSED = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=3)


def send(flow, *, base=None, later=timedelta(0)):
    """Submit through `base` (the simulator itself by default), `later` than now."""
    settings = flow.settings.model_copy(update={"stripe_api_base": base or flow.settings.stripe_api_base})
    sink = V1MeterSink(load_settings(**settings.model_dump()))
    return submit(
        flow.connection,
        sink,
        clock=lambda: flow.clock() + later,
        concurrency=4,
        safe_send=SAFE_SEND,
        past_max=PAST_MAX,
    )


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
    crashed = CrashingSink()
    with pytest.raises(ExceptionGroup):
        submit(flow.connection, crashed, clock=flow.clock, concurrency=1, safe_send=SAFE_SEND, past_max=PAST_MAX)
    assert (state(flow), attempts(flow)) == ("ambiguous", [None])
    assert send(flow).attempts == 0, "its lease still runs"

    send(flow, later=LEASE + timedelta(seconds=1))

    assert (state(flow), attempts(flow)) == ("accepted", [None, "ok"])
    assert counted_by_stripe(simulator) == {entry: 10}


def test_the_attempt_is_committed_before_the_request_leaves(flow, entry, database_url):
    sink = WitnessSink(database_url)
    submit(flow.connection, sink, clock=flow.clock, concurrency=1, safe_send=SAFE_SEND, past_max=PAST_MAX)

    assert sink.seen == [("ambiguous", 1)]


def test_a_refused_connection_executes_nothing_and_starts_no_clock(flow, entry):
    send(flow, base="http://127.0.0.1:9")

    assert (state(flow), attempts(flow)) == ("pending", ["not_executed"])
    first_attempt_at = flow.connection.execute("SELECT first_attempt_at FROM ledger_entries").fetchone()[0]
    assert first_attempt_at is None


def test_nothing_is_sent_after_stripe_may_have_forgotten_the_identifier(flow, entry, simulator, proxy):
    proxy.mishaps = [Mishap.LOSE_ANSWER]
    send(flow, base=proxy.url)

    report = send(flow, later=SAFE_SEND + timedelta(seconds=1))

    assert report.attempts == 0
    assert state(flow) == "ambiguous"


def test_an_entry_stripe_refuses_is_owed_and_not_sent_again(flow, entry, simulator):
    flow.stripe.v1.customers.delete(entry[0])

    assert send(flow).rejected == 1

    assert state(flow) == "rejected"
    assert flow.cut().entries == 0, "a refused amount waits for a person, or it would be refused for ever"
    assert send(flow, later=timedelta(hours=1)).attempts == 0
    message = flow.connection.execute("SELECT error_message FROM attempts").fetchone()[0]
    assert "No such customer" in message


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
    settings = load_settings(**flow.settings.model_dump() | {"stripe_secret_key": "sk_live_0123456789abcdef"})

    with pytest.raises(StripeRefused) as refusal:
        submit(
            flow.connection,
            V1MeterSink(settings),
            clock=flow.clock,
            concurrency=1,
            safe_send=SAFE_SEND,
            past_max=PAST_MAX,
        )

    assert "0123456789" not in str(refusal.value)
    assert (state(flow), attempts(flow)) == ("pending", ["not_executed"])


def test_a_ledger_sends_to_no_other_account(flow, entry, settings):
    flow.connection.execute("UPDATE ledger_identity SET stripe_account = 'acct_other'")

    with pytest.raises(IdentityMismatch, match="acct_other"):
        flush(flow)


def test_stripe_down_changes_nothing_and_says_where(flow, entry):
    unreachable = load_settings(**flow.settings.model_dump() | {"stripe_api_base": "http://127.0.0.1:9"})

    with pytest.raises(StripeUnavailable, match=r"does not answer at http://127\.0\.0\.1:9"):
        UsageFlow(flow.connection, "", unreachable).submit()

    assert (state(flow), attempts(flow)) == ("pending", [])


class CrashingSink:
    """A worker that dies on its way to Stripe."""

    channel = "v1"

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        return None

    async def send(self, event):
        raise SystemError("killed")


class WitnessSink(CrashingSink):
    """Looks from outside, over a connection of its own, at what is committed when the request would leave."""

    def __init__(self, database_url):
        self.database_url = database_url
        self.seen = []

    async def send(self, event):
        from billing_pipeline.database.connection import connect
        from billing_pipeline.domain.entries import Outcome
        from billing_pipeline.stripe_api.meter_events import Answer

        with connect(self.database_url) as outside:
            self.seen += outside.execute(
                "SELECT state::text, count(*) FROM ledger_entries JOIN attempts USING (entry_id) "
                "WHERE identifier = %s GROUP BY state",
                (event.identifier,),
            ).fetchall()
        return Answer(Outcome.OK)
