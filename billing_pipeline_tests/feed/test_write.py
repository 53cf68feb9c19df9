"""Every processed event that matters to an organization is in its feed, once, in the order of the commits."""

from datetime import timedelta

import pytest

from billing_pipeline.database.connection import connect
from billing_pipeline.feed.upkeep import Fitness, find_unfed, judge_payloads, purge_feed
from billing_pipeline.feed.write import FeedReport
from billing_pipeline.webhooks.claims import claim_due
from billing_pipeline.webhooks.replay import named_events, replay
from billing_pipeline_tests.builders import map_customer
from billing_pipeline_tests.feed.conftest import NOW, Feeding, feed_settings
from billing_pipeline_tests.webhooks.events import event, invoice, store, subscription

pytestmark = pytest.mark.slow


def test_a_processed_event_is_persisted_in_the_feed_of_its_organization(feeding):
    created = event("customer.subscription.created", subscription())

    assert feeding.feed(created) == FeedReport(written=1)
    assert feeding.rows() == [("acme", created["id"], "customer.subscription.created")]
    assert feeding.connection.execute("SELECT count(*) FROM feed_candidates").fetchone() == (0,)


def test_events_that_are_ignored_or_of_nobody_are_not_fed(feeding):
    charge = {"id": "ch_1", "object": "charge", "customer": "cus_1"}
    feeding.feed(event("customer.subscription.created", subscription()), event("charge.succeeded", charge))
    other = event("invoice.paid", invoice(id="in_2", customer="cus_of_nobody", status="paid"))

    assert feeding.feed(other) == FeedReport(waiting=1)
    assert [row[2] for row in feeding.rows()] == ["customer.subscription.created"]


def test_an_event_that_came_before_its_customer_was_known_is_told_once_it_is(feeding):
    """Stripe sends a first invoice in the same second as the subscription that says whose it is."""
    early = event("invoice.created", invoice())
    feeding.feed(early)
    feeding.now += timedelta(seconds=20)
    feeding.feed(event("customer.subscription.created", subscription()))
    feeding.now += timedelta(minutes=1)

    assert feeding.feed() == FeedReport(written=1)
    assert ("acme", early["id"], "invoice.created") in feeding.rows()


def test_what_stays_nobodys_is_given_up_after_ten_looks(feeding):
    feeding.handle(event("invoice.paid", invoice(customer="cus_of_nobody", status="paid")))
    for _ in range(9):
        assert feeding.writer.run_once() == FeedReport(waiting=1)
        feeding.now += timedelta(minutes=11)

    assert feeding.writer.run_once() == FeedReport(left_out=1)
    assert feeding.connection.execute("SELECT count(*) FROM feed_candidates").fetchone() == (0,)


def test_nothing_is_written_while_the_stream_is_off(connection):
    off = Feeding(connection, settings=feed_settings(enable_billing_stream=False))
    off.feed(event("customer.subscription.created", subscription()))

    assert off.rows() == []
    assert connection.execute("SELECT count(*) FROM feed_candidates").fetchone() == (0,)


def test_an_event_is_fed_once_whatever_is_replayed(feeding):
    created = event("customer.subscription.created", subscription())
    feeding.feed(created)
    for _ in range(3):
        [replayed] = replay(feeding.dispatcher, named_events(feeding.connection, [created["id"]]))
        assert replayed.processing_outcome == "processed"
        assert feeding.writer.run_once() == FeedReport(left_out=1)

    assert len(feeding.rows()) == 1


def test_an_event_is_not_fed_again_when_its_row_is_out_of_retention(feeding):
    old, new = (event("customer.subscription.updated", subscription(), at=at) for at in (0, 60))
    feeding.feed(old)
    feeding.now += timedelta(days=31)
    feeding.feed(new)
    kept_since = feeding.now - timedelta(days=30)
    assert purge_feed(feeding.connection, fed_before=kept_since) == 1
    list(replay(feeding.dispatcher, named_events(feeding.connection, [old["id"]])))
    find_unfed(feeding.connection, received_since=kept_since, now=feeding.now)

    assert feeding.writer.run_once() == FeedReport(left_out=1)
    assert [row[1] for row in feeding.rows()] == [new["id"]]


def test_a_purge_takes_all_that_is_old_batch_by_batch_and_never_the_newest(feeding):
    feeding.feed(*(event("customer.subscription.updated", subscription(), at=at) for at in range(7)))

    assert purge_feed(feeding.connection, fed_before=NOW, batch=2) == 0
    assert purge_feed(feeding.connection, fed_before=NOW + timedelta(seconds=1), batch=2) == 6
    assert len(feeding.rows()) == 1


def test_what_was_handled_while_the_stream_was_off_can_be_found(connection):
    Feeding(connection, settings=feed_settings(enable_billing_stream=False)).handle(
        event("customer.subscription.created", subscription()), event("charge.succeeded", {"id": "ch_1"})
    )
    feeding = Feeding(connection)

    assert find_unfed(connection, received_since=NOW - timedelta(hours=1), now=NOW) == 1
    assert feeding.writer.run_once() == FeedReport(written=1)
    assert find_unfed(connection, received_since=NOW - timedelta(hours=1), now=NOW) == 0


