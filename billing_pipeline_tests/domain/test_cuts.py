"""What is stated next, what waits, and what is held: an hour's minutes last, and no sum goes below zero."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing_pipeline.domain.cuts import (
    COALESCE_FOR,
    COALESCE_FROM,
    HOLD_FROM,
    LAST_HOURS,
    VALUE_MAX,
    Cut,
    Wait,
    decide_cut,
)
from billing_pipeline.domain.entries import HoldReason

TEN = datetime(2026, 3, 10, 10, tzinfo=UTC)
HOUR, MINUTE, DAY = timedelta(hours=1), timedelta(minutes=1), timedelta(days=1)
PAST_MAX = timedelta(days=34, hours=23)
MINUTES = [TEN + number * MINUTE for number in range(60)]


def decide(**overrides):
    facts = {
        "target": 10,
        "stated": 0,
        "next_sequence": 0,
        "used_slots": set(),
        "last_cut_at": None,
        "last_slots_released": False,
        "starts_at": TEN,
        "ends_at": TEN + HOUR,
        "now": TEN + 2 * HOUR,
        "past_max": PAST_MAX,
        "epoch": 0,
    } | overrides
    return decide_cut(**({"assured": facts["stated"]} | facts))


class Window:
    """A window and its entries, as the cutter and Stripe would make them; a lane may be shared with others."""

    def __init__(self, lane=None, starts_at=TEN, ends_at=TEN + HOUR):
        self.starts_at, self.ends_at = starts_at, ends_at
        self.lane = set() if lane is None else lane
        self.entries = []  # [value, fate]; fate: accepted, confirmed, rejected, replaced
        self.last_cut_at = None
        self.released = False

    def total(self, *fates):
        return sum(value for value, fate in self.entries if fate in fates)

    @property
    def least(self):
        """The least that Stripe may come to count, whatever becomes of what it accepted."""
        return self.total("confirmed") + sum(v for v, fate in self.entries if fate == "accepted" and v < 0)

    def cut(self, target, now):
        decision = decide(
            target=target,
            stated=self.total("accepted", "confirmed"),
            assured=self.least,
            next_sequence=len(self.entries),
            used_slots={slot for slot in self.lane if self.starts_at <= slot <= self.ends_at - MINUTE},
            last_cut_at=self.last_cut_at,
            last_slots_released=self.released,
            starts_at=self.starts_at,
            ends_at=self.ends_at,
            now=now,
        )
        if isinstance(decision, Cut):
            assert decision.slot_at not in self.lane, "a minute is never used twice"
            assert self.starts_at <= decision.slot_at <= self.ends_at - MINUTE
            assert decision.sequence == len(self.entries) < 60
            self.lane.add(decision.slot_at)
            self.entries.append([decision.value, "accepted"])
            self.last_cut_at = now
        return decision


def test_nothing_owed_makes_no_entry():
    assert decide(target=7, stated=7) is None


def test_less_usage_than_stated_is_taken_back():
    assert decide(target=3, stated=10, next_sequence=1, used_slots={TEN}) == Cut(1, -7, TEN + MINUTE)


@pytest.mark.parametrize(
    ("facts", "reason"),
    [
        ({"target": VALUE_MAX + 1}, HoldReason.TOO_LARGE),
        ({"used_slots": set(MINUTES)}, HoldReason.NO_SLOT),
        ({"next_sequence": 60, "last_slots_released": True}, HoldReason.NO_SLOT),
        ({"ends_at": TEN + timedelta(seconds=59)}, HoldReason.NO_SLOT),
        ({"now": TEN + 59 * MINUTE + PAST_MAX + timedelta(seconds=1)}, HoldReason.TOO_OLD),
        ({"used_slots": set(MINUTES[:HOLD_FROM])}, HoldReason.LAST_SLOTS),
        ({"next_sequence": HOLD_FROM}, HoldReason.LAST_SLOTS),
    ],
)
def test_what_stripe_cannot_take_is_held_for_a_person(facts, reason):
    assert decide(**facts) is reason


def test_the_largest_and_oldest_that_stripe_takes_are_not_held():
    assert decide(target=VALUE_MAX, now=TEN + PAST_MAX) == Cut(0, VALUE_MAX, TEN)
    assert decide(now=TEN + 30 * MINUTE + PAST_MAX) == Cut(0, 10, TEN + 30 * MINUTE)


@given(used=st.sets(st.sampled_from(MINUTES), max_size=HOLD_FROM - 1))
def test_e06_a_free_minute_is_used_whichever_were_used_before(used):
    decision = decide(used_slots=used)

    assert isinstance(decision, Cut)
    assert decision.slot_at == min(set(MINUTES) - used)


@given(epoch=st.integers(0, 50), minutes=st.integers(1, 60))
def test_every_minute_can_be_used_after_any_number_of_recoveries(epoch, minutes):
    used: list[datetime] = []
    while isinstance(
        found := decide(epoch=epoch, used_slots=used, ends_at=TEN + minutes * MINUTE, last_slots_released=True), Cut
    ):
        used.append(found.slot_at)

    assert sorted(used) == MINUTES[:minutes]


def test_what_a_lost_timeline_may_have_used_unseen_is_not_met_after_a_recovery():
    lost = {decide(epoch=0, used_slots=MINUTES[:used]).slot_at for used in range(COALESCE_FROM)}
    lost_again = {decide(epoch=1, used_slots=MINUTES[25 : 25 + used]).slot_at for used in range(COALESCE_FROM)}

    assert not lost & lost_again
    assert decide(epoch=2).slot_at not in lost | lost_again


def test_e06_an_entry_at_the_last_minute_leaves_the_earlier_ones_usable():
    assert decide(used_slots={MINUTES[59]}) == Cut(0, 10, TEN)


def test_e06_after_many_corrections_a_window_states_one_difference_a_day():
    crowded = {"next_sequence": COALESCE_FROM, "used_slots": set(MINUTES[:COALESCE_FROM]), "last_cut_at": TEN + DAY}
    due = TEN + DAY + COALESCE_FOR

    assert decide(**crowded, now=due - timedelta(seconds=1)) == Wait(due)
    assert decide(**crowded, now=due) == Cut(COALESCE_FROM, 10, MINUTES[COALESCE_FROM])


def test_e06_before_it_is_too_old_for_stripe_nothing_waits():
    crowded = {"next_sequence": 40, "used_slots": set(MINUTES[:40])}
    last_hours = TEN + PAST_MAX - LAST_HOURS

    assert decide(**crowded, last_cut_at=last_hours - HOUR, now=last_hours - MINUTE) == Wait(last_hours)
    assert isinstance(decide(**crowded, last_cut_at=last_hours - HOUR, now=last_hours), Cut)


def test_e06_a_window_corrected_every_hour_is_held_once_and_its_minutes_last_as_long_as_stripe_takes_it():
    window = Window()
    held_at, now = None, TEN + HOUR
    for hour in range(1, (PAST_MAX - LAST_HOURS) // HOUR):
        now += HOUR
        decision = window.cut(hour, now)
        if window.entries:
            window.entries[-1][1] = "confirmed"
        if decision is HoldReason.LAST_SLOTS:
            held_at = held_at or now
            window.released = True
        assert decision is not HoldReason.NO_SLOT

    assert held_at is not None
    assert held_at - TEN > timedelta(days=30)
    # What waits is at most what came in since the day before.
    assert hour - 24 <= window.total("confirmed") <= hour


@pytest.mark.parametrize(("minutes", "held_from"), [(60, 55), (22, 22), (12, 12), (3, 3)])
def test_e06_a_shorter_window_spends_its_minutes_at_once_because_it_may_borrow_more(minutes, held_from):
    """What it takes back belongs to a period whose invoice may be near."""

    def at(used):
        return decide(
            ends_at=TEN + minutes * MINUTE, used_slots=set(MINUTES[:used]), next_sequence=used, last_cut_at=TEN + HOUR
        )

    found = [type(at(used)) for used in range(minutes + 1)]

    coalesced_from = min(25, held_from)
    assert found == (
        [Cut] * coalesced_from + [Wait] * (held_from - coalesced_from) + [HoldReason] * (minutes + 1 - held_from)
    )


FATES = st.sampled_from(["accepted", "confirmed", "confirmed", "rejected", "replaced"])


@given(data=st.data(), targets=st.lists(st.tuples(st.integers(0, 2), st.integers(0, 20)), min_size=1, max_size=80))
def test_e07_no_window_and_no_sum_of_windows_goes_below_zero_whatever_becomes_of_entries(data, targets):
    """Three windows of one customer, meter and hour; each step gives one of them a new target, and fates to entries."""
    lane = set()
    windows = [Window(lane), Window(lane, ends_at=TEN + 20 * MINUTE), Window(lane, starts_at=TEN + 20 * MINUTE)]
    now = TEN + 2 * HOUR
    for number, target in targets:
        window = windows[number]
        # As in the ledger: an entry's outcome is known before the next is cut.
        window.cut(target, now)
        now += data.draw(st.sampled_from([HOUR, DAY]))
        for entry in window.entries:
            if entry[1] == "accepted":
                entry[1] = data.draw(FATES)

        assert all(w.least >= 0 for w in windows)
        assert all(w.total("confirmed") >= 0 for w in windows)
        assert sum(w.least for w in windows) >= 0


@given(targets=st.lists(st.integers(0, VALUE_MAX), min_size=1, max_size=HOLD_FROM), slow=st.booleans())
def test_entries_always_add_up_to_the_latest_target(targets, slow):
    window, now = Window(), TEN + 2 * HOUR
    for target in targets:
        assert not isinstance(window.cut(target, now), HoldReason)
        if window.entries:
            window.entries[-1][1] = "confirmed"
        now += COALESCE_FOR if slow and len(window.entries) >= COALESCE_FROM else timedelta()
    window.cut(targets[-1], now + COALESCE_FOR)

    assert window.total("accepted", "confirmed") == targets[-1]


def test_e07_a_correction_waits_while_what_it_corrects_may_still_be_refused():
    assert decide(target=3, stated=10, assured=0, next_sequence=1, used_slots={TEN}) == Wait(None)
    assert decide(target=3, stated=10, assured=7, next_sequence=2, used_slots=set(MINUTES[:2])) == Cut(
        2, -7, MINUTES[2]
    )
