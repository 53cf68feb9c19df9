"""What the summaries show, when, and in which pages, through the official SDK."""

from __future__ import annotations

from datetime import timedelta

import pytest
import stripe

from billing_pipeline_tests.stripe_simulator.conftest import NOON, make_account

HOUR = 3600
TODAY = int(NOON.timestamp()) // 86_400 * 86_400
TEN = TODAY + 10 * HOUR


def values(page):
    return [(s.start_time, s.end_time, s.aggregated_value) for s in page.data]


def test_minute_read_shows_that_minute_alone(account):
    account.send("1", timestamp=TEN - 1)
    account.send("2", timestamp=TEN)
    account.send("4", timestamp=TEN + 59)
    account.send("8", timestamp=TEN + 60)

    assert values(account.summaries(TEN, TEN + 60)) == [(TEN, TEN + 60, 6.0)]


def test_summary_has_the_shape_of_stripe(account):
    account.send("2.5", timestamp=TEN)
    [summary] = account.summaries(TEN, TEN + HOUR).data

    assert summary.object == "billing.meter_event_summary"
    assert (summary.meter, summary.livemode) == (account.meter, False)
    assert isinstance(summary.aggregated_value, float)


def test_hours_are_listed_newest_first_and_empty_ones_left_out(account):
    account.send("1", timestamp=TEN - 2 * HOUR)
    account.send("2", timestamp=TEN)
    account.send("-5", timestamp=TEN + 1)
    page = account.summaries(TODAY, TEN + HOUR, value_grouping_window="hour")

    assert values(page) == [(TEN, TEN + HOUR, -3.0), (TEN - 2 * HOUR, TEN - HOUR, 1.0)]


def test_days_are_utc_days(account):
    account.send("1", timestamp=TODAY - 1)
    account.send("2", timestamp=TODAY)
    page = account.summaries(TODAY - 86_400, TODAY + 86_400, value_grouping_window="day")

    assert values(page) == [(TODAY, TODAY + 86_400, 2.0), (TODAY - 86_400, TODAY, 1.0)]


@pytest.mark.parametrize(
    ("start", "end", "window", "param"),
    [
        (TEN + 1, TEN + 60, None, "start_time"),
        (TEN, TEN + 61, None, "end_time"),
        (TEN + 60, TEN + HOUR, "hour", "start_time"),
        (TEN, TEN + 86_400, "day", "start_time"),
        (TEN, TEN, None, "end_time"),
        (TEN, TEN + 60, "minute", "value_grouping_window"),
    ],
)
def test_bounds_must_be_aligned(account, start, end, window, param):
    grouping = {"value_grouping_window": window} if window else {}
    with pytest.raises(stripe.InvalidRequestError) as caught:
        account.summaries(start, end, **grouping)

    assert caught.value.param == param


def test_customer_is_required(account):
    with pytest.raises(stripe.InvalidRequestError, match="Missing required param: customer"):
        account.client.v1.billing.meters.event_summaries.list(account.meter, {"start_time": TEN, "end_time": TEN + 60})


def test_other_customers_and_meters_are_not_mixed_in(account):
    other = account.client.v1.customers.create({}).id
    account.send("1", timestamp=TEN)
    account.send(timestamp=TEN, payload={"stripe_customer_id": other, "value": "50"})

    assert values(account.summaries(TEN, TEN + 60)) == [(TEN, TEN + 60, 1.0)]


def test_pages_hold_every_hour_once_in_order(account):
    hours = [TODAY - number * HOUR for number in range(23)]
    for start in hours:
        account.send("1", timestamp=start)
    first = account.summaries(TODAY - 48 * HOUR, TODAY + HOUR, value_grouping_window="hour")

    assert (len(first.data), first.has_more) == (10, True)
    assert [s.start_time for s in first.auto_paging_iter()] == hours


def test_limit_is_between_1_and_100(account):
    for limit in (0, 101):
        with pytest.raises(stripe.InvalidRequestError, match="limit"):
            account.summaries(TEN, TEN + 60, limit=limit)


def test_page_before_a_cursor_is_the_nearest_one(account):
    for number in range(5):
        account.send("1", timestamp=TODAY - number * HOUR)
    everything = account.summaries(TODAY - 48 * HOUR, TODAY + HOUR, value_grouping_window="hour").data
    page = account.summaries(
        TODAY - 48 * HOUR, TODAY + HOUR, value_grouping_window="hour", limit=2, ending_before=everything[4].id
    )

    assert [s.id for s in page.data] == [everything[2].id, everything[3].id]
    assert page.has_more is True


def test_event_is_invisible_until_its_lag_is_over():
    account = make_account(lag=timedelta(minutes=5))
    account.send("3", timestamp=TEN)
    account.clock.advance(seconds=299)

    assert values(account.summaries(TEN, TEN + 60)) == []

    account.clock.advance(seconds=1)

    assert values(account.summaries(TEN, TEN + 60)) == [(TEN, TEN + 60, 3.0)]


def test_lag_may_differ_from_event_to_event():
    lags = {"slow": timedelta(hours=6), "fast": timedelta(0)}
    account = make_account(lag=lambda record: lags[record["identifier"]])
    account.send("1", identifier="slow", timestamp=TEN)
    account.send("2", identifier="fast", timestamp=TEN)

    assert values(account.summaries(TEN, TEN + 60)) == [(TEN, TEN + 60, 2.0)]


@pytest.mark.parametrize(
    ("formula", "window", "expected"),
    [("sum", None, 12.0), ("count", None, 3.0), ("last", None, 7.0), ("sum", "hour", 8.0), ("sum", "day", 1.0)],
)
def test_formula_and_event_time_window_decide_what_counts(formula, window, expected):
    """Sent out of order: the last by timestamp is 7, the last received in its hour and day is 1."""
    window_param = {"event_time_window": window} if window else {}
    account = make_account(meter={"default_aggregation": {"formula": formula}, **window_param})
    account.send("4", timestamp=TEN)
    account.send("7", timestamp=TEN + HOUR)
    account.send("1", timestamp=TEN + 60)
    [summary] = account.summaries(TODAY, TODAY + 86_400).data

    assert summary.aggregated_value == expected
