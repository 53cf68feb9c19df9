"""Subscriptions and their items; the periods they are in are worked out in `billing_periods`.

A canceled subscription keeps the period it ended in.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from billing_pipeline.stripe_simulator.billing_periods import (
    add_months,
    first_period_end,
    months_of,
    shown,
    with_periods,
)
from billing_pipeline.stripe_simulator.calls import Call, Write, created, updated
from billing_pipeline.stripe_simulator.lists import PAGING, page
from billing_pipeline.stripe_simulator.parameters import (
    checked,
    group,
    integer,
    interval,
    one_of,
    sequence,
    string_map,
    text,
)
from billing_pipeline.stripe_simulator.state import State
from billing_pipeline.stripe_simulator.wire import Body, forbidden, invalid, no_such

_ITEM = group({"price": text()}, {"quantity": integer(0), "metadata": string_map})


def create_subscription(state: State, call: Call) -> Write:
    """POST /v1/subscriptions"""
    required = {"customer": text(), "items": sequence(_ITEM)}
    given = checked(call.params, required, {"billing_cycle_anchor": integer(0), "metadata": string_map})
    if state.live("customer", given["customer"]) is None:
        raise no_such("customer", given["customer"], param="customer")
    prices = [_price_of(state, item) for item in given["items"]]
    if len({(p["currency"], months_of(p)) for p in prices}) > 1:
        raise invalid("All prices of a subscription must have the same currency and interval.", "items")
    anchor = given.get("billing_cycle_anchor", call.epoch)
    _refuse_far_anchor(anchor, call.epoch, months_of(prices[0]))
    id = state.new_id("subscription", "sub")
    subscription = {
        "id": id,
        "object": "subscription",
        "billing_cycle_anchor": anchor,
        "cancel_at": None,
        "cancel_at_period_end": False,
        "canceled_at": None,
        "collection_method": "charge_automatically",
        "created": call.epoch,
        "currency": prices[0]["currency"],
        "customer": given["customer"],
        "ended_at": None,
        "items": {
            "object": "list",
            "data": [
                _item(state, id, number, item, price, call.epoch)
                for number, (item, price) in enumerate(zip(given["items"], prices, strict=True), start=1)
            ],
            "has_more": False,
            "url": f"/v1/subscription_items?subscription={id}",
        },
        "latest_invoice": None,
        "livemode": False,
        "metadata": given.get("metadata", {}),
        "start_date": call.epoch,
        "status": "active",
    }
    return Write((created("subscription", with_periods(subscription, call.epoch)),))


def _item(state: State, subscription: str, number: int, given: dict[str, Any], price: Body, epoch: int) -> Body:
    item = {
        "id": f"si_{state.digest(subscription, number)}",
        "object": "subscription_item",
        "created": epoch,
        "metadata": given.get("metadata", {}),
        "price": price,
        "subscription": subscription,
    }
    metered = price["recurring"]["usage_type"] == "metered"
    return item if metered else {**item, "quantity": given.get("quantity", 1)}


def _price_of(state: State, item: dict[str, Any]) -> Body:
    price = state.find("price", item["price"])
    if price is None:
        raise no_such("price", item["price"], param="items[price]")
    if price["recurring"] is None or not price["active"]:
        raise forbidden(f"The price '{price['id']}' is not an active recurring price.", param="items[price]")
    if price["recurring"]["usage_type"] == "metered" and "quantity" in item:
        raise invalid("A metered price takes no quantity; its usage comes from meter events.", "items[quantity]")
    return price


def _refuse_far_anchor(anchor: int, epoch: int, months: int) -> None:
    # Stripe's rule: a future moment, not later than the first natural renewal.
    if not epoch <= anchor <= add_months(epoch, months):
        raise invalid(
            "billing_cycle_anchor must lie between now and the first natural renewal.", "billing_cycle_anchor"
        )


def subscriptions_of(state: State, customer: str | None) -> Iterator[Body]:
    """A customer's subscriptions, or everybody's, newest first."""
    return (body for body in state.newest_first("subscription") if customer in (None, body["customer"]))


def canceled(subscription: Body, epoch: int) -> Body:
    """The subscription as it is once canceled at `epoch`."""
    return with_periods({**subscription, "status": "canceled", "canceled_at": epoch, "ended_at": epoch}, epoch)


def retrieve_subscription(state: State, call: Call) -> Body:
    """GET /v1/subscriptions/{id}"""
    checked(call.params)
    subscription = state.find("subscription", call.target)
    if subscription is None:
        raise no_such("subscription", call.target)
    return shown(subscription, call.epoch)


def list_subscriptions(state: State, call: Call) -> Body:
    """GET /v1/subscriptions; canceled ones only when asked for, as Stripe does"""
    optional = {
        **PAGING,
        "current_period_end": interval,
        "customer": text(),
        "price": text(),
        "status": one_of("active", "canceled", "all"),
    }
    given = checked(call.params, optional=optional)
    status, ends = given.get("status", "active"), given.get("current_period_end")
    subscriptions = (
        shown(body, call.epoch)
        for body in subscriptions_of(state, given.get("customer"))
        if status in ("all", body["status"])
        and ("price" not in given or any(i["price"]["id"] == given["price"] for i in body["items"]["data"]))
        and (ends is None or ends(first_period_end(body, call.epoch)))
    )
    return page(subscriptions, given, url="/v1/subscriptions", what="subscription")


def list_subscription_items(state: State, call: Call) -> Body:
    """GET /v1/subscription_items"""
    given = checked(call.params, {"subscription": text()}, PAGING)
    subscription = state.find("subscription", given["subscription"])
    if subscription is None:
        raise no_such("subscription", given["subscription"], param="subscription")
    items = with_periods(subscription, call.epoch)["items"]["data"]
    return page(items, given, url="/v1/subscription_items", what="subscription item")


def update_subscription(state: State, call: Call) -> Write:
    """POST /v1/subscriptions/{id}; an anchor set to now ends the current period and begins the next"""
    given = checked(
        call.params,
        optional={"billing_cycle_anchor": one_of("now", "unchanged"), "metadata": string_map},
    )
    subscription = state.find("subscription", call.target)
    if subscription is None or subscription["status"] == "canceled":
        raise no_such("subscription", call.target)
    changed = {**subscription, "metadata": {**subscription["metadata"], **given.get("metadata", {})}}
    if given.get("billing_cycle_anchor") == "now":
        changed["billing_cycle_anchor"] = call.epoch
    return Write((updated("subscription", with_periods(changed, call.epoch)),))


def cancel_subscription(state: State, call: Call) -> Write:
    """DELETE /v1/subscriptions/{id}, at once"""
    checked(call.params)
    subscription = state.find("subscription", call.target)
    if subscription is None or subscription["status"] == "canceled":
        raise no_such("subscription", call.target)
    return Write((updated("subscription", canceled(subscription, call.epoch)),))
