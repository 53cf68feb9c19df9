"""Stored events are handled once each, whoever dies, and what fails waits without holding up the rest."""

import logging
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from billing_pipeline.domain.dispatching import pause_after
from billing_pipeline.errors import StripeUnavailable
from billing_pipeline.webhooks.claims import claim_due
from billing_pipeline.webhooks.dispatch import Dispatcher, DispatchReport
from billing_pipeline_tests.builders import map_customer
from billing_pipeline_tests.fix_simulator import SimulatorClock
from billing_pipeline_tests.webhooks.events import event, invoice, store, subscription

pytestmark = pytest.mark.slow
NOW = datetime(2026, 9, 22, tzinfo=UTC)


@pytest.fixture
def clock():
    return SimulatorClock(NOW)


@pytest.fixture
def dispatcher(connection, clock):
    return Dispatcher(connection, clock)


def rows(connection, statement, *params):
    return connection.execute(statement, params).fetchall()


def outcomes(connection):
    return dict(rows(connection, "SELECT stripe_event_id, processing_outcome FROM stripe_events"))


def test_an_event_changes_its_object_and_the_gate_in_one_step(connection, dispatcher):
    created = event("customer.subscription.created", subscription())
    store(connection, [created], now=NOW)

    assert dispatcher.run_once() == DispatchReport(processed=1)

    assert rows(connection, "SELECT status, is_active, plan, billing_period, source FROM subscriptions") == [
        ("active", True, "starter", "monthly", created["id"])
    ]
    assert rows(connection, "SELECT organization_id, feature, active, reason FROM entitlements") == [
        ("acme", "saas", True, "subscription")
    ]
    assert rows(connection, "SELECT processing_outcome, processed_at, attempts FROM stripe_events") == [
        ("processed", NOW, 1)
    ]
    assert rows(connection, "SELECT count(*) FROM event_dispatches") == [(0,)]


def test_what_an_invoice_bills_of_a_meter_is_kept_with_where_it_comes_from(connection, dispatcher, clock):
    billed = (
        "SELECT stripe_invoice_id, invoice_line_id, subscription_item_id, price_id, meter_id, quantity, amount, "
        "invoice_status, source FROM subscription_usage"
    )
    metered = {
        "id": "si_2",
        "object": "subscription_item",
        "price": {"id": "price_2", "recurring": {"interval": "month", "usage_type": "metered", "meter": "mtr_1"}},
    }
    items = {"object": "list", "data": [metered], "has_more": False}
    drafted = event("invoice.created", invoice())
    store(connection, [event("customer.subscription.created", subscription(items=items)), drafted], now=NOW)
    dispatcher.run_once()
    assert rows(connection, billed) == [
        ("in_1", "il_1", "si_2", "price_2", "mtr_1", 1_200, 4_800, "draft", drafted["id"])
    ]

    clock.advance(hours=1)
    line = invoice()["lines"]["data"][0] | {"quantity": 1_500, "quantity_decimal": "1500", "amount": 6_000}
    lines = {"object": "list", "data": [line], "has_more": False}
    finalized = event("invoice.finalized", invoice(status="open", lines=lines), at=3_600)
    store(connection, [finalized], now=clock())
    dispatcher.run_once()
    assert rows(connection, billed) == [
        ("in_1", "il_1", "si_2", "price_2", "mtr_1", 1_500, 6_000, "open", finalized["id"])
    ]


def test_a_deleted_subscription_closes_the_gate(connection, dispatcher, clock):
    store(connection, [event("customer.subscription.created", subscription())], now=NOW)
    dispatcher.run_once()
    clock.advance(hours=1)
    gone = event("customer.subscription.deleted", subscription(status="canceled"), at=60)
    store(connection, [gone], now=clock())
    dispatcher.run_once()

    assert rows(connection, "SELECT status, is_active FROM subscriptions") == [("canceled", False)]
    assert rows(connection, "SELECT active, changed_at FROM entitlements") == [(False, NOW + timedelta(hours=1))]


