"""A unit of a meter costs what its one price says, or nobody can say."""

from __future__ import annotations

from decimal import Decimal

import pytest

from billing_pipeline.domain.prices import UnitPrice
from billing_pipeline.errors import StripeUnavailable
from billing_pipeline.stripe_api.catalogue import set_up_catalogue
from billing_pipeline.stripe_api.client import make_client
from billing_pipeline.stripe_api.prices import unit_prices
from billing_pipeline_tests.fix_aggregation import TOKENS, catalogue_of


@pytest.fixture
def meter_id(simulator, settings):
    client = simulator.client()
    set_up_catalogue(client, settings, catalogue_of(TOKENS))
    return client.v1.billing.meters.list().data[0].id


def add_price(simulator, meter_id, **params):
    client = simulator.client()
    product = client.v1.products.create({"name": "tokens"})
    recurring = {"interval": "month", "usage_type": "metered", "meter": meter_id}
    return client.v1.prices.create({"currency": "usd", "product": product.id, "recurring": recurring} | params)


def asked(simulator, settings, meter_id):
    return unit_prices(make_client(settings), settings, {"tokens": meter_id})["tokens"]


def test_the_one_active_price_is_exact(simulator, settings, meter_id):
    add_price(simulator, meter_id, unit_amount_decimal="0.000000000001")

    assert asked(simulator, settings, meter_id) == UnitPrice("usd", Decimal("0.000000000001"))


def test_no_price_and_several_prices_are_unknown(simulator, settings, meter_id):
    assert asked(simulator, settings, meter_id) is None

    add_price(simulator, meter_id, unit_amount=2, active=False)
    assert asked(simulator, settings, meter_id) is None

    add_price(simulator, meter_id, unit_amount=2)
    assert asked(simulator, settings, meter_id) == UnitPrice("usd", Decimal(2))

    add_price(simulator, meter_id, unit_amount=2, currency="eur")
    assert asked(simulator, settings, meter_id) is None


@pytest.mark.parametrize(
    "change",
    [
        {"billing_scheme": "tiered", "unit_amount_decimal": None, "tiers_mode": "graduated"},
        {"transform_quantity": {"divide_by": 1000, "round": "up"}},
    ],
)
def test_tiers_and_packages_have_no_price_per_unit(simulator, settings, meter_id, change):
    # The simulator makes no such prices, so the stored one is made into what Stripe shows of them.
    price = add_price(simulator, meter_id, unit_amount=2)
    simulator.core.state.find("price", price.id).update(change)

    assert asked(simulator, settings, meter_id) is None


def test_a_stripe_that_does_not_answer_is_told(settings):
    away = settings.model_copy(update={"stripe_api_base": "http://127.0.0.1:1"})

    with pytest.raises(StripeUnavailable):
        unit_prices(make_client(away), away, {"tokens": "mtr_1"})
