"""The body that answers a request, read from the last record the request wrote.

Used for the first answer and for every repeat of it, so that a repeat cannot differ.
"""

from __future__ import annotations

from datetime import UTC, datetime

from billing_pipeline.stripe_simulator.display import displayed
from billing_pipeline.stripe_simulator.journal import Record
from billing_pipeline.stripe_simulator.sessions import token_of
from billing_pipeline.stripe_simulator.wire import Body, Channel, rfc3339


def answer_body(record: Record) -> Body:
    """The answer in the shape of the way in: v1, v2, or the stream's empty object."""
    if "answer" in record:
        # Recorded as it was given: an error after the work was done.
        answer: Body = record["answer"]
        return answer
    if record.get("channel") == Channel.STREAM:
        return {}
    match record["kind"]:
        case "meter_event" | "meter_event_lost":
            return _meter_event_v2(record) if record.get("channel") == Channel.V2 else _meter_event_v1(record)
        case "meter_event_session":
            return {**record["object"], "authentication_token": token_of(record["object"])}
        case "webhook_attempt":
            return dict(record["object"])
    return displayed(record["kind"], record["object"])


def _meter_event_v1(record: Record) -> Body:
    return {
        "object": "billing.meter_event",
        "created": int(datetime.fromisoformat(record["received_at"]).timestamp()),
        "event_name": record["event_name"],
        "identifier": record["identifier"],
        "livemode": False,
        "payload": record["payload"],
        "timestamp": record["timestamp"],
    }


def _meter_event_v2(record: Record) -> Body:
    return {
        "object": "v2.billing.meter_event",
        "created": rfc3339(datetime.fromisoformat(record["received_at"])),
        "event_name": record["event_name"],
        "identifier": record["identifier"],
        "livemode": False,
        "payload": record["payload"],
        "timestamp": rfc3339(datetime.fromtimestamp(record["timestamp"], UTC)),
    }