def test_what_is_nothing_of_ours_is_kept_and_ignored(connection, dispatcher, caplog):
    caplog.set_level(logging.INFO)
    charge = event("charge.succeeded", {"id": "ch_1", "object": "charge"})
    upcoming = event("invoice.upcoming", invoice(id=None))
    store(connection, [charge, upcoming], now=NOW)

    assert dispatcher.run_once() == DispatchReport(ignored=2)
    assert rows(connection, "SELECT count(*) FROM invoices") == [(0,)]
    assert set(outcomes(connection).values()) == {"ignored"}
    assert caplog.text.count("Stripe webhook event ignored") == 2


def test_an_unreadable_event_fails_alone(connection, dispatcher):
    broken = event("customer.subscription.updated", subscription(id="sub_2", status=7))
    store(connection, [broken, event("customer.subscription.created", subscription())], now=NOW)

    assert dispatcher.run_once() == DispatchReport(processed=1, failed=1)
    failed = rows(connection, "SELECT stripe_event_id, error_class, processing_error FROM failed_stripe_events")
    assert [(failed[0][0], failed[0][1])] == [(broken["id"], "unreadable")]
    assert "status" in failed[0][2]


def test_an_event_that_the_database_refuses_fails_alone(connection, dispatcher):
    broken = event("customer.subscription.created", subscription(id="sub_2", created=-62_000_000_000))
    connection.execute("ALTER TABLE subscriptions ADD CHECK (created_at > '2000-01-01')")
    others = [event("customer.subscription.created", subscription(id=f"sub_{n}")) for n in range(3, 6)]
    store(connection, [broken, *others], now=NOW)

    assert dispatcher.run_once() == DispatchReport(processed=3, failed=1)
    assert rows(connection, "SELECT error_class FROM failed_stripe_events") == [("database",)]


def test_a_failed_event_is_tried_again_with_longer_pauses_and_then_parked(connection, dispatcher, clock):
    store(connection, [event("customer.subscription.updated", subscription(status=7))], now=NOW)
    pauses = []
    while not dispatcher.run_once().parked:
        due = rows(connection, "SELECT due_at FROM event_dispatches")[0][0]
        pauses.append((due - clock()).total_seconds())
        clock.advance(seconds=pauses[-1] - 1)
        assert dispatcher.run_once().handled == 0
        clock.advance(seconds=1)

    assert pauses == [30, 60, 120, 240, 480, 600, 600, 600, 600]
    assert rows(connection, "SELECT processing_outcome, attempts FROM stripe_events") == [("parked", 10)]
    clock.advance(days=1)
    assert dispatcher.run_once().handled == 0


def test_the_pauses_are_the_documented_ones():
    assert [pause_after(n).total_seconds() for n in (1, 2, 5, 6, 1_000)] == [30, 60, 480, 600, 600]


def test_a_subscription_of_nobody_is_kept_and_heals_when_its_customer_is_mapped(connection, dispatcher, clock):
    store(connection, [event("customer.subscription.created", subscription(metadata={}))], now=NOW)

    assert dispatcher.run_once() == DispatchReport(failed=1)
    assert rows(connection, "SELECT stripe_subscription_id FROM subscriptions") == [("sub_1",)]
    assert rows(connection, "SELECT error_class FROM failed_stripe_events") == [("unknown_account",)]

    map_customer(connection, "acme", "cus_1")
    clock.advance(seconds=30)
    assert dispatcher.run_once() == DispatchReport(processed=1)
    assert rows(connection, "SELECT organization_id, active FROM entitlements") == [("acme", True)]


@pytest.mark.parametrize("during", ["(,2026-01-01)", "[2030-01-01,)"], ids=["ended", "not begun"])
def test_a_mapping_of_another_time_decides_nothing(connection, dispatcher, during):
    map_customer(connection, "other", "cus_1", during)
    store(connection, [event("customer.subscription.created", subscription())], now=NOW)
    dispatcher.run_once()

    assert rows(connection, "SELECT organization_id FROM entitlements WHERE active") == [("acme",)]


def test_a_mapping_by_a_person_comes_before_what_an_object_says(connection, dispatcher):
    map_customer(connection, "real", "cus_1")
    store(connection, [event("customer.subscription.created", subscription())], now=NOW)
    dispatcher.run_once()

    assert rows(connection, "SELECT organization_id FROM entitlements") == [("real",)]


