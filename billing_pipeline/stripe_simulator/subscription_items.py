"""The items of a subscription: each one price, with a quantity or with a meter.

Asked when a subscription is made and when it changes.
"""

from __future__ import annotations

from typing import Any

from billing_pipeline.stripe_simulator.billing_periods import months_of
from billing_pipeline.stripe_simulator.state import State
from billing_pipeline.stripe_simulator.wire import Body, forbidden, invalid, no_such


def new_item(state: State, subscription: str, number: int, given: dict[str, Any], price: Body, epoch: int) -> Body:
    """The item that is the `number`th ever made of its subscription."""
    item = {
        "id": f"si_{state.digest(subscription, number)}",
        "object": "subscription_item",
        "created": epoch,
        "metadata": given.get("metadata", {}),
        "price": price,
        "subscription": subscription,
    }
    return item if is_metered(price) else {**item, "quantity": given.get("quantity", 1)}


def changed_item(state: State, item: Body, given: dict[str, Any]) -> Body:
    """The item with another price, quantity or metadata, as far as they are given."""
    price = price_of(state, given) if "price" in given else item["price"]
    if is_metered(price) and "quantity" in given:
        raise _no_quantity()
    changed = {**item, "price": price, "metadata": {**item["metadata"], **given.get("metadata", {})}}
    changed.pop("quantity", None)
    return changed if is_metered(price) else {**changed, "quantity": given.get("quantity", item.get("quantity", 1))}


def is_metered(price: Body) -> bool:
    """Whether usage is billed, not a quantity."""
    return bool(price["recurring"]["usage_type"] == "metered")


def price_of(state: State, item: dict[str, Any]) -> Body:
    """The price that an item asks for.  Raises `Refusal` for one that cannot be subscribed to."""
    price = state.find("price", item["price"])
    if price is None:
        raise no_such("price", item["price"], param="items[price]")
    if price["recurring"] is None or not price["active"]:
        raise forbidden(f"The price '{price['id']}' is not an active recurring price.", param="items[price]")
    if is_metered(price) and "quantity" in item:
        raise _no_quantity()
    return price


def refuse_mixed(prices: list[Body]) -> None:
    """Raises `Refusal` unless the prices have one currency and one interval."""
    if len({(price["currency"], months_of(price)) for price in prices}) > 1:
        raise invalid("All prices of a subscription must have the same currency and interval.", "items")


def _no_quantity() -> Exception:
    return invalid("A metered price takes no quantity; its usage comes from meter events.", "items[quantity]")
