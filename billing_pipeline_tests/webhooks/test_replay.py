"""A replay begins an event anew and reports how it ended; a dry run shows the same and writes nothing."""

import logging
from datetime import UTC, datetime, timedelta

import pytest

from billing_pipeline.domain.outcomes import HandlerName, Outcome
from billing_pipeline.errors import Refused, StripeRefused, UserError
from billing_pipeline.webhooks.claims import claim_due
from billing_pipeline.webhooks.dispatch import Dispatcher, DispatchReport
from billing_pipeline.webhooks.events_list import Choice
from billing_pipeline.webhooks.replay import choose_events, named_events, replay, require_payloads, take
from billing_pipeline.webhooks.replay_dry_run import Change, dry_run
from billing_pipeline_tests.builders import map_customer
from billing_pipeline_tests.fix_simulator import SimulatorClock
from billing_pipeline_tests.webhooks.events import event, invoice, store, subscription

pytestmark = pytest.mark.slow
NOW = datetime(2026, 9, 22, tzinfo=UTC)
FAILED = Choice(outcomes=[Outcome.FAILED, Outcome.PARKED])


@pytest.fixture
def clock():
    return SimulatorClock(NOW)


@pytest.fixture
def dispatcher(connection, clock):
    return Dispatcher(connection, clock)


@pytest.fixture
def nobodys(connection, dispatcher):
    """The id of an event that has failed, because nobody has the customer."""
    store(connection, [event("customer.subscription.created", subscription(metadata={}), id="evt_nobodys")], now=NOW)
    assert dispatcher.run_once() == DispatchReport(failed=1)
    return "evt_nobodys"


def tables(connection):
    """Every row of every table of ours, as bytes would differ."""
    names = connection.execute(
        "SELECT table_name FROM information_schema.tables WHERE table_schema = 'billing_pipeline'"
        " AND table_type = 'BASE TABLE' ORDER BY 1"
    ).fetchall()
    return {
        name: connection.execute(f"SELECT t::text, t.xmin::text FROM {name} t ORDER BY 1").fetchall()
        for (name,) in names
    }


def ends_of_dry_run(dispatcher, *event_ids):
    """How a dry run says that each event would end, by id."""
    found = dry_run(dispatcher, named_events(dispatcher.connection, event_ids))
    return {one.stripe_event_id: one for one in found.events}


def test_a_failed_event_whose_cause_is_mended_becomes_processed(connection, dispatcher, nobodys):
    map_customer(connection, "acme", "cus_1")

    [ended] = replay(dispatcher, named_events(connection, [nobodys]))

    assert (ended.processing_outcome, ended.error_class, ended.attempts, ended.ended_well) == (
        "processed",
        None,
        1,
        True,
    )
    assert connection.execute("SELECT organization_id, active FROM entitlements").fetchall() == [("acme", True)]
    assert connection.execute("SELECT count(*) FROM event_dispatches").fetchone() == (0,)


def test_a_parked_event_begins_anew_with_all_its_attempts(connection, clock, nobodys):
    impatient = Dispatcher(connection, clock, attempts_max=1)
    clock.advance(minutes=10)
    assert impatient.run_once() == DispatchReport(parked=1)
    clock.advance(days=1)

    [ended] = replay(Dispatcher(connection, clock), choose_events(connection, FAILED, limit=5))

    assert (ended.processing_outcome, ended.error_class, ended.attempts) == ("failed", "unknown_account", 1)
    assert ended.due_at == clock() + timedelta(seconds=30)
    assert not ended.ended_well


def test_a_processed_event_may_be_replayed_and_changes_nothing(connection, dispatcher, clock):
    store(connection, [event("customer.subscription.created", subscription(), id="evt_1")], now=NOW)
    dispatcher.run_once()
    before = {name: rows for name, rows in tables(connection).items() if name not in ("stripe_events",)}
    clock.advance(hours=1)

    [ended] = replay(dispatcher, named_events(connection, ["evt_1"]))

    after = {name: rows for name, rows in tables(connection).items() if name not in ("stripe_events",)}
    assert ended.ended_well
    assert after == before


