"""Products, prices, meters, customers and subscriptions, through the official SDK."""

from __future__ import annotations

import pytest
import stripe

from billing_pipeline.stripe_simulator.billing_periods import add_months


@pytest.fixture
def price(account):
    product = account.client.v1.products.create({"name": "API"})
    return account.client.v1.prices.create(metered(product.id, account.meter))


def metered(product, meter, **overrides):
    recurring = {"interval": "month", "usage_type": "metered", "meter": meter}
    return {"currency": "usd", "product": product, "unit_amount_decimal": "0.05", "recurring": recurring, **overrides}


def refusal(call, *args):
    with pytest.raises(stripe.InvalidRequestError) as caught:
        call(*args)
    return caught.value


def test_product_and_price_can_be_read_back(account, price):
    assert account.client.v1.prices.retrieve(price.id).to_dict() == price.to_dict()
    assert account.client.v1.products.retrieve(price.product).name == "API"
    assert (price.unit_amount, str(price.unit_amount_decimal), price.recurring.meter) == (None, "0.05", account.meter)
    assert (price.type, price.livemode) == ("recurring", False)


def test_whole_amount_is_shown_both_ways(account, price):
    whole = account.client.v1.prices.create({"currency": "USD", "product": price.product, "unit_amount": 300})

    assert (whole.unit_amount, str(whole.unit_amount_decimal), whole.type) == (300, "300", "one_time")
    assert whole.currency == "usd"


def test_prices_are_found_by_lookup_key_product_and_meter(account, price):
    prices = account.client.v1.prices
    keyed = prices.create(metered(price.product, account.meter, lookup_key="api"))

    assert [p.id for p in prices.list({"lookup_keys": ["api"]}).data] == [keyed.id]
    assert [p.id for p in prices.list({"recurring": {"meter": account.meter}}).data] == [keyed.id, price.id]
    assert prices.list({"product": "prod_other"}).data == []
    assert "already uses that lookup key" in str(
        refusal(prices.create, metered(price.product, account.meter, lookup_key="api"))
    )


@pytest.mark.parametrize(
    ("overrides", "param"),
    [
        ({"recurring": {"interval": "month", "usage_type": "metered"}}, "recurring[meter]"),
        ({"recurring": {"interval": "month", "meter": "mtr_x"}}, "recurring[usage_type]"),
        ({"recurring": {"interval": "month", "usage_type": "metered", "meter": "mtr_x"}}, "recurring[meter]"),
        ({"product": "prod_x"}, "product"),
        ({"unit_amount": 5}, "unit_amount"),
        ({"unit_amount_decimal": "0.0000000000001"}, "unit_amount_decimal"),
        ({"tiers_mode": "graduated"}, "tiers_mode"),
    ],
)
def test_price_that_cannot_bill_is_refused(account, price, overrides, param):
    error = refusal(account.client.v1.prices.create, {**metered(price.product, account.meter), **overrides})

    assert error.param == param


def test_product_id_can_be_chosen_once(account):
    account.client.v1.products.create({"id": "api", "name": "API"})

    assert refusal(account.client.v1.products.create, {"id": "api", "name": "API"}).code == "resource_already_exists"
    assert [p.id for p in account.client.v1.products.list({"ids": ["api"], "active": True}).data] == ["api"]


def test_event_name_has_one_active_meter_at_a_time(account):
    meters = account.client.v1.billing.meters
    again = {"display_name": "x", "event_name": "api_calls", "default_aggregation": {"formula": "count"}}

    assert refusal(meters.create, again).param == "event_name"

    meters.deactivate(account.meter)
    second = meters.create(again)

    assert refusal(meters.reactivate, account.meter).param == "event_name"
    assert [m.id for m in meters.list({"status": "active"}).data] == [second.id]
    assert [m.id for m in meters.list({"status": "inactive"}).data] == [account.meter]


