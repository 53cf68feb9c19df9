"""Periods of metered items, in both shapes that Stripe has had, from one listing."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from billing_pipeline.errors import StripeRefused
from billing_pipeline.settings import load_settings
from billing_pipeline.stripe_api.subscriptions import ItemPeriod, item_periods, parse_item_periods
from billing_pipeline_tests.stripe_simulator.conftest import make_account

METERS = {"mtr_1": "api_calls"}
MARCH, APRIL = datetime(2026, 3, 1, 10, 37, 12, tzinfo=UTC), datetime(2026, 4, 1, 10, 37, 12, tzinfo=UTC)
PERIOD = {"current_period_start": int(MARCH.timestamp()), "current_period_end": int(APRIL.timestamp())}


def item(**fields):
    return {"id": "si_1", "price": {"recurring": {"meter": "mtr_1"}}} | fields


def subscription(**fields):
    return {"id": "sub_1", "customer": "cus_1", "ended_at": None} | fields


@pytest.mark.parametrize(
    ("body", "items"),
    [
        (subscription(), [item(**PERIOD)]),
        (subscription(**PERIOD), [item()]),
        (subscription(customer={"id": "cus_1", "object": "customer"}), [item(**PERIOD)]),
    ],
    ids=["since 2025-03-31", "before 2025-03-31", "customer expanded"],
)
def test_the_period_is_read_where_the_api_version_has_it(body, items):
    assert list(parse_item_periods(body, items, METERS)) == [ItemPeriod("si_1", "cus_1", "api_calls", MARCH, APRIL)]


@pytest.mark.parametrize(
    "other", [{"recurring": {"meter": None}}, {"recurring": None}, {"recurring": {"meter": "mtr_archived"}}, None]
)
def test_items_that_no_meter_of_ours_prices_are_left_out(other):
    assert list(parse_item_periods(subscription(), [item(price=other, **PERIOD)], METERS)) == []


@pytest.mark.parametrize(
    ("ended_at", "ends_at"),
    [(MARCH + timedelta(days=3), MARCH + timedelta(days=3)), (APRIL, APRIL), (MARCH - timedelta(days=1), MARCH)],
)
def test_a_canceled_subscriptions_period_ends_when_it_ended(ended_at, ends_at):
    ended = subscription(ended_at=int(ended_at.timestamp()))

    [found] = parse_item_periods(ended, [item(**PERIOD)], METERS)

    assert (found.starts_at, found.ends_at) == (MARCH, ends_at)


def test_an_item_without_a_period_is_named():
    with pytest.raises(StripeRefused, match="sub_1 has no current_period_start on its item si_1"):
        list(parse_item_periods(subscription(), [item()], METERS))


def test_one_listing_serves_all_customers_page_by_page():
    account = make_account()
    client, settings = account.client, load_settings()
    product = client.v1.products.create({"name": "API"}).id
    recurring = {"interval": "month", "usage_type": "metered", "meter": account.meter}
    price = {"currency": "usd", "product": product, "unit_amount": 1, "recurring": recurring}
    prices = [client.v1.prices.create(price).id for _ in range(11)]
    for _ in range(105):
        client.v1.subscriptions.create({"customer": account.customer, "items": [{"price": prices[0]}]})
    client.v1.subscriptions.create({"customer": account.customer, "items": [{"price": price} for price in prices]})
    requests = []
    begin = account.core.begin
    account.core.begin = lambda request: requests.append(request.path) or begin(request)

    def read(since):
        return item_periods(client, settings, {account.meter: "api_calls"}, ended_since=since)

    found = read(account.clock())

    assert len({period.subscription_item_id for period in found}) == len(found) == 116
    assert requests == ["/v1/subscriptions", "/v1/subscription_items", "/v1/subscriptions"]
    assert read(account.clock() + timedelta(days=32)) == []