def test_a_worker_that_has_the_event_records_nothing_after_a_replay_took_it(connection, dispatcher):
    store(connection, [event("customer.subscription.created", subscription(), id="evt_1")], now=NOW)
    stale = claim_due(connection, limit=10, sla=dispatcher.sla, now=NOW)

    claims = take(connection, ["evt_1"], now=NOW)

    assert dispatcher.handle(stale) == DispatchReport()
    assert dispatcher.handle(claims) == DispatchReport(processed=1)


def test_a_choice_is_replayed_the_oldest_first_and_no_more_than_asked(connection, dispatcher):
    broken = [
        event("customer.subscription.updated", subscription(id=f"sub_{n}", status=7), at=-n, id=f"evt_{n}")
        for n in range(4)
    ]
    store(connection, [*broken, event("invoice.created", invoice(status="odd"), at=-9, id="evt_inv")], now=NOW)
    dispatcher.run_once()

    chosen = choose_events(connection, FAILED, limit=2)
    assert [one.stripe_event_id for one in chosen] == ["evt_inv", "evt_3"]
    of_handler = Choice(outcomes=[Outcome.FAILED], handler=HandlerName.SUBSCRIPTION)
    assert [one.stripe_event_id for one in choose_events(connection, of_handler, limit=2)] == ["evt_3", "evt_2"]
    assert [one.stripe_event_id for one in replay(dispatcher, chosen)] == ["evt_inv", "evt_3"]


def test_a_replay_writes_the_line_that_people_look_for(connection, dispatcher, caplog):
    caplog.set_level(logging.INFO)
    store(connection, [event("customer.subscription.created", subscription(), id="evt_1")], now=NOW)
    list(replay(dispatcher, named_events(connection, ["evt_1"])))

    assert "Webhook processed: event_id=evt_1" in [record.getMessage() for record in caplog.records]


def test_unknown_ids_are_named_and_events_without_payload_are_refused(connection, nobodys):
    with pytest.raises(UserError, match=r"Not in the inbox: evt_x, evt_y\. Nothing was done\."):
        named_events(connection, ["evt_x", nobodys, "evt_y"])
    connection.execute("UPDATE stripe_events SET payload = NULL")
    with pytest.raises(Refused, match="no longer kept of evt_nobodys"):
        require_payloads(named_events(connection, [nobodys]))


def test_a_dry_run_shows_every_change_and_writes_nothing(connection, dispatcher, clock, nobodys):
    store(connection, [event("invoice.paid", invoice(status="paid"), at=9, id="evt_paid")], now=NOW)
    store(connection, [event("invoice.created", invoice(), id="evt_draft")], now=NOW)
    dispatcher.run_once(limit=1)
    map_customer(connection, "acme", "cus_1")
    clock.advance(hours=1)
    before = tables(connection)

    found = dry_run(dispatcher, named_events(connection, [nobodys, "evt_paid"]))

    assert tables(connection) == before
    assert {one.stripe_event_id: one.processing_outcome for one in found.events} == {
        nobodys: "processed",
        "evt_paid": "processed",
    }
    assert Change("customer_organizations", "cus_1", "organization_id", None, "acme") in found.changes
    assert Change("entitlements", "acme saas", "active", None, True) in found.changes
    assert any(change.table == "invoices" and change.column == "status" for change in found.changes)
    # And then it does exactly that.
    list(replay(dispatcher, named_events(connection, [nobodys, "evt_paid"])))
    assert connection.execute("SELECT organization_id, active FROM entitlements").fetchall() == [("acme", True)]


