"""POST /v1/billing/meter_events: whether a meter event is counted.

Everything is checked before it is counted, in this order: the parameters, the meter, the payload, the
customer, the timestamp, and last the identifier.
Sources: Stripe's OpenAPI specification (PostBillingMeterEvents), its guide "Record usage for billing", its
changelog 2026-04-22 for the 15 digits; the wording of messages is the observed one where Stripe documents none.
"""

from __future__ import annotations

from datetime import timedelta

from billing_pipeline.stripe_simulator.calls import Call, Write
from billing_pipeline.stripe_simulator.journal import Record
from billing_pipeline.stripe_simulator.parameters import (
    Check,
    checked,
    integer,
    is_plain_decimal,
    string_map,
    text,
)
from billing_pipeline.stripe_simulator.state import State
from billing_pipeline.stripe_simulator.wire import Body, Refusal, forbidden, no_such

PAST_MAX = timedelta(days=35)
FUTURE_MAX = timedelta(minutes=5)
DIGITS_MAX = 15

_REQUIRED: dict[str, Check] = {"event_name": text(100), "payload": string_map}
_OPTIONAL: dict[str, Check] = {"identifier": text(100), "timestamp": integer()}


def create_meter_event(state: State, call: Call) -> Write:
    """Count one meter event, or refuse it.

    One call at a time per customer and meter: the second gets 429 `lock_timeout` and is not executed.
    An identifier that was counted within the horizon is refused whatever the payload says.
    """
    given = checked(call.params, _REQUIRED, _OPTIONAL)
    meter = state.active_meters.get(given["event_name"])
    if meter is None:
        raise forbidden(f"No active meter found for event name '{given['event_name']}'.")
    customer, value = _customer_and_value(meter, given["payload"])
    if state.live("customer", customer) is None:
        raise no_such("customer", customer, param="payload")
    call.hold((customer, meter["id"]))
    timestamp = given.get("timestamp", call.epoch)
    _refuse_timestamp(timestamp, call)
    identifier = given.get("identifier") or state.digest("identifier", state.line + 1)
    if state.meter_events.is_taken(identifier, call.now):
        raise _duplicate(identifier)
    record: Record = {
        "kind": "meter_event",
        "identifier": identifier,
        "event_name": given["event_name"],
        "meter": meter["id"],
        "customer": customer,
        "value": value,
        "timestamp": timestamp,
        "payload": given["payload"],
    }
    # Journaled, not recomputed at a restart, so that a varying lag is decided once.
    record["visible_at"] = (call.now + call.lag_of(record)).isoformat()
    return Write((record,))


def _customer_and_value(meter: Body, payload: dict[str, str]) -> tuple[str, str]:
    customer_key = meter["customer_mapping"]["event_payload_key"]
    value_key = meter["value_settings"]["event_payload_key"]
    for key in (customer_key, value_key):
        if not payload.get(key):
            raise forbidden(f"The event payload must contain the key '{key}' with a value.", param="payload")
    value = payload[value_key]
    if not is_plain_decimal(value):
        raise forbidden(f"The value in the event payload must be a decimal number. Received {value}.", param="payload")
    # Zeros at the end count: that is the stricter reading of "significant".
    if len(value.lstrip("-").replace(".", "").lstrip("0")) > DIGITS_MAX:
        raise forbidden(f"The value in the event payload can have at most {DIGITS_MAX} digits. Received {value}.")
    return payload[customer_key], value


def _refuse_timestamp(timestamp: int, call: Call) -> None:
    oldest = call.epoch - int(PAST_MAX.total_seconds())
    newest = call.epoch + int(FUTURE_MAX.total_seconds())
    if timestamp < oldest:
        raise forbidden(
            "The event timestamp cannot be more than 35 days in past. "
            f"Expected a timestamp greater than or equal to {oldest}.",
            param="timestamp",
        )
    if timestamp > newest:
        raise forbidden(
            "The event timestamp cannot be more than 5 minutes in future. "
            f"Expected a timestamp less than or equal to {newest}.",
            param="timestamp",
        )


def _duplicate(identifier: str) -> Refusal:
    return Refusal(
        400,
        f"An event already exists with identifier {identifier}.",
        headers={"Stripe-Should-Retry": "false"},
        executed=True,
    )