def test_meter_can_only_change_its_display_name(account):
    meters = account.client.v1.billing.meters
    changed = meters.update(account.meter, {"display_name": "Calls"})

    assert meters.retrieve(account.meter).to_dict() == changed.to_dict()
    assert changed.display_name == "Calls"
    assert refusal(meters.update, account.meter, {"event_name": "other"}).code == "parameter_unknown"


def test_deactivated_meter_says_since_when(account):
    account.client.v1.billing.meters.deactivate(account.meter)
    meter = account.client.v1.billing.meters.retrieve(account.meter)

    assert (meter.status, meter.status_transitions.deactivated_at) == ("inactive", account.now)
    assert "already inactive" in str(refusal(account.client.v1.billing.meters.deactivate, account.meter))


def test_meter_defaults_are_those_of_stripe(account):
    meter = account.client.v1.billing.meters.retrieve(account.meter)

    assert meter.customer_mapping.to_dict() == {"event_payload_key": "stripe_customer_id", "type": "by_id"}
    assert meter.value_settings.event_payload_key == "value"
    assert meter.event_time_window is None


def test_customers_are_found_by_email_and_paged_newest_first(account):
    customers = account.client.v1.customers
    made = [customers.create({"email": f"{n % 2}@x.test"}).id for n in range(25)]

    assert [c.id for c in customers.list({"limit": 7}).auto_paging_iter()] == [*reversed(made), account.customer]
    assert [c.id for c in customers.list({"email": "1@x.test", "limit": 100}).data] == made[1::2][::-1]


def test_metadata_is_merged_and_an_empty_value_removes_its_key(account):
    customers = account.client.v1.customers
    id = customers.create({"metadata": {"organization": "acme", "plan": "pro"}}).id
    customers.update(id, {"metadata": {"plan": "", "seat": "1"}})

    assert customers.retrieve(id).metadata.to_dict() == {"organization": "acme", "seat": "1"}
    assert customers.update(id, {"metadata": ""}).metadata.to_dict() == {}


def test_deleted_customer_shows_its_stub_and_loses_its_subscriptions(account, price):
    client, customer = account.client.v1, account.customer
    subscription = client.subscriptions.create({"customer": customer, "items": [{"price": price.id}]})
    client.customers.delete(customer)

    assert client.customers.retrieve(customer).to_dict() == {"id": customer, "object": "customer", "deleted": True}
    assert client.customers.list().data == []
    assert client.subscriptions.retrieve(subscription.id).status == "canceled"
    assert refusal(client.customers.update, customer, {"name": "x"}).http_status == 404


def test_subscription_states_its_period_on_each_item(account, price):
    subscription = account.client.v1.subscriptions.create(
        {"customer": account.customer, "items": [{"price": price.id}], "expand": ["latest_invoice"]}
    )
    [item] = subscription["items"].data

    assert (item.current_period_start, item.current_period_end) == (account.now, add_months(account.now, 1))
    assert "current_period_start" not in subscription.to_dict()
    assert item.price.recurring.meter == account.meter
    assert "quantity" not in item.to_dict()


def test_period_rolls_with_the_clock(account, price):
    id = account.client.v1.subscriptions.create({"customer": account.customer, "items": [{"price": price.id}]}).id
    start = account.now
    account.clock.advance(days=40)
    [item] = account.client.v1.subscriptions.retrieve(id)["items"].data

    assert (item.current_period_start, item.current_period_end) == (add_months(start, 1), add_months(start, 2))


def test_anchor_ahead_makes_a_short_first_period(account, price):
    params = {"customer": account.customer, "items": [{"price": price.id}]}
    anchor = account.now + 86_400
    subscription = account.client.v1.subscriptions.create({**params, "billing_cycle_anchor": anchor})

    assert subscription["items"].data[0].current_period_end == anchor
    for wrong in (account.now - 1, add_months(account.now, 1) + 1):
        error = refusal(account.client.v1.subscriptions.create, {**params, "billing_cycle_anchor": wrong})
        assert error.param == "billing_cycle_anchor"


