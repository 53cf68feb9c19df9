"""Checkout sessions: what completing one makes, and what an open one may still become."""

from __future__ import annotations

import pytest
import stripe

from billing_pipeline_tests.fix_simulator import KEY
from billing_pipeline_tests.stripe_simulator.lives import NEVER_PAYS, make_shop


@pytest.fixture
def shop():
    return make_shop()


def open_session(shop, **params):
    return shop.client.checkout.sessions.create(
        {
            "mode": "subscription",
            "success_url": "https://x.test/done",
            "client_reference_id": "org_1",
            "line_items": [{"price": shop.seats, "quantity": 2}, {"price": shop.calls}],
            "metadata": {"tenant_id": "org_1"},
            "subscription_data": {"metadata": {"plan": "pro"}},
            **params,
        }
    )


def control(shop, session, what, **params):
    return shop.account.core.handle("POST", f"/_control/checkout/sessions/{session.id}/{what}", params, key=KEY)


def test_completing_a_session_makes_the_customer_and_the_subscription(shop):
    session = open_session(shop, customer_email="a@x.test")
    assert (session.status, session.payment_status, session.subscription) == ("open", "unpaid", None)
    before = shop.mark()
    assert control(shop, session, "complete").status == 200

    assert shop.told_since(before) == [
        "customer.created",
        "customer.subscription.created",
        "invoice.created",
        "invoice.finalized",
        "invoice.updated",
        "invoice.paid",
        "invoice.payment_succeeded",
        "checkout.session.completed",
    ]
    done = shop.client.checkout.sessions.retrieve(session.id)
    assert (done.status, done.payment_status, done.client_reference_id) == ("complete", "paid", "org_1")
    assert shop.client.customers.retrieve(done.customer).email == "a@x.test"
    subscription = shop.client.subscriptions.retrieve(done.subscription)
    assert (subscription.customer, subscription.metadata.to_dict()) == (done.customer, {"plan": "pro"})
    assert (subscription.status, subscription.latest_invoice) == ("active", done.invoice)
    assert subscription["items"].data[0].quantity == 2
    assert done.amount_total == shop.client.invoices.retrieve(done.invoice).total == 2000
    assert shop.events()[-1]["data"]["object"] == done.to_dict()


def test_a_session_of_a_known_customer_makes_no_other(shop):
    session = open_session(shop, customer=shop.account.customer)
    control(shop, session, "complete")

    assert shop.client.checkout.sessions.retrieve(session.id).customer == shop.account.customer
    assert len(shop.client.customers.list().data) == 1


def test_a_trial_needs_no_payment(shop):
    session = open_session(shop, subscription_data={"trial_period_days": 7})
    control(shop, session, "complete")

    done = shop.client.checkout.sessions.retrieve(session.id)
    assert done.payment_status == "no_payment_required"
    assert shop.client.subscriptions.retrieve(done.subscription).status == "trialing"


def test_a_card_that_never_pays_completes_nothing(shop):
    shop.client.customers.update(shop.account.customer, NEVER_PAYS)
    session = open_session(shop, customer=shop.account.customer)
    before = shop.mark()

    assert control(shop, session, "complete").status == 402
    assert shop.told_since(before) == []
    assert shop.client.checkout.sessions.retrieve(session.id).status == "open"


def test_an_open_session_expires_by_itself_or_by_a_person_and_only_once(shop):
    left, expired, done = (open_session(shop) for _ in range(3))
    shop.client.checkout.sessions.expire(expired.id)
    control(shop, done, "complete")
    assert control(shop, expired, "complete").status == 400
    shop.advance(hours=24)

    statuses = [shop.client.checkout.sessions.retrieve(s.id).status for s in (left, expired, done)]
    assert statuses == ["expired", "expired", "complete"]
    assert shop.told(type="checkout.session.expired") == ["checkout.session.expired"] * 2
    with pytest.raises(stripe.InvalidRequestError, match="already complete"):
        shop.client.checkout.sessions.expire(done.id)
    assert [s.id for s in shop.client.checkout.sessions.list({"status": "complete"}).data] == [done.id]


@pytest.mark.parametrize(
    ("params", "param"),
    [
        ({"mode": "payment"}, "mode"),
        ({"customer": "cus_x"}, "customer"),
        ({"line_items": [{"price": "price_x"}]}, "items[price]"),
        ({"expires_at": 1}, "expires_at"),
    ],
)
def test_a_session_that_could_not_be_completed_is_refused(shop, params, param):
    with pytest.raises(stripe.InvalidRequestError) as caught:
        open_session(shop, **params)

    assert caught.value.param == param


def test_the_control_needs_a_key(shop):
    session = open_session(shop)
    answer = shop.account.core.handle("POST", f"/_control/checkout/sessions/{session.id}/complete")

    assert answer.status == 401
