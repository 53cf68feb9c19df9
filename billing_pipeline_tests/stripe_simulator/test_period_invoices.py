"""Invoices of ended periods: a draft counts on for an hour, and what is final no longer changes."""

from __future__ import annotations

import pytest
import stripe


@pytest.fixture
def subscribed(account):
    client = account.client
    product = client.v1.products.create({"name": "API"})
    recurring = {"interval": "month", "usage_type": "metered", "meter": account.meter}
    price = client.v1.prices.create(
        {"currency": "usd", "product": product.id, "unit_amount_decimal": "0.25", "recurring": recurring}
    )
    return client.v1.subscriptions.create({"customer": account.customer, "items": [{"price": price.id}]})


def invoices(account, **params):
    """The invoices of ended periods; the one that a subscription begins with is left out."""
    listed = account.client.v1.invoices.list(params).data
    return [invoice for invoice in listed if invoice.billing_reason != "subscription_create"]


def end_period(account, subscription):
    account.client.v1.subscriptions.update(subscription.id, {"billing_cycle_anchor": "now"})


def test_an_ended_period_has_an_invoice_and_the_one_under_way_has_none(account, subscribed):
    account.send(value="10", timestamp=account.now)
    assert invoices(account) == []

    account.clock.advance(days=32)

    [invoice] = invoices(account, customer=account.customer, subscription=subscribed.id)
    [line] = invoice.lines.data
    assert (line.quantity, line.amount, invoice.status) == (10, 3, "paid")
    assert line.period.end == invoice.created == subscribed["items"].data[0].current_period_end
    assert account.client.v1.invoices.retrieve(invoice.id).lines.data[0].id == line.id
    assert [found.id for found in account.client.v1.invoices.line_items.list(invoice.id).data] == [line.id]
    assert invoices(account, subscription="sub_other") == []


def test_a_draft_counts_on_until_it_is_final(account, subscribed):
    account.clock.advance(days=2)
    account.send(value="10", timestamp=account.now - 60)
    end_period(account, subscribed)
    account.clock.advance(minutes=30)
    account.send(value="5", timestamp=account.now - 7200)

    [invoice] = invoices(account)
    assert (invoice.status, invoice.lines.data[0].quantity) == ("draft", 15)
    assert invoice.status_transitions.finalized_at is None

    account.clock.advance(hours=1)
    account.send(value="7", timestamp=account.now - 10_000)
    [invoice] = invoices(account)
    assert (invoice.status, invoice.lines.data[0].quantity) == ("paid", 15)
    assert invoice.status_transitions.finalized_at == invoice.created + 3600


def test_a_canceled_subscription_has_a_last_invoice_and_no_more(account, subscribed):
    account.clock.advance(days=2)
    account.send(value="10", timestamp=account.now - 60)
    account.client.v1.subscriptions.cancel(subscribed.id)
    account.clock.advance(days=90)

    [invoice] = invoices(account)
    assert invoice.lines.data[0].quantity == 10


def test_several_periods_are_listed_newest_first(account, subscribed):
    account.clock.advance(days=95)

    created = [invoice.created for invoice in invoices(account)]
    assert len(created) == 3
    assert created == sorted(created, reverse=True)


def test_an_unknown_invoice_is_refused(account):
    for ask in (account.client.v1.invoices.retrieve, account.client.v1.invoices.line_items.list):
        with pytest.raises(stripe.InvalidRequestError, match="No such invoice: 'in_x'"):
            ask("in_x")
