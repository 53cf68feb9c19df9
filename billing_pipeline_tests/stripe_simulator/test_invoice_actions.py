"""What a person may do to an invoice, and to which."""

from __future__ import annotations

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
    return shop.client.invoices.list({"status": "draft"}).data[0].id


def test_a_draft_can_be_made_final_before_its_time_and_is_collected(shop, draft):
    before = shop.mark()
    final = shop.client.invoices.finalize_invoice(draft)

    assert (final.status, final.status_transitions.finalized_at) == ("paid", shop.account.now)
    assert "invoice.finalized" in shop.told_since(before)
    assert final.number is not None
    with pytest.raises(stripe.InvalidRequestError, match="is paid"):
        shop.client.invoices.finalize_invoice(draft)


def test_a_draft_that_does_not_advance_waits(shop, draft):
    shop.client.invoices.update(draft, {"auto_advance": False})
    shop.advance(days=3)
    assert shop.client.invoices.retrieve(draft).status == "draft"
    shop.client.invoices.update(draft, {"automatically_finalizes_at": shop.account.now + 60, "auto_advance": True})
    shop.advance(minutes=2)

    assert shop.client.invoices.retrieve(draft).status == "paid"


def test_an_open_invoice_is_voided_and_only_that(shop, draft):
    with pytest.raises(stripe.InvalidRequestError, match="is draft"):
        shop.client.invoices.void_invoice(draft)
    shop.client.invoices.finalize_invoice(draft, {"auto_advance": False})
    voided = shop.client.invoices.void_invoice(draft)

    assert (voided.status, voided.status_transitions.voided_at) == ("void", shop.account.now)
    assert shop.told()[-2:] == ["invoice.updated", "invoice.voided"]
    assert [i.id for i in shop.client.invoices.list({"status": "void"}).data] == [draft]


def test_paid_elsewhere_is_paid_but_no_payment_succeeded(shop, draft):
    shop.client.invoices.finalize_invoice(draft, {"auto_advance": False})
    before = shop.mark()
    shop.client.invoices.pay(draft, {"paid_out_of_band": True})

    assert shop.told_since(before) == ["invoice.updated", "invoice.paid"]


def test_an_uncollectible_invoice_may_still_be_paid(shop, draft):
    shop.client.invoices.finalize_invoice(draft, {"auto_advance": False})
    assert shop.client.invoices.mark_uncollectible(draft).status == "uncollectible"
    assert shop.client.invoices.pay(draft).status == "paid"


def test_a_draft_of_its_own_can_be_deleted_and_one_of_a_subscription_cannot(shop, draft):
    own = shop.client.invoices.create({"customer": shop.account.customer}).id
    assert shop.client.invoices.delete(own).deleted is True
    assert shop.told()[-1] == "invoice.deleted"
    assert own not in {invoice.id for invoice in shop.client.invoices.list().data}

    with pytest.raises(stripe.InvalidRequestError, match="cannot be deleted"):
        shop.client.invoices.delete(draft)


def test_of_many_lines_ten_are_embedded_and_all_are_listed(shop):
    subscription = shop.subscribe(*(shop.price() for _ in range(13)))
    invoice = shop.client.invoices.retrieve(subscription.latest_invoice)
    [created] = shop.events(type="invoice.created")

    assert (len(invoice.lines.data), invoice.lines.has_more) == (10, True)
    assert created["data"]["object"]["lines"]["has_more"] is True
    assert len(list(shop.client.invoices.line_items.list(invoice.id, {"limit": 5}).auto_paging_iter())) == 13
    assert invoice.total == 13_000
