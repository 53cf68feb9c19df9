"""An invoice item is a line of a draft: it stays when the meters are counted anew, and is final with its invoice."""

from __future__ import annotations

from decimal import Decimal

import pytest
import stripe

from billing_pipeline_tests.stripe_simulator.lives import make_shop


@pytest.fixture
def shop():
    return make_shop()


@pytest.fixture
def draft(shop):
    """The draft of a period that has just ended."""
    subscription = shop.subscribe()
    shop.advance(seconds=subscription["items"].data[0].current_period_end - shop.account.now)
    return shop.client.invoices.list({"status": "draft"}).data[0]


def add(shop, draft, price="0.5", quantity=7, key=None, **more):
    params = {
        "customer": draft.customer,
        "invoice": draft.id,
        "quantity": quantity,
        "unit_amount_decimal": Decimal(price),
        "metadata": {"adjustment": "one"},
        **more,
    }
    return shop.client.invoice_items.create(params, {"idempotency_key": key} if key else {})


def test_an_item_is_a_line_of_the_draft_and_of_the_final_invoice(shop, draft):
    item = add(shop, draft, price="2.5", description="usage of October")
    shop.advance(hours=2)
    final = shop.client.invoices.retrieve(draft.id)
    line = final.lines.data[-1]

    assert (item.amount, final.status) == (18, "paid")
    assert line.parent.invoice_item_details.invoice_item == item.id
    assert (line.amount, line.quantity, line.description) == (18, 7, "usage of October")
    assert final.total == draft.total + 18
    assert "invoice.updated" in shop.told()


def test_a_negative_price_takes_from_what_is_due(shop, draft):
    add(shop, draft, price="-0.5", quantity=4)

    assert shop.client.invoices.retrieve(draft.id).total == draft.total - 2


def test_the_same_key_makes_one_item_and_the_list_shows_it(shop, draft):
    first, second = add(shop, draft, key="k"), add(shop, draft, key="k")
    other = add(shop, draft, metadata={"adjustment": "two"})
    listed = shop.client.invoice_items.list({"invoice": draft.id}).data

    assert first.id == second.id
    assert [item.id for item in listed] == [other.id, first.id]
    assert listed[0].metadata["adjustment"] == "two"
    assert shop.client.invoice_items.list({"customer": "cus_nobody"}).data == []


def test_an_invoice_that_is_final_takes_no_item(shop, draft):
    shop.client.invoices.finalize_invoice(draft.id)

    with pytest.raises(stripe.InvalidRequestError, match="items are added to drafts only"):
        add(shop, draft)


def test_another_customer_s_invoice_or_currency_is_refused(shop, draft):
    with pytest.raises(stripe.InvalidRequestError, match="No such invoice"):
        add(shop, draft, customer="cus_other")
    with pytest.raises(stripe.InvalidRequestError, match="is in usd"):
        add(shop, draft, currency="eur")