def test_a_claim_of_a_dead_worker_is_taken_back_after_the_sla(connection, dispatcher, clock):
    store(connection, [event("customer.subscription.created", subscription())], now=NOW)
    assert len(claim_due(connection, limit=10, sla=dispatcher.sla, now=NOW)) == 1

    clock.advance(seconds=300)
    assert dispatcher.run_once().handled == 0
    clock.advance(seconds=1)
    assert dispatcher.run_once() == DispatchReport(processed=1)
    assert rows(connection, "SELECT attempts FROM stripe_events") == [(2,)]


def test_a_worker_that_slept_past_its_claim_writes_nothing(connection, dispatcher, clock):
    store(connection, [event("customer.subscription.created", subscription())], now=NOW)
    stale = claim_due(connection, limit=10, sla=dispatcher.sla, now=NOW)
    clock.advance(seconds=301)
    assert len(claim_due(connection, limit=10, sla=dispatcher.sla, now=clock())) == 1

    assert dispatcher.handle(stale) == DispatchReport()
    assert rows(connection, "SELECT processing_outcome FROM stripe_events") == [("received",)]
    assert rows(connection, "SELECT count(*) FROM subscriptions") == [(0,)]


def test_an_event_that_ends_its_workers_is_parked_and_takes_no_other_with_it(connection, dispatcher, clock):
    deadly = event("customer.subscription.created", subscription(id="sub_2"))
    store(connection, [deadly, event("customer.subscription.created", subscription())], now=NOW)
    for _ in range(40):
        # The process dies of one of them, whatever else it has claimed.
        claims = claim_due(connection, limit=10, sla=dispatcher.sla, now=clock())
        if deadly["id"] not in [claim.stripe_event_id for claim in claims]:
            dispatcher.handle(claims)
        clock.advance(seconds=301)

    assert outcomes(connection) == {
        deadly["id"]: "parked",
        **{id: "processed" for id in outcomes(connection) if id != deadly["id"]},
    }
    assert rows(connection, "SELECT error_class, attempts FROM failed_stripe_events") == [("abandoned", 10)]


def test_a_failure_that_nobody_foresaw_fails_one_event_and_quotes_nothing(connection, dispatcher, monkeypatch):
    from billing_pipeline.webhooks import dispatch

    def understood(event_type, payload):
        if payload["data"]["object"]["id"] == "sub_2":
            raise KeyError("whsec_in_a_payload")
        return original(event_type, payload)

    original = dispatch.understood
    monkeypatch.setattr(dispatch, "understood", understood)
    others = [event("customer.subscription.created", subscription(id=f"sub_{number}")) for number in (1, 2, 3)]
    store(connection, others, now=NOW)

    assert dispatcher.run_once() == DispatchReport(processed=2, failed=1)
    failed = rows(connection, "SELECT error_class, processing_error FROM failed_stripe_events")
    assert failed[0][0] == "unexpected"
    assert "KeyError" in failed[0][1]
    assert "whsec" not in failed[0][1]


def test_a_write_that_nobody_foresaw_to_fail_fails_one_event(connection, clock):
    def fetch(_event_id):
        def write(_connection, _now):
            raise AttributeError("gone")

        return write

    store(connection, [THIN, event("customer.subscription.created", subscription())], now=NOW)
    dispatcher = Dispatcher(connection, clock, thin_handlers={THIN["type"]: fetch})

    assert dispatcher.run_once() == DispatchReport(processed=1, failed=1)
    assert rows(connection, "SELECT error_class FROM failed_stripe_events") == [("unexpected",)]


def test_a_stripe_that_hangs_is_asked_once_a_batch(connection, clock):
    asked = []

    def fetch(event_id):
        asked.append(event_id)
        clock.advance(seconds=20)
        raise StripeUnavailable("Stripe does not answer.")

    store(connection, [{**THIN, "id": f"evt_thin_{number}"} for number in range(20)], now=NOW)
    store(connection, [event("customer.subscription.created", subscription())], now=NOW)
    dispatcher = Dispatcher(connection, clock, thin_handlers={THIN["type"]: fetch})

    assert dispatcher.run_once() == DispatchReport(processed=1, failed=20)
    assert len(asked) == 1


