"""Time is cut in UTC, whatever zone an instant was written in."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo, available_timezones

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing_pipeline.domain.windows import HOUR, MINUTE, hour_of, slot_count, slots_of, utc

instants = st.datetimes(min_value=datetime(2020, 1, 1), max_value=datetime(2030, 1, 1))
TEN = datetime(2026, 3, 10, 10, tzinfo=UTC)


@given(naive=instants, zone=st.sampled_from(sorted(available_timezones())), fold=st.integers(0, 1))
def test_an_instant_belongs_to_one_utc_hour_in_every_zone(naive, zone, fold):
    instant = naive.replace(tzinfo=ZoneInfo(zone), fold=fold)

    start = hour_of(instant)

    assert start <= instant < start + HOUR
    assert (start.minute, start.second, start.microsecond) == (0, 0, 0)
    assert start == hour_of(instant.astimezone(UTC))


def test_a_naive_instant_is_refused():
    with pytest.raises(ValueError, match="has no time zone"):
        utc(datetime(2026, 3, 10, 10))


def test_a_whole_hour_has_sixty_slots_and_not_one_more():
    assert list(slots_of(TEN, TEN + HOUR)) == [TEN + MINUTE * number for number in range(60)]


@given(
    cut=st.integers(1, 3_599_999_999).map(lambda us: TEN + timedelta(microseconds=us)),
)
def test_the_slots_on_both_sides_of_a_cut_hour_are_whole_and_apart(cut):
    before, after = set(slots_of(TEN, cut)), set(slots_of(cut, TEN + HOUR))

    assert not before & after
    assert all(slot >= TEN and slot + MINUTE <= cut for slot in before)
    assert all(cut <= slot and slot + MINUTE <= TEN + HOUR for slot in after)
    assert (slot_count(TEN, cut), slot_count(cut, TEN + HOUR)) == (len(before), len(after))
