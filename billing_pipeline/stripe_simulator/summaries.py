"""GET /v1/billing/meters/{id}/event_summaries: what a customer used, as Stripe shows it.

Only events whose lag is over are seen, and only spans that hold an event are listed, newest first.
The amount is a float because Stripe's is; it is computed exactly and converted once.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

from billing_pipeline.stripe_simulator.calls import Call
from billing_pipeline.stripe_simulator.counted import MINUTE, CountedMeterEvent
from billing_pipeline.stripe_simulator.lists import PAGING, page
from billing_pipeline.stripe_simulator.meters import find_meter
from billing_pipeline.stripe_simulator.parameters import checked, integer, one_of, text
from billing_pipeline.stripe_simulator.state import State
from billing_pipeline.stripe_simulator.wire import Body, invalid, no_such

WINDOW_SECONDS = {"hour": 3600, "day": 86_400}


def list_summaries(state: State, call: Call) -> Body:
    """One summary per hour or UTC day, or one for the whole span when no grouping is asked for.

    `start_time` is included, `end_time` is not; both lie on a minute, or on the grouping's own bounds.
    """
    required = {"customer": text(), "start_time": integer(0), "end_time": integer(0)}
    given = checked(call.params, required, {**PAGING, "value_grouping_window": one_of(*WINDOW_SECONDS)})
    meter, customer = find_meter(state, call.target), given["customer"]
    if state.find("customer", customer) is None:
        raise no_such("customer", customer, param="customer")
    start, end = given["start_time"], given["end_time"]
    window = WINDOW_SECONDS.get(given.get("value_grouping_window", ""))
    _refuse_bounds(start, end, window or MINUTE)

    spans: dict[int, list[CountedMeterEvent]] = {}
    for event in state.meter_events.visible(meter["id"], customer, start, end, call.now):
        spans.setdefault(start if window is None else event.timestamp // window * window, []).append(event)
    summaries = []
    for span_start, events in sorted(spans.items(), reverse=True):
        span_end = end if window is None else span_start + window
        summaries.append(_summary(state, meter, customer, (span_start, span_end), events))
    url = f"/v1/billing/meters/{meter['id']}/event_summaries"
    return page(summaries, given, url=url, what="billing meter event summary")


def _refuse_bounds(start: int, end: int, unit: int) -> None:
    for name, bound in (("start_time", start), ("end_time", end)):
        if bound % unit:
            raise invalid(f"{name} must be aligned with {unit}-second boundaries in UTC.", name)
    if end <= start:
        raise invalid("end_time must be after start_time.", "end_time")


def _summary(state: State, meter: Body, customer: str, span: tuple[int, int], events: list[CountedMeterEvent]) -> Body:
    start, end = span
    return {
        "id": f"mtrusg_test_{state.digest(meter['id'], customer, start, end)}",
        "object": "billing.meter_event_summary",
        "aggregated_value": float(aggregate(meter, events)),
        "end_time": end,
        "livemode": False,
        "meter": meter["id"],
        "start_time": start,
    }


def aggregate(meter: Body, events: Iterable[CountedMeterEvent]) -> Decimal:
    """The exact amount of at least one event by the meter's formula.

    On a pre-aggregated meter (`event_time_window`) only the event received last in each UTC hour or day counts.
    """
    in_order = sorted(events, key=lambda event: event.line)
    window = WINDOW_SECONDS.get(meter["event_time_window"] or "")
    if window is not None:
        in_order = list({event.timestamp // window: event for event in in_order}.values())
    match meter["default_aggregation"]["formula"]:
        case "count":
            return Decimal(len(in_order))
        case "last":
            # Of two events with the same timestamp, the one received later.
            return max(in_order, key=lambda event: (event.timestamp, event.line)).value
        case _:
            return sum((event.value for event in in_order), Decimal(0))
