"""Customers: who a meter event's usage belongs to.

Deleting one cancels its subscriptions and refuses its further meter events; Stripe still shows the stub of it.
"""

from __future__ import annotations

from typing import Any

from billing_pipeline.stripe_simulator.calls import Call, Write, created, deleted, updated
from billing_pipeline.stripe_simulator.endings import canceled_records
from billing_pipeline.stripe_simulator.lists import PAGING, page
from billing_pipeline.stripe_simulator.parameters import Check, checked, group, string_map, text
from billing_pipeline.stripe_simulator.state import State
from billing_pipeline.stripe_simulator.subscriptions import subscriptions_of
from billing_pipeline.stripe_simulator.wire import Body, no_such

_FIELDS: dict[str, Check] = {
    "name": text(256),
    "email": text(512),
    "description": text(),
    "phone": text(20),
    # Which customers pay: see `collection`.
    "invoice_settings": group(optional={"default_payment_method": text()}),
}


def create_customer(state: State, call: Call) -> Write:
    """POST /v1/customers"""
    given = checked(call.params, optional={**_FIELDS, "metadata": string_map})
    return Write((created("customer", new_customer(state, given, call.epoch)),))


def new_customer(state: State, given: dict[str, Any], epoch: int) -> Body:
    """The customer that the given fields make."""
    return {
        "id": state.new_id("customer", "cus"),
        "object": "customer",
        "balance": 0,
        "created": epoch,
        "currency": None,
        "delinquent": False,
        "description": given.get("description"),
        "email": given.get("email"),
        "invoice_settings": given.get("invoice_settings", {"default_payment_method": None}),
        "livemode": False,
        "metadata": given.get("metadata", {}),
        "name": given.get("name"),
        "phone": given.get("phone"),
        "test_clock": None,
    }


def retrieve_customer(state: State, call: Call) -> Body:
    """GET /v1/customers/{id}; of a deleted customer only the stub"""
    checked(call.params)
    customer = state.find("customer", call.target)
    if customer is None:
        raise no_such("customer", call.target)
    return customer


def list_customers(state: State, call: Call) -> Body:
    """GET /v1/customers"""
    given = checked(call.params, optional={**PAGING, "email": text(512)})
    customers = (
        customer for customer in state.newest_first("customer") if given.get("email") in (None, customer["email"])
    )
    return page(customers, given, url="/v1/customers", what="customer")


def update_customer(state: State, call: Call) -> Write:
    """POST /v1/customers/{id}; an empty metadata value removes its key, as Stripe does"""
    given = checked(call.params, optional={**_FIELDS, "metadata": string_map})
    customer = _living(state, call)
    if "metadata" in given:
        merged = {**customer["metadata"], **given["metadata"]} if given["metadata"] else {}
        given["metadata"] = {key: value for key, value in merged.items() if value != ""}
    return Write((updated("customer", {**customer, **given}),))


def delete_customer(state: State, call: Call) -> Write:
    """DELETE /v1/customers/{id}"""
    checked(call.params)
    customer = _living(state, call)
    going_on = [body for body in subscriptions_of(state, customer["id"]) if body["ended_at"] is None]
    ends = [record for body in going_on for record in canceled_records(state, body, call.epoch)]
    return Write((*ends, deleted("customer", "customer", customer["id"])))


def _living(state: State, call: Call) -> Body:
    customer = state.live("customer", call.target)
    if customer is None:
        raise no_such("customer", call.target)
    return customer
