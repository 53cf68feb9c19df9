"""GET /v1/events and /v1/events/{id}: the account's events of the last 30 days, newest first.

An event is shown as it was made; only `pending_webhooks` is of now.
Source: Stripe's API reference, "List all events".
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

from billing_pipeline.stripe_simulator.calls import Call
from billing_pipeline.stripe_simulator.lists import LIMIT_DEFAULT, PAGING
from billing_pipeline.stripe_simulator.parameters import checked, flag, integer, sequence, text
from billing_pipeline.stripe_simulator.snapshots import Snapshot
from billing_pipeline.stripe_simulator.state import State
from billing_pipeline.stripe_simulator.wire import Body, invalid, no_such

KEPT_SECONDS = 30 * 86_400
TYPES_MAX = 20
_FAR = 1 << 60


def _span(name: str, raw: Any) -> tuple[int, int]:
    """One second, or bounds, as the first and the last second that they let through."""
    if not isinstance(raw, dict):
        exact = integer(0)(name, raw)
        return exact, exact
    given = checked(raw, optional=dict.fromkeys(("gt", "gte", "lt", "lte"), integer(0)), inside=name)
    low = max(given.get("gt", -1) + 1, given.get("gte", 0))
    high = min(given.get("lt", _FAR) - 1, given.get("lte", _FAR))
    return low, high


_FILTERS = {**PAGING, "created": _span, "delivery_success": flag, "type": text(), "types": sequence(text())}


def list_events(state: State, call: Call) -> Body:
    """The page of events that every filter lets through.  A type may end in `*`."""
    given = checked(call.params, optional=_FILTERS)
    types = given.get("types", [])
    if len(types) > TYPES_MAX:
        raise invalid(f"types can have at most {TYPES_MAX} items.", "types")
    if types and "type" in given:
        raise invalid("You may only specify one of these parameters: type, types.", "type")
    low, high = given.get("created", (0, _FAR))
    low = max(low, call.epoch - KEPT_SECONDS)
    return _page(state, given, low, high)


def _page(state: State, given: Body, low: int, high: int) -> Body:
    # Lazily: a page of the newest must not cost a walk through all that ever happened.
    limit = given.get("limit", LIMIT_DEFAULT)
    after, before = (_cursor(state, given, name) for name in ("starting_after", "ending_before"))
    if after and before:
        raise invalid("You may only specify one of these parameters: starting_after, ending_before.", "ending_before")
    walk = (
        state.events.newest_first(low, high, after) if before is None else state.events.oldest_first(low, high, before)
    )
    found = list(islice(_wanted(state, walk, given), limit + 1))
    shown = found[:limit] if before is None else found[:limit][::-1]
    data = [event.body(state.deliveries.pending(event.id)) for event in shown]
    return {"object": "list", "url": "/v1/events", "has_more": len(found) > limit, "data": data}


def _wanted(state: State, events: Iterator[Snapshot], given: Body) -> Iterator[Snapshot]:
    patterns = given.get("types", [given["type"]] if "type" in given else [])
    delivered = given.get("delivery_success")
    for event in events:
        if patterns and not any(matches(event.type, pattern) for pattern in patterns):
            continue
        if delivered is None or delivered == state.deliveries.succeeded(event.id):
            yield event


def matches(type: str, pattern: str) -> bool:
    """Whether an event type is the one asked for, or begins as a pattern with `*` says."""
    return type.startswith(pattern[:-1]) if pattern.endswith("*") else type == pattern


def _cursor(state: State, given: Body, name: str) -> Snapshot | None:
    if name not in given:
        return None
    event = state.events.find(given[name])
    if event is None:
        raise no_such("event", given[name], param=name)
    return event


def retrieve_event(state: State, call: Call) -> Body:
    """GET /v1/events/{id}"""
    checked(call.params)
    event = state.events.find(call.target)
    if event is None or event.created < call.epoch - KEPT_SECONDS:
        raise no_such("event", call.target)
    return event.body(state.deliveries.pending(event.id))