def test_a_stripe_that_is_slow_is_asked_no_longer_than_the_claim_can_wait(connection, clock):
    """Whatever the next answer takes, the batch must be written before another worker may take it."""
    asked = []

    def fetch(event_id):
        asked.append(event_id)
        clock.advance(seconds=9)
        return lambda _connection, _now: None

    store(connection, [{**THIN, "id": f"evt_thin_{number}"} for number in range(20)], now=NOW)
    times = {"sla": timedelta(seconds=60), "request_timeout": timedelta(seconds=10)}
    dispatcher = Dispatcher(connection, clock, **times, thin_handlers={THIN["type"]: fetch})

    # 60 s less two timeouts and five seconds to write are 35 s: the fourth question begins after 27 s, none after 36 s.
    assert dispatcher.run_once() == DispatchReport(processed=4, failed=16)
    assert len(asked) == 4
    assert rows(connection, "SELECT DISTINCT error_class FROM failed_stripe_events") == [("stripe_unavailable",)]


def test_events_of_an_object_are_not_claimed_by_two(connection, dispatcher):
    store(connection, [event("customer.subscription.created", subscription())], now=NOW)
    claim_due(connection, limit=10, sla=dispatcher.sla, now=NOW)
    later = event("customer.subscription.updated", subscription(status="past_due"), at=5)
    other = event("customer.subscription.created", subscription(id="sub_2"))
    store(connection, [later, other], now=NOW)

    assert dispatcher.run_once() == DispatchReport(processed=1)
    assert outcomes(connection)[other["id"]] == "processed"
    assert outcomes(connection)[later["id"]] == "received"


def test_an_event_handled_meanwhile_is_skipped(connection, dispatcher, caplog):
    caplog.set_level(logging.INFO)
    created = event("customer.subscription.created", subscription())
    store(connection, [created], now=NOW)
    dispatcher.run_once()
    connection.execute(
        "INSERT INTO event_dispatches (stripe_event_id, object_key, created_at, due_at) VALUES (%s, 'sub_1', %s, %s)",
        (created["id"], NOW, NOW),
    )
    dispatcher.run_once()

    assert rows(connection, "SELECT attempts FROM stripe_events") == [(1,)]
    assert rows(connection, "SELECT count(*) FROM event_dispatches") == [(0,)]
    assert [record.getMessage() for record in caplog.records if "Stripe webhook" in record.getMessage()] == [
        "Stripe webhook processing started",
        "Stripe webhook processing completed",
        "Stripe webhook processing started",
        "Stripe webhook processing skipped (already processed)",
    ]


def test_draining_goes_on_behind_a_batch_of_which_all_was_handled_already(connection, dispatcher):
    done = event("customer.subscription.created", subscription())
    store(connection, [done], now=NOW)
    dispatcher.run_once()
    connection.execute(
        "INSERT INTO event_dispatches (stripe_event_id, object_key, created_at, due_at) VALUES (%s, 'sub_1', %s, %s)",
        (done["id"], NOW, NOW - timedelta(hours=1)),
    )
    store(connection, [event("customer.subscription.created", subscription(id="sub_2"))], now=NOW)

    assert dispatcher.drain(events_max=10, batch=1) == DispatchReport(processed=1)
    assert rows(connection, "SELECT count(*) FROM event_dispatches") == [(0,)]


