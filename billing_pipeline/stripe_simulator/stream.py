"""The meter event stream: 15-minute sessions, and batches that are answered first and judged afterwards.

A request whose form is right is answered 200 with `{}`, whatever becomes of its events: each is counted, or
rejected into an error report (`error_reports`), or dropped in silence when its identifier is taken.
The verdict is reached at once from the state at receipt and takes effect `stream_delay` later, so no task runs
in the background.
Sources: Stripe's OpenAPI specification (PostV2BillingMeterEventStream); its API v2 reference for the 15 minutes.
"""

from __future__ import annotations

from datetime import timedelta

from billing_pipeline.stripe_simulator.calls import Call, Write, created
from billing_pipeline.stripe_simulator.journal import Record
from billing_pipeline.stripe_simulator.judging import identifier_of, judge
from billing_pipeline.stripe_simulator.meter_events import OPTIONAL_V2, REQUIRED_V2
from billing_pipeline.stripe_simulator.parameters import checked, group, json_list
from billing_pipeline.stripe_simulator.reasons import NotCounted, Reason, reported
from billing_pipeline.stripe_simulator.state import State
from billing_pipeline.stripe_simulator.wire import Channel, rfc3339

STREAM_PATH = "/v2/billing/meter_event_stream"
SESSION_LIFE = timedelta(minutes=15)
EVENTS_MAX = 100

_BATCH = {"events": json_list(group(REQUIRED_V2, OPTIONAL_V2), EVENTS_MAX)}


def create_session(state: State, call: Call) -> Write:
    """POST /v2/billing/meter_event_session; any number of sessions may be alive"""
    checked(call.params)
    session = {
        "id": state.new_id("meter_event_session", "mes_test"),
        "object": "v2.billing.meter_event_session",
        "created": rfc3339(call.now),
        "expires_at": rfc3339(call.now + SESSION_LIFE),
        "livemode": False,
    }
    return Write((created("meter_event_session", session),))


def create_stream(state: State, call: Call) -> Write:
    """POST /v2/billing/meter_event_stream; one record per event, all of them written together"""
    batch = checked(call.params, _BATCH)["events"]
    records: list[Record] = []
    taken: set[str] = set()
    for given in batch:
        identifier = identifier_of(state, given, len(records))
        try:
            records.append(judge(state, call, given, identifier, Channel.STREAM, taken))
            taken.add(identifier)
        except NotCounted as fault:
            records.append(_not_counted(call, given["event_name"], identifier, fault))
    return Write(tuple(records))


def _not_counted(call: Call, event_name: str, identifier: str, fault: NotCounted) -> Record:
    common = {"channel": Channel.STREAM, "identifier": identifier, "event_name": event_name}
    if fault.reason is Reason.DUPLICATE:
        return {"kind": "meter_event_dropped_duplicate", **common}
    code, message = reported(fault)
    return {
        "kind": "meter_event_rejected",
        **common,
        "meter": None if fault.meter is None else fault.meter["id"],
        "code": code,
        "message": message,
        "judged_at": (call.now + call.stream_delay).isoformat(),
    }
