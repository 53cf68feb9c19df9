"""Every unit between the source and Stripe is in exactly one named difference, and no fault hides behind another."""

from __future__ import annotations

from dataclasses import fields
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from billing_pipeline.domain.differences import DifferenceKind, HourShown, Sides, differences, with_hours

COMPUTED = {"observed", "shown_early", "excess", "shortfall"}
AMOUNTS = [field.name for field in fields(Sides) if field.type == "Decimal" and field.name not in COMPUTED]
values = st.lists(st.integers(-50, 50), max_size=4)


def sides(**amounts: int) -> Sides:
    return Sides("acme", "tokens", **{name: Decimal(amount) for name, amount in amounts.items()})


def hour(observed: int, confirmed: int, **amounts: int) -> HourShown:
    others = dict.fromkeys(("open_added", "open_taken", "later_added", "later_taken"), Decimal(0))
    given_amounts = {name: Decimal(amount) for name, amount in amounts.items()}
    return HourShown(
        "acme", "tokens", observed=Decimal(observed), confirmed=Decimal(confirmed), **(others | given_amounts)
    )


def faults(found):
    return [(difference.kind, difference.units) for difference in found if difference.is_fault]


def test_equal_sides_have_no_difference():
    equal = sides(source_units=5, counted_units=5, target=5, stated=5, confirmed=5)

    assert differences(with_hours(equal, [])) == []


@given(
    amounts=st.fixed_dictionaries({name: st.integers(0, 10**6) for name in AMOUNTS}),
    hours=st.lists(st.builds(hour, *[st.integers(-100, 100)] * 2, open_added=st.integers(0, 9)), max_size=5),
)
def test_the_differences_add_up_to_source_minus_stripe(amounts, hours):
    # The ledger's own parts always add up: what is stated is in flight, unconfirmed or confirmed.
    amounts["stated"] = amounts["in_flight"] + amounts["unconfirmed"] + amounts["confirmed"]
    shown = with_hours(sides(**amounts), hours)

    found = differences(shown)

    assert sum(difference.units for difference in found) == amounts["source_units"] - shown.observed


@given(settled=values, later=values, unsettled=values, data=st.data())
def test_whatever_stripe_shows_of_what_was_sent_is_no_fault(settled, later, unsettled, data):
    """The summary holds all that was confirmed before it was read, and any part of the rest."""
    shown = [value for value in later + unsettled if data.draw(st.booleans())]
    found = hour(
        observed=sum(settled) + sum(shown),
        confirmed=sum(settled) + sum(later),
        open_added=sum(value for value in unsettled if value > 0),
        open_taken=sum(value for value in unsettled if value < 0),
        later_added=sum(value for value in later if value > 0),
        later_taken=sum(value for value in later if value < 0),
    )

    assert found.is_possible
    assert found.unexplained == 0


@given(confirmed=st.integers(0, 99), open_added=st.integers(0, 99), beyond=st.integers(1, 99), data=st.data())
def test_what_stripe_shows_beyond_anything_sent_is_a_fault(confirmed, open_added, beyond, data):
    observed = data.draw(st.sampled_from([confirmed + open_added + beyond, confirmed - beyond]))

    found = differences(with_hours(sides(confirmed=confirmed), [hour(observed, confirmed, open_added=open_added)]))

    assert faults(found) == [(DifferenceKind.UNEXPLAINED, confirmed - observed)]


def test_five_too_many_in_one_hour_do_not_pass_for_five_in_flight_in_another():
    whole = sides(source_units=105, counted_units=105, target=105, stated=105, confirmed=100, unconfirmed=5)

    found = differences(with_hours(whole, [hour(observed=105, confirmed=100)]))

    assert faults(found) == [(DifferenceKind.UNEXPLAINED, -5)]


def test_too_many_in_one_hour_do_not_make_up_for_too_few_in_another():
    found = differences(with_hours(sides(confirmed=20), [hour(15, 10), hour(5, 10)]))

    assert faults(found) == [(DifferenceKind.UNEXPLAINED, -5), (DifferenceKind.UNEXPLAINED, 5)]


def test_an_accepted_entry_that_stripe_shows_before_it_is_confirmed_is_no_fault():
    early = sides(source_units=5, counted_units=5, target=5, stated=5, unconfirmed=5)

    assert differences(with_hours(early, [hour(observed=5, confirmed=0, open_added=5)])) == []


def test_a_negative_entry_that_stripe_shows_before_it_is_confirmed_is_no_fault():
    taken_back = sides(confirmed=10, unconfirmed=-10)

    assert differences(with_hours(taken_back, [hour(observed=0, confirmed=10, open_taken=-10)])) == []


def test_an_hour_read_before_its_entry_was_confirmed_is_covered_by_the_confirmation():
    stale = sides(source_units=10, counted_units=10, target=10, stated=10, confirmed=10)

    assert differences(with_hours(stale, [hour(observed=0, confirmed=10, later_added=10)])) == []


@pytest.mark.parametrize("name", ["lost", "gained"])
def test_a_whole_unit_that_fractions_do_not_account_for_is_a_fault(name):
    units = 1 if name == "lost" else -1

    found = differences(sides(counted_units=5, source_units=5, target=5 - units, stated=5 - units, **{name: units}))

    assert faults(found) == [(DifferenceKind.MISCARRIED, units)]
    assert DifferenceKind.FRACTION not in {difference.kind for difference in found}
