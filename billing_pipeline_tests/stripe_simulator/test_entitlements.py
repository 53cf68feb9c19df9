"""Entitlements: a customer has the features of what it subscribes to, and every change is told."""

from __future__ import annotations

import pytest
import stripe

from billing_pipeline.stripe_simulator.entitlements import EVENT
from billing_pipeline.stripe_simulator.journal import FileJournal
from billing_pipeline_tests.fix_simulator import client_without_sockets, make_core
from billing_pipeline_tests.stripe_simulator.lives import NEVER_PAYS, make_shop


@pytest.fixture
def shop():
    return make_shop()


def feature(shop, lookup_key, *prices):
    made = shop.client.entitlements.features.create({"lookup_key": lookup_key, "name": lookup_key.title()})
    attached = [attach(shop, made.id, price).id for price in prices]
    return made, *attached


def attach(shop, id, price):
    return shop.client.products.features.create(product_of(shop, price), {"entitlement_feature": id})


def product_of(shop, price):
    return shop.client.prices.retrieve(price).product


def entitled(shop, customer=None):
    params = {"customer": customer or shop.account.customer, "limit": 1}
    listed = shop.client.entitlements.active_entitlements.list(params).auto_paging_iter()
    return sorted(entitlement.lookup_key for entitlement in listed)


def test_a_subscription_entitles_to_the_features_of_its_products(shop):
    feature(shop, "seats", shop.seats)
    feature(shop, "api", shop.seats, shop.calls)
    feature(shop, "other")
    assert entitled(shop) == []
    subscription = shop.subscribe()
    assert entitled(shop) == ["api", "seats"]

    told = shop.events(type=EVENT)
    assert len(told) == 1
    body = told[0]["data"]["object"]
    assert (body["object"], body["customer"]) == ("entitlements.active_entitlement_summary", shop.account.customer)
    assert "id" not in body
    assert sorted(e["lookup_key"] for e in body["entitlements"]["data"]) == ["api", "seats"]
    assert told[0]["data"]["previous_attributes"] == {"entitlements": {"data": []}}

    shop.client.subscriptions.update(
        subscription.id, {"items": [{"id": subscription["items"].data[0].id, "deleted": True}]}
    )
    assert entitled(shop) == ["api"]
    shop.client.subscriptions.cancel(subscription.id)
    assert entitled(shop) == []
    assert len(shop.told(type=EVENT)) == 3


def test_what_entitles_already_is_not_told_again(shop):
    feature(shop, "seats", shop.seats)
    first = shop.subscribe(shop.seats)
    shop.subscribe(shop.seats)
    shop.client.subscriptions.cancel(first.id)

    assert entitled(shop) == ["seats"]
    assert len(shop.told(type=EVENT)) == 1


def test_a_feature_of_a_product_reaches_its_subscribers_and_leaves_them(shop):
    shop.subscribe(shop.seats)
    made, attached = feature(shop, "seats", shop.seats)
    assert entitled(shop) == ["seats"]
    shop.client.products.features.delete(product_of(shop, shop.seats), attached)

    assert entitled(shop) == []
    assert len(shop.told(type=EVENT)) == 2
    assert shop.client.products.features.list(product_of(shop, shop.seats)).data == []
    with pytest.raises(stripe.InvalidRequestError, match="already exists"):
        shop.client.entitlements.features.create({"lookup_key": made.lookup_key, "name": "x"})


def test_an_unpaid_beginning_entitles_to_nothing(shop):
    feature(shop, "seats", shop.seats)
    shop.client.customers.update(shop.account.customer, NEVER_PAYS)
    shop.subscribe(shop.seats)
    assert entitled(shop) == []
    shop.client.customers.update(shop.account.customer, {"invoice_settings": {"default_payment_method": "pm_x"}})
    shop.client.invoices.pay(shop.client.invoices.list().data[0].id)

    assert entitled(shop) == ["seats"]


def test_an_end_by_the_clock_is_told_too(shop):
    feature(shop, "seats", shop.seats)
    shop.subscribe(shop.seats, cancel_at_period_end=True)
    before = shop.mark()
    shop.advance(days=31)

    assert shop.told_since(before) == ["customer.subscription.deleted", EVENT]


def test_of_many_entitlements_ten_are_in_the_event_and_all_are_listed(shop):
    for number in range(12):
        feature(shop, f"f{number:02}", shop.seats)
    shop.subscribe(shop.seats)

    shown = shop.events(type=EVENT)[-1]["data"]["object"]["entitlements"]
    assert (len(shown["data"]), shown["has_more"]) == (10, True)
    assert len(entitled(shop)) == 12


def test_a_restart_keeps_entitlements(tmp_path):
    journal = FileJournal(tmp_path / "journal")
    shop = make_shop(journal=journal)
    feature(shop, "seats", shop.seats)
    shop.subscribe(shop.seats)
    told = shop.events(type=EVENT)
    journal.close()
    client = client_without_sockets(make_core(shop.account.clock, FileJournal(tmp_path / "journal"))).v1

    listed = client.entitlements.active_entitlements.list({"customer": shop.account.customer}).data
    assert [entitlement.lookup_key for entitlement in listed] == ["seats"]
    assert [event.to_dict() for event in client.events.list({"type": EVENT}).data] == told
