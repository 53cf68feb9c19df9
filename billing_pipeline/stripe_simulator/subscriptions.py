"""Subscriptions and their items: made, shown and listed; how they change is in `subscription_changes`.

The periods they are in are worked out in `billing_periods`.  A canceled subscription keeps the period it ended in.
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
from billing_pipeline.stripe_simulator.calls import Call, Write, created, silent
from billing_pipeline.stripe_simulator.collection import first_collection
from billing_pipeline.stripe_simulator.due import trial_ends_soon
from billing_pipeline.stripe_simulator.endings import ENDED, trial_notice
from billing_pipeline.stripe_simulator.journal import Record
from billing_pipeline.stripe_simulator.lists import PAGING, page
from billing_pipeline.stripe_simulator.parameters import (
    checked,
    flag,
    group,
    integer,
    interval,
    one_of,
    sequence,
    string_map,
    text,
)
from billing_pipeline.stripe_simulator.state import State
from billing_pipeline.stripe_simulator.subscription_invoices import first_invoice
from billing_pipeline.stripe_simulator.subscription_items import new_item, price_of, refuse_mixed
from billing_pipeline.stripe_simulator.wire import Body, invalid, no_such

_ITEM = group({"price": text()}, {"quantity": integer(0), "metadata": string_map})
STATUSES = ("active", "canceled", "incomplete", "incomplete_expired", "past_due", "trialing")
DAY = 86_400


def create_subscription(state: State, call: Call) -> Write:
    """POST /v1/subscriptions: the subscription, and its first invoice to its end."""
    required = {"customer": text(), "items": sequence(_ITEM)}
    optional = {
        "billing_cycle_anchor": integer(0),
        "cancel_at_period_end": flag,
        "metadata": string_map,
        "trial_end": integer(0),
        "trial_period_days": integer(1, 730),
    }
    given = checked(call.params, required, optional)
    if state.live("customer", given["customer"]) is None:
        raise no_such("customer", given["customer"], param="customer")
    return Write(tuple(begun(state, given, call.epoch)))


def begun(state: State, given: dict[str, Any], epoch: int) -> list[Record]:
    """The records that begin a subscription of an existing customer; the last is the subscription, as it is then."""
    prices = [price_of(state, item) for item in given["items"]]
    refuse_mixed(prices)
    subscription = _subscription(state, given, prices, epoch)
    draft = first_invoice(state, subscription, epoch)
    collected, ended = first_collection(state, draft, epoch)
    subscription["latest_invoice"] = draft["id"]
    if ended["status"] != "paid":
        subscription["status"] = "incomplete"
    records = [created("subscription", subscription), *collected]
    soon = trial_ends_soon(subscription, epoch)
    return [*records, trial_notice(subscription) if soon else silent("subscription", subscription)]


def _subscription(state: State, given: dict[str, Any], prices: list[Body], epoch: int) -> Body:
    trial_end = _trial_end(given, epoch)
    anchor = trial_end or given.get("billing_cycle_anchor", epoch)
    if trial_end is None:
        _refuse_far_anchor(anchor, epoch, months_of(prices[0]))
    id = state.new_id("subscription", "sub")
    subscription = {
        "id": id,
        "object": "subscription",
        "billing_cycle_anchor": anchor,
        "cancel_at": None,
        "cancel_at_period_end": given.get("cancel_at_period_end", False),
        "canceled_at": None,
        "cancellation_details": {"comment": None, "feedback": None, "reason": None},
        "collection_method": "charge_automatically",
        "created": epoch,
        "currency": prices[0]["currency"],
        "customer": given["customer"],
        "ended_at": None,
        "items": {
            "object": "list",
            "data": [
                new_item(state, id, number, item, price, epoch)
                for number, (item, price) in enumerate(zip(given["items"], prices, strict=True), start=1)
            ],
            "has_more": False,
            "url": f"/v1/subscription_items?subscription={id}",
        },
        "latest_invoice": None,
        "livemode": False,
        "metadata": given.get("metadata", {}),
        "pause_collection": None,
        "start_date": epoch,
        "status": "active" if trial_end is None else "trialing",
        "trial_end": trial_end,
        "trial_start": None if trial_end is None else epoch,
        "_items_made": len(prices),
        "_trial_told": None,
    }
    subscription = with_periods(subscription, epoch)
    if subscription["cancel_at_period_end"]:
        subscription |= {"cancel_at": first_period_end(subscription, epoch), "canceled_at": epoch}
    return subscription


def _trial_end(given: dict[str, Any], epoch: int) -> int | None:
    if "trial_period_days" in given:
        if "trial_end" in given or "billing_cycle_anchor" in given:
            raise invalid(
                "Give only one of trial_period_days, trial_end and billing_cycle_anchor.", "trial_period_days"
            )
        return epoch + int(given["trial_period_days"]) * DAY
    if "trial_end" not in given:
        return None
    if given["trial_end"] <= epoch:
        raise invalid("trial_end must lie in the future.", "trial_end")
    return int(given["trial_end"])


def _refuse_far_anchor(anchor: int, epoch: int, months: int) -> None:
    # Stripe's rule: a future moment, not later than the first natural renewal.
    if not epoch <= anchor <= add_months(epoch, months):
        raise invalid(
            "billing_cycle_anchor must lie between now and the first natural renewal.", "billing_cycle_anchor"
        )


def subscriptions_of(state: State, customer: str | None) -> Iterator[Body]:
    """A customer's subscriptions, or everybody's, newest first."""
    return state.newest_first("subscription") if customer is None else state.owned("subscription", customer)


def retrieve_subscription(state: State, call: Call) -> Body:
    """GET /v1/subscriptions/{id}"""
    checked(call.params)
    subscription = state.find("subscription", call.target)
    if subscription is None:
        raise no_such("subscription", call.target)
    return shown(subscription, call.epoch)


def list_subscriptions(state: State, call: Call) -> Body:
    """GET /v1/subscriptions; ended ones only when asked for, as Stripe does"""
    optional = {
        **PAGING,
        "created": interval,
        "current_period_end": interval,
        "customer": text(),
        "price": text(),
        "status": one_of(*STATUSES, "all", "ended"),
    }
    given = checked(call.params, optional=optional)
    created_at, ends = given.get("created"), given.get("current_period_end")
    subscriptions = (
        shown(body, call.epoch)
        for body in subscriptions_of(state, given.get("customer"))
        if _has_status(body, given.get("status"))
        and ("price" not in given or any(i["price"]["id"] == given["price"] for i in body["items"]["data"]))
        and (created_at is None or created_at(body["created"]))
        and (ends is None or ends(first_period_end(body, call.epoch)))
    )
    return page(subscriptions, given, url="/v1/subscriptions", what="subscription")


def _has_status(body: Body, wanted: str | None) -> bool:
    match wanted:
        case None:
            return body["status"] not in ENDED
        case "all":
            return True
        case "ended":
            return body["status"] in ENDED
    return bool(body["status"] == wanted)


def list_subscription_items(state: State, call: Call) -> Body:
    """GET /v1/subscription_items"""
    given = checked(call.params, {"subscription": text()}, PAGING)
    subscription = state.find("subscription", given["subscription"])
    if subscription is None:
        raise no_such("subscription", given["subscription"], param="subscription")
    items = with_periods(subscription, call.epoch)["items"]["data"]
    return page(items, given, url="/v1/subscription_items", what="subscription item")
