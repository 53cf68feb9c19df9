"""The rules about units and volume find every real change, and nothing in what only wavers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing_pipeline.domain.volume import (
    HISTORY_DAYS,
    HISTORY_DAYS_MIN,
    MeterVolume,
    Volume,
    VolumeFactors,
    percentile,
    volume_changes,
)

START = datetime(2026, 3, 1, tzinfo=UTC)
DAY = timedelta(days=1)
FACTORS = VolumeFactors(volume=5, units=10)

events = st.integers(100, 300)
means = st.decimals(Decimal(1), Decimal(2), places=6)
day_of_work = st.tuples(events, means)
histories = st.lists(day_of_work, min_size=HISTORY_DAYS_MIN, max_size=HISTORY_DAYS)
times = st.sampled_from([Decimal(1000), Decimal(60), Decimal(25), Decimal("0.04"), Decimal("0.001")])


def volume(number, events, mean):
    return Volume(START + number * DAY, events * Decimal(mean), events)


def meter(days, hour=(0, 0)):
    return MeterVolume(
        "tokens",
        tuple(volume(number, *day) for number, day in enumerate(days)),
        volume(len(days), *hour),
    )


def reasons(volumes, factors=FACTORS):
    return {change.reason for change in volume_changes(volumes, factors)}


@given(history=histories, day=day_of_work)
def test_what_wavers_within_the_factors_is_no_news(history, day):
    assert reasons(meter([*history, day], hour=(day[0], day[1]))) == set()


@given(history=histories, day=day_of_work, factor=times)
def test_a_day_in_other_units_is_always_found(history, day, factor):
    found = reasons(meter([*history, (day[0], day[1] * factor)]))

    assert "units_jumped" in found
    assert found <= {"units_jumped", "volume_jumped", "volume_dropped"}


@given(history=histories, day=day_of_work, hour=st.tuples(st.integers(100, 120), means), factor=times)
def test_an_hour_in_other_units_is_found_the_hour_after(history, day, hour, factor):
    history = [(events * 8, mean) for events, mean in history]

    [change] = volume_changes(meter([*history, (day[0] * 8, day[1])], (hour[0], hour[1] * factor)), FACTORS)

    assert (change.reason, change.span, change.found) == ("units_jumped", "hour", Fraction(hour[1] * factor))


# The smallest day is 100 units and the largest median 600, of which five times is 3,000.
@given(history=histories, day=day_of_work, factor=st.integers(31, 1000))
def test_more_events_are_volume_and_not_units(history, day, factor):
    assert reasons(meter([*history, (day[0] * factor, day[1])])) == {"volume_jumped"}


@given(history=histories)
def test_a_meter_that_falls_silent_is_found(history):
    assert reasons(meter([*history, (0, 0)])) == {"volume_stopped"}


@given(history=st.lists(day_of_work, max_size=HISTORY_DAYS_MIN - 1), day=day_of_work, factor=times)
def test_a_young_meter_is_not_judged(history, day, factor):
    assert reasons(meter([*history, (day[0], day[1] * factor)], hour=(day[0], day[1] * factor))) == set()
    assert reasons(meter([*history, (0, 0)])) == set()


@pytest.mark.parametrize("weekend", [0, 1, 5])
def test_weekends_are_part_of_the_history(weekend):
    days = [(100, 1)] * 5 + [(weekend, 1)] * 2
    for end in range(14, 28 + 1):
        assert reasons(meter((days * 4)[:end])) == set()


def test_the_second_silent_day_is_told_too():
    assert reasons(meter([(100, 1)] * 27 + [(0, 0)] * 2)) == {"volume_stopped"}


def test_a_restless_meter_has_to_jump_farther():
    restless = [(20, mean) for mean in (1, 1, 1, 1, 1, 1, 1, 40, 1, 1, 1, 1, 60, 1, 1, 1, 50)]

    assert reasons(meter([*restless, (20, 90)])) == set()
    assert "units_jumped" in reasons(meter([*restless, (20, 200)]))


def test_a_change_of_batching_is_no_change_of_units():
    """A hundred events become one of the same sum."""
    assert reasons(meter([(1000, 1)] * 10 + [(10, 100)])) == set()


@given(st.lists(st.decimals(0, 10**15, places=12), min_size=1, max_size=40), st.integers(1, 100))
def test_the_percentile_is_the_smallest_that_so_many_do_not_exceed(values, per_cent):
    found = percentile(values, per_cent)

    def share_up_to(value):
        return Fraction(sum(other <= value for other in values), len(values))

    assert found in values
    assert share_up_to(found) >= Fraction(per_cent, 100)
    assert all(share_up_to(smaller) < Fraction(per_cent, 100) for smaller in values if smaller < found)


@pytest.mark.parametrize(
    ("day", "told"),
    [
        ((100, 3000), "tokens, day 2026-03-11 UTC: 3,000 per event, usually 3 (×1,000)"),
        ((100, Decimal("0.003")), "tokens, day 2026-03-11 UTC: 0.003 per event, usually 3 (÷1,000)"),
        ((100, Decimal("0.000000000003")), "0.000000000003 per event, usually 3 (÷1,000,000,000,000)"),
        ((100, 0), "tokens, day 2026-03-11 UTC: 0 per event, usually 3"),
    ],
)
def test_a_change_says_what_is_what_was_and_how_many_times(day, told):
    [change] = [c for c in volume_changes(meter([(100, 3)] * 10 + [day]), FACTORS) if c.reason == "units_jumped"]

    assert str(change).endswith(told)