def test_canceled_subscription_keeps_the_period_it_ended_in(account, price):
    subscriptions = account.client.v1.subscriptions
    id = subscriptions.create({"customer": account.customer, "items": [{"price": price.id}]}).id
    ended = subscriptions.cancel(id)
    account.clock.advance(days=100)

    assert subscriptions.retrieve(id).to_dict() == ended.to_dict()
    assert (ended.status, ended.ended_at) == ("canceled", ended.canceled_at)
    assert subscriptions.list({"customer": account.customer}).data == []
    assert [s.id for s in subscriptions.list({"status": "canceled", "price": price.id}).data] == [id]
    assert refusal(subscriptions.cancel, id).http_status == 404


def test_an_anchor_reset_ends_the_period_now_and_begins_the_next(account, price):
    subscriptions = account.client.v1.subscriptions
    id = subscriptions.create({"customer": account.customer, "items": [{"price": price.id}]}).id
    account.clock.advance(days=10)

    subscriptions.update(id, {"billing_cycle_anchor": "unchanged", "metadata": {"plan": "pro"}})
    assert subscriptions.retrieve(id)["items"].data[0].current_period_start == account.now - 10 * 86_400

    [item] = subscriptions.update(id, {"billing_cycle_anchor": "now"})["items"].data
    assert (item.current_period_start, item.current_period_end) == (account.now, add_months(account.now, 1))
    assert subscriptions.retrieve(id).metadata.to_dict() == {"plan": "pro"}


def test_subscriptions_are_found_by_the_end_of_their_period(account, price):
    subscriptions = account.client.v1.subscriptions
    ended = subscriptions.create({"customer": account.customer, "items": [{"price": price.id}]}).id
    subscriptions.cancel(ended)
    account.clock.advance(days=40)
    going_on = subscriptions.create({"customer": account.customer, "items": [{"price": price.id}]}).id

    def found(**bounds):
        return [s.id for s in subscriptions.list({"status": "all", "current_period_end": bounds}).data]

    assert found(gte=0) == [going_on, ended]
    assert found(gte=account.now) == [going_on]
    assert found(lt=account.now) == [ended]
    assert found(gt=account.now, lte=add_months(account.now, 1)) == [going_on]


def test_items_beyond_the_first_page_are_listed_by_themselves(account, price):
    prices = [account.client.v1.prices.create(metered(price.product, account.meter)).id for _ in range(12)]
    id = account.client.v1.subscriptions.create(
        {"customer": account.customer, "items": [{"price": price} for price in prices]}
    ).id
    embedded = account.client.v1.subscriptions.retrieve(id)["items"]

    assert (len(embedded.data), embedded.has_more) == (10, True)
    assert [item.price.id for item in embedded.auto_paging_iter()] == prices
    assert refusal(account.client.v1.subscription_items.list, {"subscription": "sub_x"}).param == "subscription"


@pytest.mark.parametrize(
    ("overrides", "param"),
    [
        ({"customer": "cus_x"}, "customer"),
        ({"items": [{"price": "price_x"}]}, "items[price]"),
        ({"trial_period_days": 0}, "trial_period_days"),
        ({"days_until_due": 3}, "days_until_due"),
    ],
)
def test_subscription_that_cannot_bill_is_refused(account, price, overrides, param):
    params = {"customer": account.customer, "items": [{"price": price.id}], **overrides}

    assert refusal(account.client.v1.subscriptions.create, params).param == param


def test_metered_item_takes_no_quantity(account, price):
    items = [{"price": price.id, "quantity": 3}]

    assert (
        refusal(account.client.v1.subscriptions.create, {"customer": account.customer, "items": items}).param
        == "items[quantity]"
    )


@pytest.mark.parametrize("service", ["products", "prices", "customers", "subscriptions"])
def test_unknown_id_in_the_path_is_404(account, service):
    error = refusal(getattr(account.client.v1, service).retrieve, "x_unknown")

    assert (error.http_status, error.code) == (404, "resource_missing")
    assert "x_unknown" in str(error)
