"""A subscription from its first invoice to its end, as its events and its invoices tell it."""

from __future__ import annotations

import pytest
import stripe

from billing_pipeline.stripe_simulator.billing_periods import add_months
from billing_pipeline_tests.stripe_simulator.lives import NEVER_PAYS, PAYS, make_shop

PAID = ["invoice.updated", "invoice.paid", "invoice.payment_succeeded"]
FAILED = ["invoice.updated", "invoice.payment_failed"]


@pytest.fixture
def shop():
    return make_shop()


def period_of(subscription):
    item = subscription["items"].data[0]
    return item.current_period_start, item.current_period_end


def test_a_subscription_begins_with_a_paid_invoice(shop):
    before = shop.mark()
    subscription = shop.subscribe()

    assert shop.told_since(before) == ["customer.subscription.created", "invoice.created", "invoice.finalized", *PAID]
    invoice = shop.client.invoices.retrieve(subscription.latest_invoice)
    [line] = invoice.lines.data
    assert (invoice.billing_reason, invoice.status, invoice.total) == ("subscription_create", "paid", 1000)
    assert invoice.amount_paid == invoice.amount_due == 1000
    assert (line.period.start, line.period.end) == period_of(subscription)
    assert shop.client.subscriptions.retrieve(subscription.id).to_dict() == subscription.to_dict()


def test_a_period_ends_in_a_draft_that_is_final_and_paid_an_hour_later(shop):
    subscription = shop.subscribe()
    start, end = period_of(subscription)
    shop.account.send("10", timestamp=shop.account.now)
    before = shop.mark()
    shop.advance(seconds=end - start)

    assert shop.told_since(before) == ["customer.subscription.updated", "invoice.created"]
    updated, created = shop.events()[-2:]
    assert updated["created"] == created["created"] == end
    previous = updated["data"]["previous_attributes"]
    assert set(previous) == {"items", "latest_invoice"}
    assert previous["items"]["data"][0]["current_period_start"] == start
    assert updated["data"]["object"]["items"]["data"][0]["current_period_end"] == add_months(start, 2)
    assert created["data"]["object"]["status"] == "draft"

    before = shop.mark()
    shop.advance(hours=1)
    assert shop.told_since(before) == ["invoice.finalized", *PAID]
    [invoice, _first] = shop.client.invoices.list({"subscription": subscription.id}).data
    calls, seats = invoice.lines.data
    assert (calls.quantity, calls.amount, calls.period.end) == (10, 3, end)
    assert (seats.quantity, seats.amount, seats.period.start) == (1, 1000, end)
    assert (invoice.total, invoice.status, invoice.status_transitions.paid_at) == (1003, "paid", end + 3600)
    assert (invoice.period_start, invoice.period_end) == (start, end)


def test_what_the_clock_skips_happens_in_its_order(shop):
    """Nobody asks for a year; then every period is there, each event at its own second."""
    subscription = shop.subscribe()
    shop.advance(days=29)
    before = shop.mark()
    shop.advance(days=340)
    shop.client.subscriptions.retrieve(subscription.id)
    events = shop.account.core.state.events.since(before)

    assert [event.created for event in events] == sorted(event.created for event in events)
    assert [event.type for event in events].count("invoice.paid") == 12
    assert len(shop.client.invoices.list({"limit": 100}).data) == 13


def test_a_payment_that_fails_is_tried_again_and_then_ends_the_subscription(shop):
    subscription = shop.subscribe()
    start, end = period_of(subscription)
    shop.client.customers.update(shop.account.customer, NEVER_PAYS)
    shop.advance(seconds=end - start + 3600)

    assert shop.told()[-4:] == ["invoice.finalized", *FAILED, "customer.subscription.updated"]
    assert shop.client.subscriptions.retrieve(subscription.id).status == "past_due"
    assert shop.events()[-1]["data"]["previous_attributes"] == {"status": "active"}
    attempts = []
    for days in (3, 5, 7):
        before = shop.mark()
        shop.advance(days=days)
        attempts.append(shop.told_since(before))
    ended = shop.client.subscriptions.retrieve(subscription.id)
    assert attempts == [FAILED, FAILED, [*FAILED, "invoice.created", "customer.subscription.deleted"]]
    assert (ended.status, ended.cancellation_details.reason) == ("canceled", "payment_failed")
    assert shop.client.invoices.retrieve(subscription.latest_invoice).status == "paid"


