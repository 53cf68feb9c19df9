"""Billing periods follow Stripe: history stays, the current one is what Stripe shows, and none overlaps another."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing_pipeline.database.connection import connect
from billing_pipeline.errors import StripeUnavailable
from billing_pipeline.settings import load_settings
from billing_pipeline.stripe_api.subscriptions import ItemPeriod
from billing_pipeline.usage.flow import UsageFlow
from billing_pipeline.usage.flush import flush
from billing_pipeline.usage.periods import PeriodsReport, sync_periods
from billing_pipeline_tests.builders import billable_event, insert_events, map_customer
from billing_pipeline_tests.fix_flow import counted_by_stripe

DAY = timedelta(days=1)
FIRST = datetime(2026, 3, 1, 10, 37, 12, tzinfo=UTC)


def period(start, end, item="si_1", **fields):
    """A period from `start` to `end`, in days after the first."""
    names = {"stripe_customer_id": "cus_1", "event_name": "tokens"} | fields
    return ItemPeriod(subscription_item_id=item, starts_at=FIRST + start * DAY, ends_at=FIRST + end * DAY, **names)


class Syncs:
    """Syncs what a test says Stripe shows, a minute later each time."""

    def __init__(self, connection):
        self.connection = connection
        self.now = FIRST + 100 * DAY

    def __call__(self, *shown):
        self.now += timedelta(minutes=1)
        return sync_periods(self.connection, lambda: list(shown), clock=lambda: self.now)

    def known(self):
        rows = self.connection.execute(
            "SELECT subscription_item_id, lower(during), upper(during) FROM billing_periods ORDER BY 1, 2"
        )
        return [(item, (start - FIRST) / DAY, (end - FIRST) / DAY) for item, start, end in rows]


@pytest.fixture
def sync(connection):
    map_customer(connection, "acme", "cus_1")
    return Syncs(connection)


def test_a_second_sync_of_the_same_changes_nothing(sync):
    assert sync(period(0, 31)) == PeriodsReport(items_read=1, periods_changed=1)
    before = sync.connection.execute("SELECT xmin, * FROM billing_periods").fetchall()

    assert sync(period(0, 31)) == PeriodsReport(items_read=1, periods_changed=0)
    assert sync.connection.execute("SELECT xmin, * FROM billing_periods").fetchall() == before


def test_a_renewal_keeps_the_period_before_it(sync):
    sync(period(0, 31))
    sync(period(31, 61))
    sync()

    assert sync.known() == [("si_1", 0, 31), ("si_1", 31, 61)]


def test_a_period_that_ended_early_is_shortened(sync):
    sync(period(0, 31))
    sync(period(0, 5))

    assert sync.known() == [("si_1", 0, 5)]


def test_an_anchor_reset_or_the_end_of_a_trial_ends_the_period_where_the_next_begins(sync):
    sync(period(0, 31))
    sync(period(5, 36))

    assert sync.known() == [("si_1", 0, 5), ("si_1", 5, 36)]


def test_a_period_that_is_extended_reaches_to_its_new_end(sync):
    sync(period(0, 14))
    sync(period(0, 21))

    assert sync.known() == [("si_1", 0, 21)]


def test_what_stripe_shows_now_outweighs_a_period_that_never_was(sync):
    sync(period(0, 31))
    sync(period(31, 61))
    sync(period(10, 41))

    assert sync.known() == [("si_1", 0, 10), ("si_1", 10, 41)]


def test_an_item_that_ended_with_its_first_second_is_in_no_period(sync):
    sync(period(0, 31))
    sync(period(31, 31))

    assert sync.known() == [("si_1", 0, 31)]


def test_two_subscriptions_on_one_meter_have_a_period_each(sync):
    sync(period(0, 31), period(3, 34, item="si_2"))

    assert sync.known() == [("si_1", 0, 31), ("si_2", 3, 34)]


def test_a_customer_nobody_is_mapped_to_is_left_out_until_somebody_is(sync):
    stranger = period(0, 31, stripe_customer_id="cus_2")

    assert sync(stranger) == PeriodsReport(items_read=1, periods_changed=0)
    map_customer(sync.connection, "globex", "cus_2")
    assert sync(stranger) == PeriodsReport(items_read=1, periods_changed=1)


def test_an_answer_that_is_older_than_the_one_in_place_changes_nothing(sync):
    read_at = sync.now

    def slow():
        sync(period(0, 5))
        return [period(0, 31)]

    clock = iter([read_at, sync.now + timedelta(hours=1)])

    assert sync_periods(sync.connection, slow, clock=lambda: next(clock)).periods_changed == 0
    assert sync.known() == [("si_1", 0, 5)]


def test_syncs_at_once_end_well(sync, database_url):
    failures = []

    def work(number):
        try:
            with connect(database_url) as connection:
                for step in range(5):
                    start = number + 4 * step
                    shown = [period(start, start + 31, item=f"si_{item}") for item in range(20)]
                    sync_periods(connection, lambda shown=shown: shown, clock=lambda: datetime.now(UTC))
        except Exception as exc:
            failures.append(exc)

    workers = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()

    assert failures == []
    assert len({item for item, _, _ in sync.known()}) == 20


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(starts=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 31)), min_size=1, max_size=8))
def test_whatever_stripe_shows_the_latest_is_known_and_none_overlaps(sync, starts):
    """The constraint refuses an overlap; that nothing raises is half of the promise."""
    sync.connection.execute("DELETE FROM billing_periods")
    for start, length in starts:
        sync(period(start, start + length))

        known = sync.known()
        assert ("si_1", start, start + length) in known
        assert all(before[2] <= after[1] for before, after in pairwise(known))


def test_the_sync_reads_what_stripe_shows(flow, bill, subscriptions):
    customers = bill("acme")
    begun = flow.clock().replace(microsecond=0) - 3 * DAY
    id = subscriptions.create(customers["acme"], begun, "prompt_tokens", "generated_tokens")

    assert flow.sync_periods() == PeriodsReport(items_read=2, periods_changed=2)
    subscriptions.cancel(id, begun + DAY)
    assert flow.sync_periods() == PeriodsReport(items_read=2, periods_changed=2)
    rows = flow.connection.execute("SELECT event_name, lower(during), upper(during) FROM billing_periods").fetchall()
    assert sorted(rows) == [(name, begun, begun + DAY) for name in ("generated_tokens", "prompt_tokens")]


def test_while_stripe_does_not_answer_nothing_is_counted_and_nothing_is_lost(flow, bill, simulator, database_url):
    closed = flow.clock().replace(minute=0, second=0, microsecond=0) - timedelta(hours=3)
    customers = bill("acme")
    insert_events(flow.connection, billable_event(occurred_at=closed))
    known = flow.settings.model_dump(exclude={"stripe_api_base"}, exclude_defaults=True)
    cut_off = load_settings(**known, stripe_api_base="http://127.0.0.1:9")

    with pytest.raises(StripeUnavailable):
        flush(UsageFlow(flow.connection, database_url, cut_off, holder="test"))
    assert flow.connection.execute("SELECT count(*) FROM usage_windows").fetchone() == (0,)

    flush(flow)
    assert counted_by_stripe(simulator) == {(customers["acme"], "prompt_tokens", closed): 1}
