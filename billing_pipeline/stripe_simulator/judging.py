"""Whether a meter event is counted: the one rule behind v1, v2 and the stream.

Called with an event whose form has been checked.  Everything is checked before it is counted, in this order: the
meter, the payload, the customer, the timestamp, and last the identifier.
Sources: Stripe's guide "Record usage for billing"; its changelog 2026-04-22 for the 15 digits.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import timedelta
from typing import Any

from billing_pipeline.stripe_simulator.calls import Call
from billing_pipeline.stripe_simulator.journal import Record
from billing_pipeline.stripe_simulator.parameters import is_plain_decimal
from billing_pipeline.stripe_simulator.reasons import NotCounted, Reason
from billing_pipeline.stripe_simulator.state import State
from billing_pipeline.stripe_simulator.wire import Body, Channel

PAST_SECONDS_MAX = 35 * 86_400
FUTURE_SECONDS_MAX = 5 * 60
DIGITS_MAX = 15


def judge(
    state: State,
    call: Call,
    given: Mapping[str, Any],
    identifier: str,
    channel: Channel,
    taken: Collection[str] = (),
) -> Record:
    """The record that counts one meter event.  Raises `NotCounted`.

    An identifier that was counted within the horizon, or that is among `taken`, is refused whatever the payload says.
    But for the stream, one call at a time per customer and meter: `call.hold` refuses the second, which is not
    executed.
    """
    meter = meter_of(state, given["event_name"])
    customer, value = _customer_and_value(state, meter, given["payload"])
    delay = call.stream_delay
    if channel is not Channel.STREAM:
        call.hold((customer, meter["id"]))
        delay = timedelta(0)
    timestamp = _timestamp(call, given, meter)
    if identifier in taken or state.meter_events.is_taken(identifier, call.now):
        raise NotCounted(Reason.DUPLICATE, identifier, meter)
    record: Record = {
        "kind": "meter_event",
        "channel": channel,
        "identifier": identifier,
        "event_name": given["event_name"],
        "meter": meter["id"],
        "customer": customer,
        "value": value,
        "timestamp": timestamp,
        "payload": given["payload"],
    }
    # Journaled, not recomputed at a restart, so that a varying lag is decided once.
    record["visible_at"] = (call.now + delay + call.lag_of(record)).isoformat()
    return record


def identifier_of(state: State, given: Mapping[str, Any], position: int = 0) -> str:
    """The event's own identifier, or the one that Stripe makes; `position` is its place in a batch."""
    return given.get("identifier") or state.digest("identifier", state.line + 1 + position)


def meter_of(state: State, event_name: str) -> Body:
    """The active meter that takes this event name.  Raises `NotCounted`."""
    meter = state.active_meters.get(event_name)
    if meter is not None:
        return meter
    for archived in state.newest_first("meter"):
        if archived["event_name"] == event_name:
            raise NotCounted(Reason.ARCHIVED_METER, event_name, archived)
    raise NotCounted(Reason.NO_METER, event_name)


def _customer_and_value(state: State, meter: Body, payload: dict[str, str]) -> tuple[str, str]:
    customer_key = meter["customer_mapping"]["event_payload_key"]
    value_key = meter["value_settings"]["event_payload_key"]
    customer, value = payload.get(customer_key), payload.get(value_key)
    if not customer:
        raise NotCounted(Reason.NO_CUSTOMER_KEY, customer_key, meter)
    if not value:
        raise NotCounted(Reason.NO_VALUE_KEY, value_key, meter)
    if not is_plain_decimal(value):
        raise NotCounted(Reason.INVALID_VALUE, value, meter)
    # Zeros at the end count: that is the stricter reading of "significant".
    if len(value.lstrip("-").replace(".", "").lstrip("0")) > DIGITS_MAX:
        raise NotCounted(Reason.TOO_MANY_DIGITS, value, meter)
    if state.live("customer", customer) is None:
        raise NotCounted(Reason.NO_SUCH_CUSTOMER, customer, meter)
    return customer, value


def _timestamp(call: Call, given: Mapping[str, Any], meter: Body) -> int:
    epoch = call.epoch
    timestamp: int = given.get("timestamp", epoch)
    if timestamp < epoch - PAST_SECONDS_MAX:
        raise NotCounted(Reason.TOO_OLD, epoch - PAST_SECONDS_MAX, meter)
    if timestamp > epoch + FUTURE_SECONDS_MAX:
        raise NotCounted(Reason.IN_FUTURE, epoch + FUTURE_SECONDS_MAX, meter)
    return timestamp
