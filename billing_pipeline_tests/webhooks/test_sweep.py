"""What Stripe never delivered is found in its lists, and what its events never told in its objects."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

import pytest

from billing_pipeline.errors import StripeUnavailable
from billing_pipeline.orchestration.webhook_flow import WebhookFlow
from billing_pipeline.stripe_api import events as stripe_lists
from billing_pipeline.stripe_api.client import make_client
from billing_pipeline.webhooks import reread as reread_module
from billing_pipeline.webhooks.health import Gap, open_gap, unreadable_since
from billing_pipeline.webhooks.rebuild import rebuild
from billing_pipeline.webhooks.sweep import sweep
from billing_pipeline_tests.stripe_simulator.conftest import streaming
from billing_pipeline_tests.webhooks.events import event

pytestmark = pytest.mark.slow


@pytest.fixture
def flow(connection, settings, simulator):
    return WebhookFlow(connection, settings, make_client(settings), simulator.clock, lambda organizations: None)


@pytest.fixture
def stripe(simulator):
    return simulator.client().v1


def customers(stripe, count=1):
    return [stripe.customers.create({"metadata": {"organization_id": f"org_{n}"}}).id for n in range(count)]


def marks(connection):
    return connection.execute("SELECT complete_from, complete_through FROM event_sweeps ORDER BY sweep_id").fetchall()


def inbox(connection):
    return connection.execute("SELECT event_type, origin, raw_body, processing_outcome FROM stripe_events").fetchall()


def test_an_event_that_was_never_delivered_is_found_and_handled(flow, connection, stripe, simulator):
    [customer] = customers(stripe)
    simulator.clock.advance(minutes=2)

    report = flow.sweep()

    assert (report.listed, dict(report.missing), report.unreadable, report.gap_from) == (
        1,
        {"customer.created": 1},
        0,
        None,
    )
    assert inbox(connection) == [("customer.created", "sweep", None, "received")]
    handled, _ = flow.dispatch()
    assert handled.processed == 1
    assert connection.execute("SELECT stripe_customer_id, organization_hint FROM stripe_customers").fetchall() == [
        (customer, "org_0")
    ]
    again = flow.sweep()
    assert (again.listed, again.missing.total()) == (1, 0)
    assert inbox(connection) == [("customer.created", "sweep", None, "processed")]


def test_a_sweep_stays_a_minute_behind_and_the_next_begins_an_hour_before_its_end(flow, connection, stripe, simulator):
    customers(stripe)
    assert flow.sweep().listed == 0
    simulator.clock.advance(hours=3)
    first = flow.sweep()
    assert (first.listed, (first.complete_through - first.complete_from) // timedelta(minutes=1)) == (1, 240)

    simulator.clock.advance(minutes=30)
    second = flow.sweep()

    assert second.complete_from == first.complete_through - timedelta(hours=1)
    assert marks(connection)[-1] == (second.complete_from, second.complete_through)


def test_the_first_sweep_reads_all_thirty_days_in_pages(flow, connection, stripe, simulator, monkeypatch):
    monkeypatch.setattr(stripe_lists, "PAGE_SIZE", 2)
    customers(stripe, 5)
    simulator.clock.advance(days=29)
    customers(stripe, 4)
    simulator.clock.advance(minutes=2)
    told = []

    report = flow.sweep(progress=lambda done: told.append(done.listed))

    assert (report.listed, report.missing.total()) == (9, 9)
    assert told == [2, 4, 5, 7, 9]
    assert report.complete_through - report.complete_from == timedelta(days=30) - timedelta(minutes=1)
    assert len(marks(connection)) == 30
    assert connection.execute("SELECT sum(events_listed), sum(events_missing) FROM event_sweeps").fetchone() == (9, 9)


class Lists:
    """Events by their second, and where Stripe stops answering."""

    def __init__(self, *events, dies_after=None):
        self.events, self.dies_after, self.pages = events, dies_after, 0

    def __call__(self, *, since, until):
        for one in self.events:
            if since.timestamp() <= one["created"] < until.timestamp():
                if self.pages == self.dies_after:
                    raise StripeUnavailable("Stripe does not answer.")
                self.pages += 1
                yield [one]


def test_a_sweep_that_dies_moves_no_mark(connection):
    now = datetime.fromisoformat("2026-09-22T12:00:00+00:00")
    told = [
        event("customer.created", {"id": f"cus_{n}", "object": "customer"}, created=int(now.timestamp()) - 3_600 * n)
        for n in (60, 30, 29, 28)
    ]
    known = {"stripe_now": now, "kept": timedelta(days=3), "stuck_after": timedelta(minutes=5), "clock": lambda: now}
    start = now - timedelta(days=3)

    with pytest.raises(StripeUnavailable):
        sweep(connection, [Lists(*told, dies_after=3)], **known)

    # The first day is whole; of the second two events are stored, and it is not said to be whole.
    assert marks(connection) == [(start, start + timedelta(days=1))]
    assert connection.execute("SELECT count(*) FROM stripe_events").fetchone() == (3,)
    report = sweep(connection, [Lists(*told)], **known)
    assert (report.complete_from, report.missing.total()) == (start + timedelta(hours=23), 1)
    assert max(through for _, through in marks(connection)) == now - timedelta(minutes=1)


def test_a_gap_that_stripe_lists_no_more_is_told(connection, flow, stripe, simulator):
    flow.sweep()
    last = marks(connection)[-1][1]
    simulator.clock.advance(days=40)

    report = flow.sweep()

    assert report.gap_from == last
    assert report.complete_from > last + timedelta(days=9)
    assert open_gap(connection) == Gap(last, report.complete_from)


def test_a_gap_stays_known_until_all_objects_were_read(connection, flow, stripe, simulator, monkeypatch):
    customers(stripe)
    flow.sweep()
    last = marks(connection)[-1][1]
    simulator.clock.advance(days=40)
    flow.sweep()
    simulator.clock.advance(hours=1)

    assert flow.sweep().gap_from == last
    with monkeypatch.context() as dying:
        dying.setattr(reread_module, "_summaries", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            flow.reread()
    assert open_gap(connection) is not None
    with monkeypatch.context() as blind:
        blind.setattr(reread_module, "_readable", lambda kind, page: ([], len(page)))
        assert flow.reread().unreadable > 0
    assert open_gap(connection) is not None
    flow.reread()

    assert open_gap(connection) is None
    assert flow.sweep().gap_from is None


@dataclass
class Asked:
    """A list without an event that notes what it was asked for."""

    spans: list = field(default_factory=list)

    def __call__(self, *, since, until):
        self.spans.append((since, until))
        return []

    def covers(self, start, end):
        for since, until in sorted(self.spans):
            start = max(start, until) if since <= start else start
        return start >= end


def swept(connection, lists, now, **choice):
    known = {"kept": timedelta(days=30), "stuck_after": timedelta(minutes=5), "clock": lambda: now}
    return sweep(connection, [lists], stripe_now=now, **known, **choice)


def test_a_sweep_since_a_time_leaves_out_nothing_after_the_last_sweep(connection):
    first, asked = datetime.fromisoformat("2026-09-22T12:00:00+00:00"), Asked()
    swept(connection, Asked(), first)
    later = first + timedelta(days=5)

    swept(connection, asked, later, since=later - timedelta(hours=1))
    swept(connection, asked, later + timedelta(hours=1))

    assert asked.covers(first - timedelta(minutes=1), later + timedelta(minutes=59))


def test_a_first_sweep_since_a_time_reads_all_that_stripe_lists(connection):
    now, asked = datetime.fromisoformat("2026-09-22T12:00:00+00:00"), Asked()

    swept(connection, asked, now, since=now - timedelta(hours=1))

    assert asked.covers(now - timedelta(days=30), now - timedelta(minutes=1))


def test_a_sweep_since_a_time_before_the_last_one_goes_back_to_it(connection):
    now, asked = datetime.fromisoformat("2026-09-22T12:00:00+00:00"), Asked()
    swept(connection, Asked(), now)

    report = swept(connection, asked, now, since=now - timedelta(days=9))

    assert (report.complete_from, asked.spans[0][0]) == (now - timedelta(days=9), now - timedelta(days=9))


def test_a_span_with_an_event_that_cannot_be_stored_is_known_until_it_is_swept_without(connection):
    now = datetime.fromisoformat("2026-09-22T12:00:00+00:00")
    good = event("customer.created", {"id": "cus_1", "object": "customer"}, created=int(now.timestamp()) - 300)
    report = swept(connection, Lists({**good, "id": "not an event"}), now)
    bad = now - timedelta(days=1)
    later = now + timedelta(hours=3)

    assert report.unreadable == 1
    assert connection.execute("SELECT sum(events_unreadable) FROM event_sweeps").fetchone() == (1,)
    assert unreadable_since(connection, now=now) == bad
    swept(connection, Asked(), later)
    # It read a part of that span only.
    assert unreadable_since(connection, now=later) == bad
    swept(connection, Lists(good), later, since=bad)
    assert unreadable_since(connection, now=later) is None


def test_a_span_that_stripe_lists_no_more_is_not_asked_for_again(connection):
    now = datetime.fromisoformat("2026-09-22T12:00:00+00:00")
    bad = event("customer.created", {"id": "cus_1"}, created=int(now.timestamp()) - 300, id="not an event")
    swept(connection, Lists(bad), now)

    assert unreadable_since(connection, now=now + timedelta(days=29)) is not None
    assert unreadable_since(connection, now=now + timedelta(days=31)) is None


def test_what_is_no_event_is_counted_and_keeps_nothing_back(connection):
    now = datetime.fromisoformat("2026-09-22T12:00:00+00:00")
    good = event("customer.created", {"id": "cus_1", "object": "customer"}, created=int(now.timestamp()) - 300)
    bad = {**good, "id": "not an event"}

    report = sweep(
        connection,
        [Lists(bad, good)],
        stripe_now=now,
        kept=timedelta(days=30),
        stuck_after=timedelta(minutes=5),
        clock=lambda: now,
    )

    assert (report.listed, report.unreadable, report.missing.total()) == (2, 1, 1)


def test_error_reports_about_meter_events_are_swept_too(flow, connection, settings, simulator):
    client = simulator.client()
    client.v1.billing.meters.create({"display_name": "x", "event_name": "x", "default_aggregation": {"formula": "sum"}})
    service = streaming(client, lambda token: make_client(settings, key=token))
    service.create({"events": [{"event_name": "x", "identifier": "bad", "payload": {"value": "1"}}]})
    simulator.clock.advance(hours=2)

    report = flow.sweep()

    assert dict(report.missing) == {"v1.billing.meter.error_report_triggered": 1}
    statement = "SELECT payload_style, payload ? 'data', processing_outcome FROM stripe_events"
    assert connection.execute(statement).fetchall() == [("thin", False, "received")]
    flow.dispatch()
    assert connection.execute(statement).fetchall() == [("thin", False, "processed")]


def subscribed(stripe, count):
    product = stripe.products.create({"name": "seats"}).id
    price = stripe.prices.create(
        {"currency": "usd", "product": product, "unit_amount": 1000, "recurring": {"interval": "month"}}
    ).id
    return [
        stripe.subscriptions.create({"customer": customer, "items": [{"price": price}]}).id
        for customer in customers(stripe, count)
    ]


def kept(connection, table):
    return connection.execute(f"SELECT count(*), count(*) FILTER (WHERE source = 'read') FROM {table}").fetchone()


def test_objects_that_no_event_told_of_are_read_and_the_rebuild_knows_them(flow, connection, stripe, simulator):
    [subscription, _, _] = subscribed(stripe, 3)

    report = flow.reread()

    assert report.read["subscription"] == report.changed["subscription"] == 3
    assert (report.read["customer"], report.unreadable) == (3, 0)
    assert kept(connection, "subscriptions") == (3, 3)
    assert kept(connection, "invoices") == (3, 3)
    assert connection.execute("SELECT count(*) FROM entitlements WHERE feature = 'saas'").fetchone() == (3,)
    assert rebuild(connection, simulator.clock).differ == 0

    stored = connection.execute("SELECT count(*) FROM object_snapshots").fetchone()
    assert set(flow.reread().changed.values()) == {0}
    assert connection.execute("SELECT count(*) FROM object_snapshots").fetchone() == stored

    stripe.subscriptions.cancel(subscription)
    simulator.clock.advance(seconds=2)
    assert flow.reread().changed["subscription"] == 1
    row = connection.execute("SELECT status FROM subscriptions WHERE stripe_subscription_id = %s", [subscription])
    assert row.fetchone() == ("canceled",)


def test_a_reread_that_dies_keeps_its_pages_and_is_repeatable(flow, connection, stripe, monkeypatch):
    subscribed(stripe, 2)
    real = reread_module.keep_answers

    def dies(*args, **kwargs):
        real(*args, **kwargs)
        raise KeyboardInterrupt

    monkeypatch.setattr(reread_module, "keep_answers", dies)
    with pytest.raises(KeyboardInterrupt):
        flow.reread()
    assert kept(connection, "stripe_customers") == (0, 0)
    monkeypatch.undo()
    flow.reread()

    assert kept(connection, "stripe_customers") == (2, 2)
    assert kept(connection, "subscriptions") == (2, 2)


def test_a_later_event_beats_what_was_read(flow, connection, stripe, simulator):
    [subscription] = subscribed(stripe, 1)
    flow.reread()
    simulator.clock.advance(seconds=5)
    stripe.subscriptions.cancel(subscription)
    simulator.clock.advance(minutes=2)
    flow.sweep()
    flow.dispatch()

    assert connection.execute("SELECT status FROM subscriptions").fetchall() == [("canceled",)]
    assert rebuild(connection, simulator.clock).differ == 0
