"""The preview of an invoice: quantities from the meters of the current period, and never below nothing."""

from __future__ import annotations

import pytest
import stripe


@pytest.fixture
def price(account):
    product = account.client.v1.products.create({"name": "API"})
    recurring = {"interval": "month", "usage_type": "metered", "meter": account.meter}
    return account.client.v1.prices.create(
        {"currency": "usd", "product": product.id, "unit_amount_decimal": "0.25", "recurring": recurring}
    )


@pytest.fixture
def subscribed(account, price):
    items = [{"price": price.id}]
    return account.client.v1.subscriptions.create({"customer": account.customer, "items": items})


def preview(account, subscription):
    return account.client.v1.invoices.create_preview({"subscription": subscription.id})


def use(account, value, ago=0):
    account.send(value=str(value), timestamp=account.now - ago)


def test_a_metered_line_is_what_the_meter_counted_in_the_period(account, subscribed, price):
    account.clock.advance(days=2)
    for value in (5, 7, -2):
        use(account, value)
    use(account, 100, ago=3 * 86_400)

    invoice = preview(account, subscribed)
    [line] = invoice.lines.data
    # 2.5 minor units; half a unit is rounded up.
    assert (line.quantity, line.amount, invoice.total) == (10, 3, 3)
    assert line.pricing.price_details.price == price.id
    assert (line.period.start, line.period.end) == (
        subscribed["items"].data[0].current_period_start,
        subscribed["items"].data[0].current_period_end,
    )
    assert (invoice.status, invoice.customer) == ("draft", account.customer)


def test_a_quantity_below_nothing_is_nothing(account, subscribed):
    account.clock.advance(days=2)
    use(account, -3)

    assert preview(account, subscribed).lines.data[0].quantity == 0


def test_a_canceled_subscription_has_no_upcoming_invoice(account, subscribed):
    account.client.v1.subscriptions.cancel(subscribed.id)

    with pytest.raises(stripe.InvalidRequestError, match="has no upcoming invoice"):
        preview(account, subscribed)


def test_an_unknown_subscription_is_refused(account):
    with pytest.raises(stripe.InvalidRequestError, match="No such subscription: 'sub_x'"):
        account.client.v1.invoices.create_preview({"subscription": "sub_x"})
