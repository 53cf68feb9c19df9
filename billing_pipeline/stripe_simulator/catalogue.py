"""Products and prices.

A price for metered usage names its meter; without one Stripe refuses it since API version 2025-03-31
(changelog, "deprecate legacy usage-based billing").
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

from billing_pipeline.stripe_simulator.calls import Call, Write, created
from billing_pipeline.stripe_simulator.lists import PAGING, page
from billing_pipeline.stripe_simulator.parameters import (
    checked,
    flag,
    group,
    integer,
    one_of,
    plain_decimal,
    sequence,
    string_map,
    text,
)
from billing_pipeline.stripe_simulator.state import State
from billing_pipeline.stripe_simulator.wire import Body, forbidden, invalid, no_such

DECIMAL_PLACES_MAX = 12
"""Of `unit_amount_decimal`, as the SDK documents it."""


def create_product(state: State, call: Call) -> Write:
    """POST /v1/products"""
    optional = {
        "id": text(),
        "active": flag,
        "description": text(),
        "metadata": string_map,
        "unit_label": text(12),
    }
    given = checked(call.params, {"name": text()}, optional)
    if "id" in given and state.find("product", given["id"]):
        raise forbidden("Product already exists.", param="id", code="resource_already_exists")
    product = {
        "id": given.get("id") or state.new_id("product", "prod"),
        "object": "product",
        "active": given.get("active", True),
        "created": call.epoch,
        "default_price": None,
        "description": given.get("description"),
        "livemode": False,
        "metadata": given.get("metadata", {}),
        "name": given["name"],
        "type": "service",
        "unit_label": given.get("unit_label"),
        "updated": call.epoch,
    }
    return Write((created("product", product),))


def retrieve_product(state: State, call: Call) -> Body:
    """GET /v1/products/{id}"""
    checked(call.params)
    product = state.find("product", call.target)
    if product is None:
        raise no_such("product", call.target)
    return product


def list_products(state: State, call: Call) -> Body:
    """GET /v1/products"""
    given = checked(call.params, optional={**PAGING, "active": flag, "ids": sequence(text())})
    products = (
        product
        for product in state.newest_first("product")
        if given.get("active") in (None, product["active"]) and product["id"] in given.get("ids", (product["id"],))
    )
    return page(products, given, url="/v1/products", what="product")


_RECURRING = group(
    {"interval": one_of("month", "year")},
    {"interval_count": integer(1, 36), "meter": text(), "usage_type": one_of("metered", "licensed")},
)


def create_price(state: State, call: Call) -> Write:
    """POST /v1/prices, one amount per unit (no tiers)"""
    required = {"currency": text(3), "product": text()}
    optional = {
        "active": flag,
        "billing_scheme": one_of("per_unit"),
        "lookup_key": text(200),
        "metadata": string_map,
        "nickname": text(),
        "recurring": _RECURRING,
        "unit_amount": integer(0),
        "unit_amount_decimal": plain_decimal,
    }
    given = checked(call.params, required, optional)
    amount = _unit_amount(given)
    _refuse_what_the_account_forbids(state, given)
    recurring = given.get("recurring")
    price = {
        "id": state.new_id("price", "price"),
        "object": "price",
        "active": given.get("active", True),
        "billing_scheme": "per_unit",
        "created": call.epoch,
        "currency": given["currency"].lower(),
        "livemode": False,
        "lookup_key": given.get("lookup_key"),
        "metadata": given.get("metadata", {}),
        "nickname": given.get("nickname"),
        "product": given["product"],
        "recurring": None if recurring is None else _recurring(recurring),
        "tiers_mode": None,
        "transform_quantity": None,
        "type": "one_time" if recurring is None else "recurring",
        # A fraction of a cent has no whole amount; Stripe shows null then.
        "unit_amount": int(amount) if amount == int(amount) else None,
        "unit_amount_decimal": format(amount, "f"),
    }
    return Write((created("price", price),))


def _unit_amount(given: dict[str, Any]) -> Decimal:
    if ("unit_amount" in given) == ("unit_amount_decimal" in given):
        raise invalid("Give exactly one of unit_amount and unit_amount_decimal.", "unit_amount")
    amount: Decimal = given.get("unit_amount_decimal", Decimal(given.get("unit_amount", 0)))
    if amount < 0 or amount != round(amount, DECIMAL_PLACES_MAX):
        message = f"Invalid decimal: at least 0, at most {DECIMAL_PLACES_MAX} decimal places."
        raise invalid(message, "unit_amount_decimal")
    return amount


def _recurring(given: dict[str, Any]) -> Body:
    return {
        "interval": given["interval"],
        "interval_count": given.get("interval_count", 1),
        "meter": given.get("meter"),
        "trial_period_days": None,
        "usage_type": given.get("usage_type", "licensed"),
    }


def _refuse_what_the_account_forbids(state: State, given: dict[str, Any]) -> None:
    recurring = given.get("recurring") or {}
    metered, meter = recurring.get("usage_type") == "metered", recurring.get("meter")
    if metered and not meter:
        raise invalid("A price with usage_type 'metered' must name its recurring[meter].", "recurring[meter]")
    if meter and not metered:
        raise invalid("recurring[meter] needs recurring[usage_type]=metered.", "recurring[usage_type]")
    if state.live("product", given["product"]) is None:
        raise no_such("product", given["product"], param="product")
    if meter:
        found = state.find("meter", meter)
        if found is None:
            raise no_such("billing meter", meter, param="recurring[meter]")
        if found["status"] != "active":
            raise forbidden(f"The billing meter '{meter}' is not active; reactivate it.", param="recurring[meter]")
    for price in state.newest_first("price"):
        if given.get("lookup_key") and price["lookup_key"] == given["lookup_key"]:
            raise forbidden(f"A price (`{price['id']}`) already uses that lookup key.", param="lookup_key")


def retrieve_price(state: State, call: Call) -> Body:
    """GET /v1/prices/{id}"""
    checked(call.params)
    price = state.find("price", call.target)
    if price is None:
        raise no_such("price", call.target)
    return price


def list_prices(state: State, call: Call) -> Body:
    """GET /v1/prices"""
    optional = {
        **PAGING,
        "active": flag,
        "lookup_keys": sequence(text()),
        "product": text(),
        "recurring": group(optional={"meter": text()}),
    }
    given = checked(call.params, optional=optional)
    prices = (
        price
        for price in state.newest_first("price")
        if given.get("active") in (None, price["active"])
        and given.get("product") in (None, price["product"])
        and price["lookup_key"] in given.get("lookup_keys", (price["lookup_key"],))
        and given.get("recurring", {}).get("meter") in (None, (price["recurring"] or {}).get("meter"))
    )
    return page(prices, given, url="/v1/prices", what="price")
