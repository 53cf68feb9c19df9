"""Checkout sessions of mode `subscription`: opened by the product, completed by the person who pays, or expired.

Nobody pays here, so a session is completed by the simulator's own `POST /_control/checkout/sessions/{id}/complete`.
Completing makes the customer, if the session names none, and the subscription (since API version 2025-03-31 only then).
Source: Stripe's API reference, "Checkout Sessions".
"""

from __future__ import annotations

from typing import Any

from billing_pipeline.stripe_simulator.calls import Call, Write, created, updated
from billing_pipeline.stripe_simulator.customers import new_customer
from billing_pipeline.stripe_simulator.display import displayed
from billing_pipeline.stripe_simulator.journal import Record
from billing_pipeline.stripe_simulator.lists import PAGING, page
from billing_pipeline.stripe_simulator.parameters import (
    checked,
    flag,
    group,
    integer,
    one_of,
    sequence,
    string_map,
    text,
)
from billing_pipeline.stripe_simulator.state import State
from billing_pipeline.stripe_simulator.subscription_items import price_of, refuse_mixed
from billing_pipeline.stripe_simulator.subscriptions import begun
from billing_pipeline.stripe_simulator.wire import Body, Refusal, forbidden, invalid, no_such

OPEN_SECONDS = (1_800, 86_400)
"""How long a session may stay open: at least and at most, which is also the default."""

_OPTIONAL = {
    "allow_promotion_codes": flag,
    "cancel_url": text(),
    "client_reference_id": text(200),
    "customer": text(),
    "customer_email": text(512),
    "expires_at": integer(0),
    "metadata": string_map,
    "payment_method_collection": one_of("always", "if_required"),
    "subscription_data": group(optional={"metadata": string_map, "trial_period_days": integer(1, 730)}),
    "success_url": text(),
}
_LINE_ITEM = group({"price": text()}, {"quantity": integer(1)})


def create_session(state: State, call: Call) -> Write:
    """POST /v1/checkout/sessions"""
    required = {"line_items": sequence(_LINE_ITEM), "mode": one_of("subscription")}
    given = checked(call.params, required, _OPTIONAL)
    if "customer" in given and state.live("customer", given["customer"]) is None:
        raise no_such("customer", given["customer"], param="customer")
    if "customer" in given and "customer_email" in given:
        raise invalid("You may only specify one of these parameters: customer, customer_email.", "customer_email")
    prices = [price_of(state, item) for item in given["line_items"]]
    refuse_mixed(prices)
    open_for = given.get("expires_at", call.epoch + OPEN_SECONDS[1]) - call.epoch
    if not OPEN_SECONDS[0] <= open_for <= OPEN_SECONDS[1]:
        raise invalid("The expires_at timestamp must be 30 minutes to 24 hours from now.", "expires_at")
    id = state.new_id("checkout_session", "cs_test")
    session = {
        "id": id,
        "object": "checkout.session",
        "amount_total": sum(
            (price["unit_amount"] or 0) * _quantity(item, price) for item, price in _pairs(given, prices)
        ),
        "cancel_url": given.get("cancel_url"),
        "client_reference_id": given.get("client_reference_id"),
        "created": call.epoch,
        "currency": prices[0]["currency"],
        "customer": given.get("customer"),
        "customer_details": None,
        "customer_email": given.get("customer_email"),
        "expires_at": call.epoch + open_for,
        "invoice": None,
        "livemode": False,
        "metadata": given.get("metadata", {}),
        "mode": given["mode"],
        "payment_status": "unpaid",
        "status": "open",
        "subscription": None,
        "success_url": given.get("success_url"),
        "url": f"https://checkout.stripe.com/c/pay/{id}",
        "_items": given["line_items"],
        "_subscription_data": given.get("subscription_data", {}),
    }
    return Write((created("checkout_session", session),))


def _pairs(given: dict[str, Any], prices: list[Body]) -> list[tuple[dict[str, Any], Body]]:
    return list(zip(given["line_items"], prices, strict=True))


def _quantity(item: dict[str, Any], price: Body) -> int:
    # What is metered costs nothing yet.
    return 0 if price["recurring"]["usage_type"] == "metered" else int(item.get("quantity", 1))


def retrieve_session(state: State, call: Call) -> Body:
    """GET /v1/checkout/sessions/{id}"""
    checked(call.params)
    return displayed("checkout_session", _session(state, call))


def list_sessions(state: State, call: Call) -> Body:
    """GET /v1/checkout/sessions"""
    optional = {**PAGING, "customer": text(), "status": one_of("open", "complete", "expired"), "subscription": text()}
    given = checked(call.params, optional=optional)
    sessions = (
        displayed("checkout_session", body)
        for body in state.newest_first("checkout_session")
        if all(given.get(name) in (None, body[name]) for name in ("customer", "status", "subscription"))
    )
    return page(sessions, given, url="/v1/checkout/sessions", what="checkout session")


def expire_session(state: State, call: Call) -> Write:
    """POST /v1/checkout/sessions/{id}/expire"""
    checked(call.params)
    return Write((expired(_open(state, call)),))


def expired(session: Body) -> Record:
    """An open session whose time is over."""
    return updated("checkout_session", {**session, "status": "expired", "url": None}, "checkout.session.expired")


def complete_session(state: State, call: Call) -> Write:
    """POST /_control/checkout/sessions/{id}/complete; a card that never pays completes nothing"""
    given = checked(call.params, optional={"email": text(512), "name": text(256)})
    session = _open(state, call)
    records, customer = _customer(state, session, given, call.epoch)
    wanted = {"customer": customer["id"], "items": session["_items"], **session["_subscription_data"]}
    begins = begun(state, wanted, call.epoch)
    subscription = begins[-1]["object"]
    if subscription["status"] == "incomplete":
        raise Refusal(402, "Your card was declined.", type="card_error", code="card_declined", executed=True)
    total = next(record["object"]["total"] for record in begins if record["kind"] == "invoice")
    completed = {
        **session,
        "customer": customer["id"],
        "customer_details": {name: customer[name] for name in ("email", "name")},
        "invoice": subscription["latest_invoice"],
        "payment_status": "paid" if total else "no_payment_required",
        "status": "complete",
        "subscription": subscription["id"],
        "url": None,
    }
    return Write((*records, *begins, updated("checkout_session", completed, "checkout.session.completed")))


def _customer(state: State, session: Body, given: dict[str, Any], epoch: int) -> tuple[list[Record], Body]:
    if session["customer"] is not None:
        customer = state.live("customer", session["customer"])
        if customer is None:
            raise forbidden(f"The customer of this session, {session['customer']}, is deleted.")
        return [], customer
    email = given.get("email") or session["customer_email"]
    customer = new_customer(state, {**given, "email": email}, epoch)
    return [created("customer", customer)], customer


def _session(state: State, call: Call) -> Body:
    session = state.find("checkout_session", call.target)
    if session is None:
        raise no_such("checkout session", call.target)
    return session


def _open(state: State, call: Call) -> Body:
    session = _session(state, call)
    if session["status"] != "open":
        raise forbidden(f"This Session is already {session['status']}; only an open one can change.")
    return session
