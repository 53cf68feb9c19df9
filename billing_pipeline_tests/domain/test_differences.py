"""Every unit between the source and Stripe is in exactly one named difference."""

from __future__ import annotations

from dataclasses import fields
from decimal import Decimal

from hypothesis import given
from hypothesis import strategies as st

from billing_pipeline.domain.differences import DifferenceKind, Sides, differences

AMOUNTS = [field.name for field in fields(Sides) if field.type == "Decimal"]


def sides(**amounts: int) -> Sides:
    zeros = dict.fromkeys(AMOUNTS, Decimal(0))
    given_amounts = {name: Decimal(amount) for name, amount in amounts.items()}
    return Sides(organization_id="acme", meter="tokens", source_events=1, **(zeros | given_amounts))


def test_equal_sides_have_no_difference():
    equal = sides(source_units=5, counted_units=5, target=5, stated=5, confirmed=5, observed=5)

    assert differences(equal) == []


@given(amounts=st.fixed_dictionaries({name: st.integers(0, 10**6) for name in AMOUNTS}))
def test_the_differences_add_up_to_source_minus_stripe(amounts):
    # The ledger's own parts always add up: what is stated is in flight, unconfirmed or confirmed.
    amounts["stated"] = amounts["in_flight"] + amounts["unconfirmed"] + amounts["confirmed"]

    found = differences(sides(**amounts))

    assert sum(difference.units for difference in found) == amounts["source_units"] - amounts["observed"]


def test_what_stripe_shows_beyond_anything_sent_is_a_fault():
    found = differences(sides(source_units=5, counted_units=5, target=5, stated=5, confirmed=5, observed=9))

    assert [(difference.kind, difference.units, difference.is_fault) for difference in found] == [
        (DifferenceKind.UNEXPLAINED, -4, True)
    ]


def test_an_accepted_entry_that_stripe_shows_before_it_is_confirmed_is_no_fault():
    early = sides(source_units=5, counted_units=5, target=5, stated=5, unconfirmed=5, observed=5)

    assert differences(early) == []