@pytest.mark.parametrize("settle", ["pay", "void_invoice", "mark_uncollectible"])
def test_a_past_due_subscription_is_active_again_when_its_invoice_is_settled(shop, settle):
    subscription = shop.subscribe()
    shop.client.customers.update(shop.account.customer, NEVER_PAYS)
    shop.advance(days=31)
    invoice = shop.client.subscriptions.retrieve(subscription.id).latest_invoice
    with pytest.raises(stripe.CardError, match="declined"):
        shop.client.invoices.pay(invoice)
    assert shop.client.invoices.retrieve(invoice).attempt_count == 2
    shop.client.customers.update(shop.account.customer, PAYS)

    getattr(shop.client.invoices, settle)(invoice)
    assert shop.client.subscriptions.retrieve(subscription.id).status == "active"


def test_a_first_payment_that_fails_leaves_23_hours(shop):
    shop.client.customers.update(shop.account.customer, NEVER_PAYS)
    lost, saved = shop.subscribe(), shop.subscribe()
    assert (lost.status, saved.status) == ("incomplete", "incomplete")
    shop.client.customers.update(shop.account.customer, PAYS)
    shop.client.invoices.pay(saved.latest_invoice)
    shop.advance(hours=23)

    assert shop.client.subscriptions.retrieve(lost.id).status == "incomplete_expired"
    assert shop.client.invoices.retrieve(lost.latest_invoice).status == "void"
    assert shop.client.subscriptions.retrieve(saved.id).status == "active"


def test_a_trial_costs_nothing_tells_of_its_end_and_becomes_paid(shop):
    subscription = shop.subscribe(trial_period_days=10)
    shop.account.send("10", timestamp=shop.account.now)
    start = shop.account.now
    assert (subscription.status, subscription.trial_end) == ("trialing", start + 10 * 86_400)
    assert period_of(subscription) == (start, subscription.trial_end)
    assert shop.client.invoices.retrieve(subscription.latest_invoice).total == 0

    before = shop.mark()
    shop.advance(days=7)
    assert shop.told_since(before) == ["customer.subscription.trial_will_end"]
    before = shop.mark()
    shop.advance(days=3)
    assert shop.told_since(before) == ["customer.subscription.updated", "invoice.created"]
    paid = shop.client.subscriptions.retrieve(subscription.id)
    assert paid.status == "active"
    assert period_of(paid) == (paid.trial_end, add_months(paid.trial_end, 1))
    invoice = shop.client.invoices.retrieve(paid.latest_invoice)
    assert [line.amount for line in invoice.lines.data] == [1000], "usage of the trial is not billed"


def test_a_short_trial_tells_of_its_end_at_once_and_only_once(shop):
    before = shop.mark()
    shop.subscribe(trial_period_days=2)
    shop.advance(days=1)

    assert shop.told_since(before).count("customer.subscription.trial_will_end") == 1


def test_a_trial_can_be_ended_or_begun_by_a_person(shop):
    subscription = shop.subscribe(trial_period_days=10)
    shop.advance(days=1)
    ended = shop.client.subscriptions.update(subscription.id, {"trial_end": "now"})
    assert (ended.status, period_of(ended)[0]) == ("active", shop.account.now)

    until = shop.account.now + 86_400 * 5
    shop.advance(hours=2)
    again = shop.client.subscriptions.update(subscription.id, {"trial_end": until})
    assert (again.status, period_of(again)) == ("trialing", (shop.account.now, until))


def test_a_cancellation_at_the_periods_end_waits_for_it_and_can_be_taken_back(shop):
    kept, ended = shop.subscribe(), shop.subscribe()
    for subscription in (kept, ended):
        shop.client.subscriptions.update(subscription.id, {"cancel_at_period_end": True})
    shop.client.subscriptions.update(kept.id, {"cancel_at_period_end": False})
    assert shop.client.subscriptions.retrieve(ended.id).cancel_at == period_of(ended)[1]
    shop.account.send("4", timestamp=shop.account.now)
    shop.advance(days=31)

    [deleted] = shop.events(type="customer.subscription.deleted")
    assert (deleted["data"]["object"]["id"], deleted["data"]["object"]["status"]) == (ended.id, "canceled")
    assert deleted["created"] == deleted["data"]["object"]["ended_at"] == period_of(ended)[1]
    assert shop.client.subscriptions.retrieve(kept.id).status == "active"
    last = shop.client.invoices.retrieve(shop.client.subscriptions.retrieve(ended.id).latest_invoice)
    assert [line.quantity for line in last.lines.data] == [4], "usage is billed, and no further period"


def test_a_cancellation_now_bills_the_usage_and_stops(shop):
    subscription = shop.subscribe()
    shop.account.send("4", timestamp=shop.account.now)
    shop.advance(days=1)
    before = shop.mark()
    shop.client.subscriptions.cancel(subscription.id)
    assert shop.told_since(before) == ["invoice.created", "customer.subscription.deleted"]
    before = shop.mark()
    shop.advance(days=90)
    shop.told()

    assert shop.account.core.state.invoices_of(subscription.id) == 2
    assert [line.quantity for line in shop.client.invoices.list().data[0].lines.data] == [4]


