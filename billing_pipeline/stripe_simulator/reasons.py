"""Why a meter event is not counted, and how each of Stripe's three ways in says so.

Raised by `judging`; turned into an answer by the v1 and v2 endpoints, and into a line of an error report by the
stream, which judges after it has answered.
Sources: the observed v1 messages; the codes of Stripe's OpenAPI specification (PostV2BillingMeterEvents); the
codes of `v1.billing.meter.error_report_triggered` in its SDK, with `meter_event_value_not_found` from its guide.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from billing_pipeline.stripe_simulator.wire import Body, Refusal


class Reason(StrEnum):
    """What is wrong with a meter event that is well formed."""

    NO_METER = "no_meter"
    ARCHIVED_METER = "archived_meter"
    NO_CUSTOMER_KEY = "no_customer_key"
    NO_VALUE_KEY = "no_value_key"
    INVALID_VALUE = "invalid_value"
    TOO_MANY_DIGITS = "too_many_digits"
    NO_SUCH_CUSTOMER = "no_such_customer"
    TOO_OLD = "too_old"
    IN_FUTURE = "in_future"
    DUPLICATE = "duplicate"


class NotCounted(Exception):
    """This meter event is not counted, because of `reason`.

    `about` is what the message names; `meter` is the one that took the event, if any did.
    """

    def __init__(self, reason: Reason, about: object, meter: Body | None = None) -> None:
        super().__init__(f"{reason}: {about}")
        self.reason = reason
        self.about = about
        self.meter = meter


@dataclass(frozen=True, slots=True)
class _Words:
    """One reason's message, its parameter and code in v1 (where it has any), and its code in v2."""

    message: str
    param: str | None
    code_v1: str | None
    code_v2: str


_NO_ACTIVE_METER = "No active meter found for event name '{}'."
_NO_KEY = "The event payload must contain the key '{}' with a value."
_AT_ONCE = {
    Reason.NO_METER: _Words(_NO_ACTIVE_METER, None, None, "no_meter"),
    Reason.ARCHIVED_METER: _Words(_NO_ACTIVE_METER, None, None, "archived_meter"),
    Reason.NO_CUSTOMER_KEY: _Words(_NO_KEY, "payload", None, "payload_no_customer_defined"),
    Reason.NO_VALUE_KEY: _Words(_NO_KEY, "payload", None, "payload_no_value_defined"),
    Reason.INVALID_VALUE: _Words(
        "The value in the event payload must be a decimal number. Received {}.",
        "payload",
        None,
        "payload_invalid_value",
    ),
    Reason.TOO_MANY_DIGITS: _Words(
        "The value in the event payload can have at most 15 digits. Received {}.", None, None, "payload_invalid_value"
    ),
    Reason.NO_SUCH_CUSTOMER: _Words("No such customer: '{}'", "payload", "resource_missing", "resource_missing"),
    Reason.TOO_OLD: _Words(
        "The event timestamp cannot be more than 35 days in past. Expected a timestamp greater than or equal to {}.",
        "timestamp",
        None,
        "timestamp_too_far_in_past",
    ),
    Reason.IN_FUTURE: _Words(
        "The event timestamp cannot be more than 5 minutes in future. Expected a timestamp less than or equal to {}.",
        "timestamp",
        None,
        "timestamp_in_future",
    ),
    Reason.DUPLICATE: _Words("An event already exists with identifier {}.", None, None, "duplicate_meter_event"),
}

_LATER = {
    Reason.NO_METER: ("no_meter", "No meter was found matching event_name {}."),
    Reason.ARCHIVED_METER: ("archived_meter", "The meter matching event_name {} is archived."),
    Reason.NO_CUSTOMER_KEY: ("meter_event_no_customer_defined", "Customer mapping key {} not found in payload."),
    Reason.NO_VALUE_KEY: ("meter_event_value_not_found", "Value key {} not found in payload."),
    Reason.INVALID_VALUE: ("meter_event_invalid_value", "The value {} is not a decimal number."),
    Reason.TOO_MANY_DIGITS: ("meter_event_value_too_many_digits", "The value {} has more than 15 digits."),
    Reason.NO_SUCH_CUSTOMER: ("meter_event_customer_not_found", "No customer was found with id {}."),
    Reason.TOO_OLD: ("timestamp_too_far_in_past", "The timestamp is before {}, more than 35 days in the past."),
    Reason.IN_FUTURE: ("timestamp_in_future", "The timestamp is after {}, more than 5 minutes in the future."),
}


def refusal_v1(fault: NotCounted) -> Refusal:
    """The 400 of `POST /v1/billing/meter_events`, mostly without a code, as Stripe's are."""
    words = _AT_ONCE[fault.reason]
    return _refusal(fault, words, param=words.param, code=words.code_v1)


def refusal_v2(fault: NotCounted) -> Refusal:
    """The 400 of `POST /v2/billing/meter_events`, with a code."""
    words = _AT_ONCE[fault.reason]
    return _refusal(fault, words, param=None, code=words.code_v2)


def reported(fault: NotCounted) -> tuple[str, str]:
    """The code and the message of an error report.  A duplicate has none: the stream drops it silently."""
    code, message = _LATER[fault.reason]
    return code, message.format(fault.about)


def _refusal(fault: NotCounted, words: _Words, *, param: str | None, code: str | None) -> Refusal:
    headers = {"Stripe-Should-Retry": "false"} if fault.reason is Reason.DUPLICATE else {}
    message = words.message.format(fault.about)
    return Refusal(400, message, param=param, code=code, headers=headers, executed=True)
