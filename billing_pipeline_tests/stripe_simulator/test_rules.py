"""Rules that must hold for any input, by Hypothesis: forms, periods, pages, and what the summaries add up to."""

from __future__ import annotations

from collections import defaultdict
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from urllib.parse import urlencode

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from stripe._encode import _api_encode

from billing_pipeline.stripe_simulator.billing_periods import add_months, period_at
from billing_pipeline.stripe_simulator.lists import page
from billing_pipeline.stripe_simulator.parameters import parse_form
from billing_pipeline.stripe_simulator.wire import Refusal
from billing_pipeline_tests.fix_simulator import KEY, SimulatorClock, journal_of, make_core
from billing_pipeline_tests.stripe_simulator.conftest import NOON

HOUR = 3600
LAG = timedelta(minutes=7)

names = st.text(st.characters(codec="utf-8", exclude_characters="[]"), min_size=1, max_size=8)
forms = st.dictionaries(names, st.text(max_size=8) | st.dictionaries(names, st.text(max_size=8), min_size=1))
epochs = st.integers(
    int(datetime(2020, 1, 1, tzinfo=UTC).timestamp()), int(datetime(2035, 1, 1, tzinfo=UTC).timestamp())
)


@given(forms)
def test_form_of_the_sdk_is_read_back_as_it_was_meant(params):
    assert parse_form(urlencode(list(_api_encode(params)))) == params


def test_list_positions_are_kept_and_empty_brackets_append():
    assert parse_form("a[0][b]=x&a[1][b]=y&e[]=p&e[]=q") == {
        "a": {"0": {"b": "x"}, "1": {"b": "y"}},
        "e": {"0": "p", "1": "q"},
    }


@pytest.mark.parametrize("form", ["a=1&a[b]=2", "a[b]=2&a=1", "a[b]=1&a[b][c]=2", "a" + "[b]" * 50 + "=1"])
def test_form_that_contradicts_itself_or_nests_without_end_is_refused(form):
    with pytest.raises(Refusal, match="Invalid object"):
        parse_form(form)


@given(anchor=epochs, later=st.integers(0, 5 * 366 * 86_400), months=st.sampled_from([1, 3, 12]))
def test_every_moment_lies_in_exactly_one_period(anchor, later, months):
    now = anchor + later
    start, end = period_at(anchor, anchor, months, now)

    assert start <= now < end
    assert period_at(anchor, anchor, months, end)[0] == end
    assert period_at(anchor, anchor, months, end - 1) == (start, end)


def test_period_anchored_on_the_31st_returns_to_the_31st():
    anchor = int(datetime(2026, 1, 31, 9, tzinfo=UTC).timestamp())
    ends = [datetime.fromtimestamp(add_months(anchor, n), UTC).day for n in range(1, 5)]

    assert ends == [28, 31, 30, 31]


@given(count=st.integers(0, 30), limit=st.integers(1, 12))
def test_paging_either_way_shows_everything_once(count, limit):
    bodies = [{"id": str(number)} for number in range(count)]

    def walk(cursor, take):
        seen, params = [], {"limit": limit}
        for _ in range(count + 1):
            answer = page(bodies, params, url="/x", what="x")
            seen.append([body["id"] for body in answer["data"]])
            if not answer["has_more"]:
                break
            params = {"limit": limit, cursor: answer["data"][take]["id"]}
        return seen

    forward = [id for part in walk("starting_after", -1) for id in part]

    assert forward == [body["id"] for body in bodies]
    if bodies:
        before_last = page(bodies, {"limit": 100, "ending_before": bodies[-1]["id"]}, url="/x", what="x")
        assert before_last["data"] == bodies[:-1]


steps = st.lists(
    st.tuples(
        st.sampled_from(["a", "b", "c", "d", "e"]),  # identifier
        st.sampled_from([0, 1]),  # customer
        st.decimals(-1000, 1000, places=3, allow_nan=False),
        st.integers(-3 * HOUR, 0),  # timestamp, from now
        st.sampled_from([0, 1, 3600, 12 * 3600, 86_399]),  # seconds to advance first
    ),
    max_size=25,
)


@settings(max_examples=60, deadline=None)
@given(steps)
def test_summaries_are_the_sum_over_first_acceptances(plan):
    clock = SimulatorClock(still_at=NOON)
    core = make_core(clock, lag=LAG)

    def call(method, path, params):
        return core.handle(method, path, params, key=KEY)

    meter = call(
        "POST",
        "/v1/billing/meters",
        {"display_name": "M", "event_name": "m", "default_aggregation": {"formula": "sum"}},
    ).body["id"]
    customers = [call("POST", "/v1/customers", {}).body["id"] for _ in range(2)]
    expected: defaultdict[tuple[str, int], Decimal] = defaultdict(Decimal)
    last_accepted: dict[str, datetime] = {}
    for identifier, who, value, offset, pause in plan:
        clock.advance(seconds=pause)
        timestamp = int(clock().timestamp()) + offset
        answer = call(
            "POST",
            "/v1/billing/meter_events",
            {
                "event_name": "m",
                "identifier": identifier,
                "timestamp": str(timestamp),
                "payload": {"stripe_customer_id": customers[who], "value": format(value, "f")},
            },
        )
        fresh = identifier not in last_accepted or clock() - last_accepted[identifier] >= timedelta(hours=24)

        assert answer.status == (200 if fresh else 400)
        if fresh:
            last_accepted[identifier] = clock()
            expected[customers[who], timestamp // HOUR * HOUR] += value
    clock.advance(seconds=LAG.total_seconds())

    shown = {}
    end = (int(clock().timestamp()) // HOUR + 1) * HOUR
    for customer in customers:
        params = {"customer": customer, "start_time": str(end - 40 * 24 * HOUR), "end_time": str(end), "limit": "100"}
        answer = call("GET", f"/v1/billing/meters/{meter}/event_summaries", {**params, "value_grouping_window": "hour"})
        assert not answer.body["has_more"]
        shown |= {(customer, s["start_time"]): s["aggregated_value"] for s in answer.body["data"]}

    assert shown == {key: float(value) for key, value in expected.items()}
    assert sum((Decimal(r["value"]) for r in journal_of(core, "meter_event")), Decimal(0)) == sum(
        expected.values(), Decimal(0)
    )
