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
    minutes = [TEN + MINUTE * number for number in range(60)]

    assert list(slots_of(TEN, TEN + HOUR)) == minutes
    assert list(slots_of(TEN, TEN + HOUR, 85)) == [*minutes[25:], *minutes[:25]]


@given(
    cut=st.integers(1, 3_599_999_999).map(lambda us: TEN + timedelta(microseconds=us)),
)
def test_the_slots_on_both_sides_of_a_cut_hour_are_whole_and_apart(cut):
    before, after = set(slots_of(TEN, cut)), set(slots_of(cut, TEN + HOUR))

    assert not before & after
    assert all(slot >= TEN and slot + MINUTE <= cut for slot in before)
    assert all(cut <= slot and slot + MINUTE <= TEN + HOUR for slot in after)
    assert (slot_count(TEN, cut), slot_count(cut, TEN + HOUR)) == (len(before), len(after))


def changes_of(zone):
    """Every instant of 2026, to the second, at which the zone's offset changes."""
    local = ZoneInfo(zone)

    def offset(seconds):
        return datetime.fromtimestamp(seconds, local).utcoffset()

    start = int(datetime(2026, 1, 1, tzinfo=UTC).timestamp())
    for day in range(start, start + 365 * 86_400, 86_400):
        before, after = day, day + 86_400
        if offset(before) == offset(after):
            continue
        while after - before > 1:
            middle = (before + after) // 2
            before, after = (middle, after) if offset(middle) == offset(before) else (before, middle)
        yield after


def test_no_zones_clock_change_moves_an_instant_into_another_hour():
    changes = {zone: list(changes_of(zone)) for zone in sorted(available_timezones())}

    assert len([zone for zone, found in changes.items() if found]) > 100
    for zone, found in changes.items():
        for seconds in (change + off for change in found for off in (-3601, -3600, -1, 0, 1, 1800, 3599, 3600)):
            local = datetime.fromtimestamp(seconds, ZoneInfo(zone))
            assert hour_of(local).timestamp() == seconds // 3600 * 3600, (zone, local)
