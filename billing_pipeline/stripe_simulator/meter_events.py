"""POST /v1/billing/meter_events and POST /v2/billing/meter_events: one meter event, judged before the answer.

The two differ in form only: v1 takes a form with epoch seconds, v2 takes JSON with RFC 3339 timestamps and
names every refusal by a code.
Sources: Stripe's OpenAPI specification (PostBillingMeterEvents, PostV2BillingMeterEvents).
"""

from __future__ import annotations

from billing_pipeline.stripe_simulator.calls import Call, Write
from billing_pipeline.stripe_simulator.judging import identifier_of, judge
from billing_pipeline.stripe_simulator.parameters import (
    Check,
    checked,
    instant_seconds,
    integer,
    json_string_map,
    string_map,
    text,
)
from billing_pipeline.stripe_simulator.reasons import NotCounted, refusal_v1, refusal_v2
from billing_pipeline.stripe_simulator.state import State
from billing_pipeline.stripe_simulator.wire import Channel

REQUIRED_V2: dict[str, Check] = {"event_name": text(100), "payload": json_string_map}
OPTIONAL_V2: dict[str, Check] = {"identifier": text(100), "timestamp": instant_seconds}
_REQUIRED_V1: dict[str, Check] = {"event_name": text(100), "payload": string_map}
_OPTIONAL_V1: dict[str, Check] = {"identifier": text(100), "timestamp": integer()}


def create_meter_event(state: State, call: Call) -> Write:
    """Count one meter event of a form, or refuse it."""
    given = checked(call.params, _REQUIRED_V1, _OPTIONAL_V1)
    try:
        return Write((judge(state, call, given, identifier_of(state, given), Channel.V1),))
    except NotCounted as fault:
        raise refusal_v1(fault) from None


def create_meter_event_v2(state: State, call: Call) -> Write:
    """Count one meter event of a JSON body, or refuse it by code."""
    given = checked(call.params, REQUIRED_V2, OPTIONAL_V2)
    try:
        return Write((judge(state, call, given, identifier_of(state, given), Channel.V2),))
    except NotCounted as fault:
        raise refusal_v2(fault) from None