def test_a_customer_that_was_handed_over_takes_nothing_to_the_other_organization(feeding):
    """Each event is told to whom the customer belonged at Stripe's time of it."""
    middle = "2026-09-21 14:13:30+00"
    map_customer(feeding.connection, "acme", "cus_1", f"(,{middle})")
    map_customer(feeding.connection, "beta", "cus_1", f"[{middle},)")
    about = subscription(metadata={})
    before, after = (event("customer.subscription.updated", about, at=at) for at in (0, 60))
    feeding.feed(after, before)

    assert [row[:2] for row in feeding.rows()] == [("acme", before["id"]), ("beta", after["id"])]


def test_a_completion_that_commits_late_is_neither_skipped_nor_told_twice(feeding, database_url):
    feeding.feed(event("customer.subscription.created", subscription()))
    late, soon = (event("invoice.created", invoice(id=f"in_{n}"), at=n) for n in (1, 2))
    store(feeding.connection, [late, soon], now=NOW)
    with connect(database_url) as other:
        claims = claim_due(other, limit=1, sla=timedelta(minutes=5), now=NOW, only=[late["id"]])
        with other.transaction():
            # Handled, and not committed yet, when the later event is handled and told.
            Feeding(other).dispatcher._batch(claims, {})
            feeding.dispatcher.drain(events_max=10)
            assert feeding.writer.run_once() == FeedReport(written=1)
    assert feeding.writer.run_once() == FeedReport(written=1)

    assert [row[1] for row in feeding.rows()][1:] == [soon["id"], late["id"]]


def test_one_writer_at_a_time_so_that_ids_rise_in_the_order_of_the_commits(feeding, database_url):
    feeding.handle(event("customer.subscription.created", subscription()))
    with connect(database_url) as other:
        racing = Feeding(other)
        with other.transaction():
            assert racing.writer._batch(10).report() == FeedReport(written=1)
            later = event("customer.subscription.updated", subscription(), at=9)
            feeding.handle(later)
            # The other has taken the lower id and not committed: a row written now could be read before it.
            assert feeding.writer.run_once() == FeedReport()
            assert feeding.rows() == []
        assert feeding.writer.run_once() == FeedReport(written=1)

    assert [row[1] for row in feeding.rows()][-1] == later["id"]
    assert len(feeding.rows()) == 2


def test_an_event_that_cannot_be_told_fails_alone_and_is_counted(feeding, caplog):
    good = event("customer.subscription.created", subscription())
    bad = event("customer.subscription.updated", subscription(id="sub_2"))
    feeding.handle(good, bad)
    feeding.connection.execute(
        "UPDATE stripe_events SET payload = jsonb_set(payload, '{data,object,status}', '7') WHERE stripe_event_id = %s",
        [bad["id"]],
    )

    assert feeding.writer.run_once() == FeedReport(written=1, failed=1)
    assert ("customer.subscription.updated", "stream_failed") in feeding.told
    assert "Billing event could not be told" in caplog.text
    assert feeding.connection.execute("SELECT DISTINCT processing_outcome FROM stripe_events").fetchall() == [
        ("processed",)
    ]


def test_an_event_whose_payload_is_gone_cannot_be_told(feeding):
    feeding.handle(event("customer.subscription.created", subscription()))
    feeding.connection.execute("UPDATE stripe_events SET payload = NULL")

    assert feeding.writer.run_once() == FeedReport(failed=1)
    assert feeding.connection.execute("SELECT count(*) FROM feed_candidates").fetchone() == (0,)


def test_what_the_database_refuses_holds_up_no_other(feeding):
    events = [event("customer.subscription.updated", subscription(id=f"sub_{n}"), at=n) for n in range(4)]
    feeding.handle(*events)
    feeding.connection.execute(
        f"ALTER TABLE billing_event_feed ADD CONSTRAINT picky CHECK (stripe_event_id <> '{events[1]['id']}')"
    )

    assert feeding.writer.run_once() == FeedReport(written=3, failed=1)
    assert {row[1] for row in feeding.rows()} == {one["id"] for one in events} - {events[1]["id"]}
    assert feeding.told.count(("customer.subscription.updated", "stream_failed")) == 1


def test_a_completion_that_is_undone_leaves_nothing_to_tell(feeding):
    store(feeding.connection, [event("customer.subscription.created", subscription())], now=NOW)
    claims = claim_due(feeding.connection, limit=1, sla=timedelta(minutes=5), now=NOW)
    with feeding.connection.transaction(force_rollback=True):
        feeding.dispatcher._batch(claims, {})
        assert feeding.connection.execute("SELECT count(*) FROM feed_candidates").fetchone() == (1,)

    assert feeding.connection.execute("SELECT count(*) FROM feed_candidates").fetchone() == (0,)


def test_rows_that_do_not_fit_the_schema_are_named(feeding):
    feeding.feed(event("customer.subscription.created", subscription()), event("invoice.created", invoice()))
    assert judge_payloads(feeding.connection, fed_since=NOW) == Fitness(2, 0, ())
    feeding.connection.execute(
        'UPDATE billing_event_feed SET payload = payload || \'{"invoice": {"total": "48.00"}}\''
        " WHERE event_type = 'invoice.created'"
    )

    found = judge_payloads(feeding.connection, fed_since=NOW)
    [misfit] = found.samples
    assert (found.looked_at, found.misfits, misfit.event_type) == (2, 1, "invoice.created")
    assert any(fault.startswith("$.invoice") for fault in misfit.faults)