def test_items_change_price_quantity_and_number(shop):
    subscription = shop.subscribe()
    seats, calls = subscription["items"].data
    other = shop.price(unit_amount=2000)
    changes = [
        {"id": seats.id, "price": other, "quantity": 3},
        {"price": shop.seats},
        {"id": calls.id, "deleted": True},
    ]
    changed = shop.client.subscriptions.update(subscription.id, {"items": changes, "proration_behavior": "none"})

    assert [(item.price.id, item.quantity) for item in changed["items"].data] == [(other, 3), (shop.seats, 1)]
    assert period_of(changed) == period_of(subscription)
    event = shop.events()[-1]
    assert event["type"] == "customer.subscription.updated"
    assert [item["id"] for item in event["data"]["previous_attributes"]["items"]["data"]] == [seats.id, calls.id]
    shop.advance(days=31)
    assert shop.client.invoices.list().data[0].total == 3 * 2000 + 1000


def test_another_interval_begins_a_new_period_with_an_invoice(shop):
    subscription = shop.subscribe(shop.seats)
    yearly = shop.price(unit_amount=9000, recurring={"interval": "year"})
    shop.advance(days=3)
    changed = shop.client.subscriptions.update(
        subscription.id, {"items": [{"id": subscription["items"].data[0].id, "price": yearly}]}
    )

    assert period_of(changed) == (shop.account.now, add_months(shop.account.now, 12))
    invoice = shop.client.invoices.retrieve(changed.latest_invoice)
    assert (invoice.billing_reason, invoice.total) == ("subscription_update", 9000)


@pytest.mark.parametrize(
    ("behavior", "status"), [("void", "void"), ("mark_uncollectible", "uncollectible"), ("keep_as_draft", "draft")]
)
def test_a_paused_collection_collects_nothing_until_it_resumes(shop, behavior, status):
    subscription = shop.subscribe()
    resumes_at = shop.account.now + 40 * 86_400
    paused = shop.client.subscriptions.update(
        subscription.id, {"pause_collection": {"behavior": behavior, "resumes_at": resumes_at}}
    )
    assert (paused.status, paused.pause_collection.behavior) == ("active", behavior)
    shop.advance(days=32)
    assert [invoice.status for invoice in shop.client.invoices.list().data] == [status, "paid"]

    shop.advance(days=31)
    assert shop.client.subscriptions.retrieve(subscription.id).pause_collection is None
    assert [invoice.status for invoice in shop.client.invoices.list().data] == ["paid", status, "paid"]


def test_deleting_a_customer_ends_its_subscriptions(shop):
    shop.subscribe(shop.seats)
    before = shop.mark()
    shop.client.customers.delete(shop.account.customer)

    assert shop.told_since(before) == ["customer.subscription.deleted", "customer.deleted"]


def test_an_older_invoice_that_is_paid_leaves_a_subscription_past_due(shop):
    """The status follows the latest invoice only."""
    subscription = shop.subscribe()
    shop.client.customers.update(shop.account.customer, NEVER_PAYS)
    for _ in range(2):
        shop.client.subscriptions.update(subscription.id, {"billing_cycle_anchor": "now"})
        shop.advance(hours=2)
    latest, older, _first = shop.client.invoices.list().data
    shop.client.customers.update(shop.account.customer, PAYS)

    shop.client.invoices.pay(older.id)
    assert shop.client.subscriptions.retrieve(subscription.id).status == "past_due"
    shop.client.invoices.pay(latest.id)
    assert shop.client.subscriptions.retrieve(subscription.id).status == "active"


def test_the_moment_of_the_wish_to_cancel_stays_when_the_end_comes(shop):
    subscription = shop.subscribe()
    shop.advance(days=3)
    wished_at = shop.account.now
    shop.client.subscriptions.update(subscription.id, {"cancel_at_period_end": True})
    shop.advance(days=31)

    ended = shop.client.subscriptions.retrieve(subscription.id)
    assert (ended.status, ended.canceled_at, ended.ended_at) == ("canceled", wished_at, period_of(subscription)[1])


def test_a_trial_goes_on_whatever_is_changed_during_it(shop):
    subscription = shop.subscribe(shop.seats, trial_period_days=10)
    shop.advance(days=1)
    yearly = shop.price(unit_amount=9000, recurring={"interval": "year"})
    item = subscription["items"].data[0].id
    changed = shop.client.subscriptions.update(
        subscription.id, {"items": [{"id": item, "price": yearly}], "billing_cycle_anchor": "now"}
    )

    assert (changed.status, period_of(changed)) == ("trialing", period_of(subscription))
    assert changed.latest_invoice == subscription.latest_invoice
