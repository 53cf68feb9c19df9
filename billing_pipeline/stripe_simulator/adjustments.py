"""POST /v1/billing/meter_event_adjustments: takes one counted meter event out of the summaries.

Only within 24 hours of its receipt; a range of time cannot be cancelled (Stripe's API reference, "Meter event
adjustments").
The identifier stays taken: whether Stripe frees it is undocumented, and a second event under it must not slip in.
"""

from __future__ import annotations

from datetime import timedelta

from billing_pipeline.stripe_simulator.calls import Call, Write
from billing_pipeline.stripe_simulator.counted import CountedMeterEvent
from billing_pipeline.stripe_simulator.parameters import checked, group, one_of, text
from billing_pipeline.stripe_simulator.state import State
from billing_pipeline.stripe_simulator.wire import Refusal, forbidden

CANCEL_WITHIN = timedelta(hours=24)
_REQUIRED = {"event_name": text(100), "type": one_of("cancel"), "cancel": group({"identifier": text(100)})}


def create_adjustment(state: State, call: Call) -> Write:
    """Cancel a meter event by its identifier.

    The status is `pending` while the cancellation has yet to show (`stream_delay`), else `complete`.
    """
    given = checked(call.params, _REQUIRED)
    identifier, event_name = given["cancel"]["identifier"], given["event_name"]
    event = state.meter_events.find(identifier)
    if event is None or event.event_name != event_name:
        raise forbidden(f"No meter event found with identifier '{identifier}' for event name '{event_name}'.")
    _refuse_late_or_repeated(state, call, event, identifier)
    effective_at = call.now + call.stream_delay
    adjustment = {
        "object": "billing.meter_event_adjustment",
        "cancel": {"identifier": identifier},
        "event_name": event_name,
        "livemode": False,
        "status": "pending" if effective_at > call.now else "complete",
        "type": "cancel",
    }
    record = {
        "kind": "meter_event_cancelled",
        "identifier": identifier,
        "event_name": event_name,
        "meter": event.meter,
        "customer": event.customer,
        "value": format(event.value, "f"),
        "timestamp": event.timestamp,
        "cancelled_line": event.line,
        "effective_at": effective_at.isoformat(),
        "object": adjustment,
    }
    return Write((record,))


def _refuse_late_or_repeated(state: State, call: Call, event: CountedMeterEvent, identifier: str) -> None:
    if call.now - event.received_at >= CANCEL_WITHIN:
        raise _refused(f"The meter event '{identifier}' was received more than 24 hours ago.")
    if state.meter_events.is_cancelled(event):
        raise _refused(f"The meter event '{identifier}' has already been cancelled.")


def _refused(message: str) -> Refusal:
    return forbidden(message, param="cancel[identifier]")
