"""What a person looks at before it is stated: an hour's worth, a flush's, and what is taken back."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

from hypothesis import given
from hypothesis import strategies as st

from billing_pipeline.domain.brakes import (
    MeterBrakes,
    TakenBack,
    UsualHour,
    brake_adding,
    brake_taking_back,
    brakes_of,
    is_too_much_taken_back,
    is_unusual,
)
from billing_pipeline.domain.catalogue import parse_catalogue
from billing_pipeline.domain.entries import HoldReason
from billing_pipeline.domain.holds import HOLDS

amounts = st.decimals(min_value=0, max_value=10**15, places=12, allow_nan=False)
units = st.integers(0, 10**15)
medians = st.builds(UsualHour, hours=st.integers(1, 672), median=amounts.filter(bool))
meters = st.builds(
    MeterBrakes,
    hour_max=st.none() | st.integers(1, 10**6),
    hour_factor=st.integers(0, 1_000),
    flush_max=st.none() | st.integers(1, 10**6),
)


def brake(**overrides):
    facts = {"target": 10, "stated": 0, "usual": None, "released_target": None, "brakes": MeterBrakes()} | overrides
    found = brake_adding(**{"units": Decimal(facts["target"])} | facts)
    return None if found is None else found.reason


def test_an_hour_over_hour_max_waits_until_a_person_has_let_it_come_so_far():
    brakes = MeterBrakes(hour_max=100)
    assert brake(target=100, brakes=brakes) is None
    assert brake(target=101, brakes=brakes) is HoldReason.OVER_HOUR_MAX
    assert brake(target=101, stated=100, brakes=brakes) is HoldReason.OVER_HOUR_MAX
    assert brake(target=101, brakes=brakes, released_target=101) is None
    assert brake(target=102, brakes=brakes, released_target=101) is HoldReason.OVER_HOUR_MAX
    # What was released below a brake that was raised since is no brake of its own.
    assert brake(target=102, brakes=MeterBrakes(hour_max=200), released_target=101) is None
    # Taking back is not asked about here.
    assert brake(target=150, stated=200, brakes=brakes) is None


def test_an_hour_is_judged_by_all_it_has_come_to():
    usual, brakes = UsualHour(24, Decimal(10)), MeterBrakes(hour_factor=100)
    assert brake(target=1_000, usual=usual, brakes=brakes) is None
    assert brake(target=1_001, usual=usual, brakes=brakes) is HoldReason.OVER_USUAL
    assert brake(target=1_001, stated=1_000, usual=usual, brakes=brakes) is HoldReason.OVER_USUAL
    # On a first day nothing is known.
    assert brake(target=1_001, usual=UsualHour(23, Decimal(10)), brakes=brakes) is None
    assert brake(target=1_001, usual=None, brakes=brakes) is None
    assert brake(target=1_001, usual=usual, brakes=MeterBrakes(hour_factor=0)) is None


def test_a_carried_unit_makes_no_hour_unusual_and_a_fraction_is_compared_whole():
    usual, brakes = UsualHour(24, Decimal("0.004")), MeterBrakes(hour_factor=100)
    assert brake(target=1, units=Decimal("0.4"), usual=usual, brakes=brakes) is None
    assert brake(target=1, units=Decimal("0.400000000001"), usual=usual, brakes=brakes) is HoldReason.OVER_USUAL


def test_a_flush_over_flush_max_holds_all_that_it_would_add():
    brakes = MeterBrakes(flush_max=1_000)
    assert brake(target=1, brakes=brakes, flush_adds=Decimal(1_000)) is None
    assert brake(target=1, brakes=brakes, flush_adds=Decimal(1_001)) is HoldReason.OVER_FLUSH_MAX
    assert brake(target=1, brakes=brakes, flush_adds=Decimal(1_001), released_target=1) is None
    assert brake(target=1, stated=2, brakes=brakes, flush_adds=Decimal(1_001)) is None


@given(target=units, stated=units, hour=amounts, usual=medians, brakes=meters, adds=amounts)
def test_what_is_released_passes_every_brake_up_to_there_and_none_beyond(target, stated, hour, usual, brakes, adds):
    facts = {"units": hour, "usual": usual, "brakes": brakes, "flush_adds": adds, "stated": stated}
    held = brake(target=target, **facts)

    assert brake(target=target, **facts, released_target=target) is None
    if held is not None:
        assert target > stated
        assert brake(target=target, **facts, released_target=target - 1) is held
        assert brake(target=target + 1, **facts, released_target=target) is not None


@given(hour=amounts, usual=medians, factor=st.integers(0, 10**6))
def test_the_comparison_with_the_usual_hour_is_exact(hour, usual, factor):
    share = Fraction(hour) / Fraction(usual.median)

    assert is_unusual(hour, usual, factor) == (usual.hours >= 24 and factor > 0 and share > factor)


@given(hour=amounts, more=amounts, usual=medians, factor=st.integers(1, 10**6))
def test_more_usage_is_never_less_unusual(hour, more, usual, factor):
    assert is_unusual(hour + more, usual, factor) >= is_unusual(hour, usual, factor)


@given(stated=st.lists(st.integers(1, 10**6), min_size=1, max_size=60), percent=st.integers(0, 100), data=st.data())
def test_taking_back_is_too_much_by_windows_or_by_units_and_never_below_ten_windows(stated, percent, data):
    number = data.draw(st.integers(0, len(stated)))
    kept = [data.draw(st.integers(0, max(was - 1, 0))) for was in stated[:number]]
    fallen = sum(stated[:number]) - sum(kept)
    taken = TakenBack("tokens", number, Decimal(fallen), len(stated), Decimal(sum(stated)))
    is_share = Fraction(number, len(stated)) * 100 > percent or Fraction(fallen, sum(stated)) * 100 > percent

    assert is_too_much_taken_back(taken, percent) == (number >= 10 and is_share)
    assert not is_too_much_taken_back(taken, 100)
    found = brake_taking_back(taken, percent)
    assert (found is not None) == (number >= 10 and is_share)


def test_what_exceeded_a_limit_is_told_in_numbers():
    usual = UsualHour(340, Decimal("12.50"))
    facts = {"stated": 0, "units": Decimal(5_000), "usual": usual, "released_target": None}
    found = brake_adding(target=5_000, brakes=MeterBrakes(hour_factor=100), **facts)
    assert found is not None
    assert found.detail == "the hour has 5,000 units, more than 100 times 12.5, the median of 340 hours"

    found = brake_taking_back(TakenBack("tokens", 12, Decimal(600), 40, Decimal(2_000)), 20)
    assert found is not None
    assert found.detail == (
        "one flush would take back 600 of 2,000 units, from 12 of 40 windows; at most 20 percent may be"
    )


def test_a_meter_may_have_another_factor_or_none():
    text = "".join(
        f'[meters.{name}]\nevent_types = ["{name}"]\naggregation = "sum"\n{keys}\n'
        for name, keys in (("a", ""), ("b", "hour_factor = 7\nflush_max = 5"), ("c", "hour_factor = 0\nhour_max = 3"))
    )
    brakes = brakes_of(parse_catalogue(text, origin="m"), hour_factor=100, taken_back_percent=20)

    assert brakes.meters == {
        "a": MeterBrakes(hour_factor=100),
        "b": MeterBrakes(hour_factor=7, flush_max=5),
        "c": MeterBrakes(hour_max=3),
    }


def test_every_reason_has_words_for_a_person():
    assert set(HOLDS) == set(HoldReason)