def test_nothing_is_half_done_when_the_worker_dies_before_the_commit(connection, dispatcher, monkeypatch):
    store(connection, [event("customer.subscription.created", subscription())], now=NOW)

    def dies(*_args, **_kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("billing_pipeline.webhooks.dispatch.finish", dies)
    with pytest.raises(KeyboardInterrupt):
        dispatcher.run_once()

    assert rows(connection, "SELECT count(*) FROM subscriptions") == [(0,)]
    assert rows(connection, "SELECT processing_outcome FROM stripe_events") == [("received",)]


def test_a_database_that_fails_leaves_the_claim_to_lapse(connection, dispatcher, monkeypatch):
    store(connection, [event("customer.subscription.created", subscription())], now=NOW)

    def fails(*_args, **_kwargs):
        raise psycopg.OperationalError("server closed the connection unexpectedly")

    monkeypatch.setattr("billing_pipeline.webhooks.dispatch.finish", fails)
    with pytest.raises(psycopg.OperationalError):
        dispatcher.run_once()

    assert rows(connection, "SELECT processing_outcome, attempts FROM stripe_events") == [("received", 0)]


THIN = {
    "id": "evt_thin",
    "object": "v2.core.event",
    "created": "2026-09-21T13:00:00.123Z",
    "livemode": False,
    "type": "v1.billing.meter.error_report_triggered",
    "related_object": {"id": "mtr_1", "type": "billing.meter", "url": "/v1/billing/meters/mtr_1"},
}


def test_a_thin_event_is_fetched_before_and_written_with_its_completion(connection, clock):
    asked, written = [], []

    def fetch(event_id):
        asked.append((event_id, connection.info.transaction_status.name))
        return lambda _connection, now: written.append((now, connection.info.transaction_status.name))

    store(connection, [THIN], now=NOW)

    assert Dispatcher(connection, clock, thin_handlers={THIN["type"]: fetch}).run_once() == DispatchReport(processed=1)
    assert asked == [("evt_thin", "IDLE")]
    assert written == [(NOW, "INTRANS")]


def test_a_thin_event_waits_while_stripe_does_not_answer(connection, clock):
    def fetch(_event_id):
        raise StripeUnavailable("Stripe does not answer; nothing was changed.")

    store(connection, [THIN], now=NOW)

    assert Dispatcher(connection, clock, thin_handlers={THIN["type"]: fetch}).run_once() == DispatchReport(failed=1)
    assert rows(connection, "SELECT error_class FROM failed_stripe_events") == [("stripe_unavailable",)]


def test_a_thin_event_of_an_object_of_ours_asks_stripe_for_it(connection, dispatcher):
    paid = {**THIN, "type": "v1.invoice.paid", "related_object": {"id": "in_1", "type": "invoice", "url": "/v1/..."}}
    store(connection, [paid], now=NOW)

    assert dispatcher.run_once() == DispatchReport(processed=1)
    assert rows(connection, "SELECT object_id, object_kind, reason FROM object_refetches") == [
        ("in_1", "invoice", "thin")
    ]


def test_those_who_cache_features_are_told_after_the_commit(connection, clock, database_url):
    told = []

    def on_changed(organizations):
        with psycopg.connect(database_url, options="-csearch_path=billing_pipeline") as other:
            seen = other.execute("SELECT active FROM entitlements").fetchall()
        told.append((list(organizations), seen))
        raise ConnectionError("the cache is down")

    store(connection, [event("customer.subscription.created", subscription())], now=NOW)

    assert Dispatcher(connection, clock, on_changed=on_changed).run_once() == DispatchReport(processed=1)
    assert told == [(["acme"], [(True,)])]


def summary(*features, has_more=False):
    members = [{"lookup_key": feature} for feature in features]
    return {
        "object": "entitlements.active_entitlement_summary",
        "customer": "cus_1",
        "entitlements": {"data": members, "has_more": has_more},
    }


def test_a_summary_cut_short_takes_no_feature_away(connection, dispatcher):
    kind = "entitlements.active_entitlement_summary.updated"
    store(connection, [event("customer.subscription.created", subscription())], now=NOW)
    store(connection, [event(kind, summary("a", "b", "c"))], now=NOW)
    dispatcher.drain(events_max=10)
    store(connection, [event(kind, summary("a", "d", has_more=True), at=5)], now=NOW)
    dispatcher.run_once()

    active = "SELECT feature FROM entitlements WHERE active AND feature <> 'saas' ORDER BY 1"
    assert rows(connection, active) == [("a",), ("b",), ("c",), ("d",)]
    assert rows(connection, "SELECT reason FROM object_refetches") == [("incomplete",)]

    store(connection, [event(kind, summary("a", "d"), at=9)], now=NOW)
    dispatcher.run_once()
    assert rows(connection, active) == [("a",), ("d",)]
