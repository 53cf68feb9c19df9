"""Billing meters: what a meter event's name, customer and value mean.

After creation only the display name can change, and one event name has at most one active meter
(Stripe, "Create and configure a meter").
"""

from __future__ import annotations

from billing_pipeline.stripe_simulator.calls import Call, Write, created, updated
from billing_pipeline.stripe_simulator.lists import PAGING, page
from billing_pipeline.stripe_simulator.parameters import checked, group, one_of, text
from billing_pipeline.stripe_simulator.state import State
from billing_pipeline.stripe_simulator.wire import Body, forbidden, no_such

CUSTOMER_KEY_DEFAULT = "stripe_customer_id"
VALUE_KEY_DEFAULT = "value"


def create_meter(state: State, call: Call) -> Write:
    """POST /v1/billing/meters"""
    required = {
        "display_name": text(250),
        "event_name": text(100),
        "default_aggregation": group({"formula": one_of("sum", "count", "last")}),
    }
    optional = {
        "customer_mapping": group({"type": one_of("by_id"), "event_payload_key": text(100)}),
        "event_time_window": one_of("hour", "day"),
        "value_settings": group({"event_payload_key": text(100)}),
    }
    given = checked(call.params, required, optional)
    _refuse_second_active_meter(state, given["event_name"])
    meter = {
        "id": state.new_id("meter", "mtr_test"),
        "object": "billing.meter",
        "created": call.epoch,
        "customer_mapping": given.get("customer_mapping", {"event_payload_key": CUSTOMER_KEY_DEFAULT, "type": "by_id"}),
        "default_aggregation": given["default_aggregation"],
        "display_name": given["display_name"],
        "event_name": given["event_name"],
        "event_time_window": given.get("event_time_window"),
        "livemode": False,
        "status": "active",
        "status_transitions": {"deactivated_at": None},
        "updated": call.epoch,
        "value_settings": given.get("value_settings", {"event_payload_key": VALUE_KEY_DEFAULT}),
    }
    return Write((created("meter", meter),))


def retrieve_meter(state: State, call: Call) -> Body:
    """GET /v1/billing/meters/{id}"""
    checked(call.params)
    return find_meter(state, call.target)


def list_meters(state: State, call: Call) -> Body:
    """GET /v1/billing/meters"""
    given = checked(call.params, optional={**PAGING, "status": one_of("active", "inactive")})
    meters = (meter for meter in state.newest_first("meter") if given.get("status") in (None, meter["status"]))
    return page(meters, given, url="/v1/billing/meters", what="billing meter")


def update_meter(state: State, call: Call) -> Write:
    """POST /v1/billing/meters/{id}"""
    given = checked(call.params, optional={"display_name": text(250)})
    meter = find_meter(state, call.target)
    return Write((updated("meter", {**meter, **given, "updated": call.epoch}),))


def deactivate_meter(state: State, call: Call) -> Write:
    """POST /v1/billing/meters/{id}/deactivate"""
    return _switch(state, call, "inactive")


def reactivate_meter(state: State, call: Call) -> Write:
    """POST /v1/billing/meters/{id}/reactivate"""
    return _switch(state, call, "active")


def _switch(state: State, call: Call, status: str) -> Write:
    checked(call.params)
    meter = find_meter(state, call.target)
    if meter["status"] == status:
        raise forbidden(f"The billing meter '{meter['id']}' is already {status}.")
    if status == "active":
        _refuse_second_active_meter(state, meter["event_name"])
    deactivated_at = call.epoch if status == "inactive" else None
    change = {
        "status": status,
        "status_transitions": {"deactivated_at": deactivated_at},
        "updated": call.epoch,
    }
    return Write((updated("meter", {**meter, **change}),))


def _refuse_second_active_meter(state: State, event_name: str) -> None:
    taken = state.active_meters.get(event_name)
    if taken is not None:
        raise forbidden(
            f"An active meter ('{taken['id']}') already exists for the event name '{event_name}'.",
            param="event_name",
        )


def find_meter(state: State, id: str) -> Body:
    """The meter named by the path.  Raises `Refusal` (404)."""
    meter = state.find("meter", id)
    if meter is None:
        raise no_such("billing meter", id)
    return meter