def test_a_dry_run_shows_before_and_after_of_a_row_that_is_there(connection, dispatcher):
    store(connection, [event("customer.subscription.created", subscription(), id="evt_1")], now=NOW)
    dispatcher.run_once()
    late = event("customer.subscription.updated", subscription(status="canceled"), at=60, id="evt_2")
    store(connection, [late], now=NOW)

    changes = {
        (change.table, change.column): (change.before, change.after)
        for change in dry_run(dispatcher, named_events(connection, ["evt_2"])).changes
    }

    assert changes["subscriptions", "status"] == ("active", "canceled")
    assert changes["subscriptions", "source"] == ("evt_1", "evt_2")
    assert changes["entitlements", "active"] == (True, False)
    assert ("subscriptions", "stripe_customer_id") not in changes


def test_a_dry_run_of_an_event_that_the_database_refuses_says_so_and_goes_on(connection, dispatcher):
    connection.execute("ALTER TABLE subscriptions ADD CHECK (created_at > '2000-01-01')")
    refused = event("customer.subscription.created", subscription(id="sub_2", created=-62_000_000_000), id="evt_bad")
    store(connection, [refused, event("customer.subscription.created", subscription(), id="evt_good")], now=NOW)
    before = tables(connection)

    found = {
        one.stripe_event_id: one
        for one in dry_run(dispatcher, named_events(connection, ["evt_bad", "evt_good"])).events
    }

    assert (found["evt_bad"].processing_outcome, found["evt_bad"].error_class) == ("failed", "database")
    assert "CheckViolation" in found["evt_bad"].processing_error
    assert found["evt_good"].processing_outcome == "processed"
    assert tables(connection) == before


def test_a_dry_run_of_what_cannot_be_read_and_of_what_only_names_its_object(connection, dispatcher):
    names = {**THIN, "type": "v1.invoice.paid", "related_object": {"id": "in_1", "type": "invoice"}}
    broken = event("customer.subscription.updated", subscription(status=7), id="evt_broken")
    store(connection, [names, broken], now=NOW)
    before = tables(connection)

    found = dry_run(dispatcher, named_events(connection, ["evt_thin", "evt_broken"]))

    assert {one.stripe_event_id: one.error_class for one in found.events} == {
        "evt_thin": None,
        "evt_broken": "unreadable",
    }
    assert {change.table for change in found.changes} == {"object_refetches"}
    assert tables(connection) == before


def test_a_dry_run_shows_payloads_without_the_person(connection, dispatcher):
    about = {"id": "cus_1", "object": "customer", "email": "ada@example.com"}
    store(connection, [event("customer.created", about, id="evt_ada")], now=NOW)

    payload = dry_run(dispatcher, named_events(connection, ["evt_ada"])).payloads["evt_ada"]

    assert payload["data"]["object"]["email"] == "[redacted]"


THIN = {
    "id": "evt_thin",
    "object": "v2.core.event",
    "created": "2026-09-21T13:00:00.123Z",
    "livemode": False,
    "type": "v1.billing.meter.error_report_triggered",
    "related_object": {"id": "mtr_1", "type": "billing.meter"},
}


@pytest.mark.parametrize("refuses", [False, True])
def test_a_dry_run_asks_stripe_before_its_transaction_and_tells_no_cache(connection, clock, refuses):
    asked, written, told = [], [], []

    def fetch(event_id):
        asked.append((event_id, connection.info.transaction_status.name))
        if refuses:
            raise StripeRefused("Stripe refused.")
        return lambda _connection, now: written.append(now)

    dispatcher = Dispatcher(connection, clock, thin_handlers={THIN["type"]: fetch}, on_changed=told.append)
    store(connection, [THIN, event("customer.subscription.created", subscription(), id="evt_1")], now=NOW)

    found = {
        one.stripe_event_id: one for one in dry_run(dispatcher, named_events(connection, ["evt_thin", "evt_1"])).events
    }

    assert asked == [("evt_thin", "IDLE")]
    assert found["evt_thin"].processing_outcome == ("failed" if refuses else "processed")
    assert found["evt_thin"].error_class == ("stripe" if refuses else None)
    assert bool(written) is not refuses
    assert told == []
