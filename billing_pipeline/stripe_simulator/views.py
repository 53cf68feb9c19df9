"""What the simulator tells about itself, outside Stripe's API: health, journal, faults and webhooks.

For tests and for whoever judges what was counted: all that is counted is taken from the journal's lines, never from
the state, so it is an independent account.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from billing_pipeline.stripe_simulator.faults import Faults
from billing_pipeline.stripe_simulator.journal import Journal, Record
from billing_pipeline.stripe_simulator.keys import KeyMode, authenticate
from billing_pipeline.stripe_simulator.parameters import checked, integer, text
from billing_pipeline.stripe_simulator.state import State
from billing_pipeline.stripe_simulator.wire import Answer, Refusal, Request, invalid


def own_answer(
    request: Request, now: datetime, keys: Mapping[str, KeyMode], journal: Journal, faults: Faults, state: State
) -> Answer:
    """The answer to a path that begins with an underscore; all but the health need a key."""
    endpoint = (request.method, request.path)
    try:
        if endpoint == ("GET", "/_health"):
            return health()
        authenticate(request.headers, keys, now)
        match endpoint:
            case ("GET", "/_journal"):
                return journal_lines(journal, request.params)
            case ("GET", "/_journal/meter_events"):
                return counted_sums(journal, request.params)
            case ("GET", "/_faults"):
                return faults_applied(faults)
            case ("GET", "/_webhooks"):
                return webhooks(state)
        raise Refusal(404, f"Unrecognized request URL ({request.method}: {request.path}).")
    except Refusal as refusal:
        return Answer(refusal.status, refusal.headers, refusal.body)


def health() -> Answer:
    """GET /_health, without a key"""
    return Answer(200, {}, {"status": "ok"})


def journal_lines(journal: Journal, params: Mapping[str, Any]) -> Answer:
    """GET /_journal: the records, one JSON object a line, optionally `after` a line number and of one `kind`."""
    given = checked(params, optional={"after": integer(0), "kind": text()})
    wanted = (r for r in journal.read(given.get("after", 0)) if given.get("kind") in (None, r["kind"]))
    lines = "".join(f"{json.dumps(record)}\n" for record in wanted)
    return Answer(200, {"Content-Type": "application/x-ndjson"}, lines)


def faults_applied(faults: Faults) -> Answer:
    """GET /_faults: the number of API calls, and of the faults applied to them, by kind."""
    applied = {str(kind): count for kind, count in sorted(faults.applied.items())}
    return Answer(200, {}, {"object": "faults", "calls": faults.calls, "applied": applied})


def webhooks(state: State) -> Answer:
    """GET /_webhooks: how many events were made, how many deliveries are on their way, and what befell them."""
    troubles = {str(kind): count for kind, count in sorted(state.webhook_troubles().items())}
    counts = {"events": len(state.events), "deliveries_open": state.deliveries.open_count}
    return Answer(200, {}, {"object": "webhooks", **counts, "troubles": troubles})


def _hour(record: Record) -> str:
    hour = datetime.fromtimestamp(record["timestamp"], UTC).replace(minute=0, second=0)
    return hour.isoformat().replace("+00:00", "Z")


_SIGNS = {"meter_event": 1, "meter_event_cancelled": -1}
_GROUPS: dict[str, Callable[[Record], str]] = {
    "customer": lambda record: record["customer"],
    "event_name": lambda record: record["event_name"],
    "hour": _hour,
}


def counted_sums(journal: Journal, params: Mapping[str, Any]) -> Answer:
    """GET /_journal/meter_events: number and exact sum of the counted meter events, by `group`.

    `group` is any of customer, event_name and hour, joined by commas; all three by default.
    Lag plays no part here: an event is counted from the moment it is acknowledged until it is cancelled.
    """
    names = checked(params, optional={"group": text()}).get("group", ",".join(_GROUPS)).split(",")
    for name in names:
        if name not in _GROUPS:
            raise invalid(f"Unknown group '{name}'; known are {', '.join(_GROUPS)}.", "group")
    sums: dict[tuple[str, ...], tuple[int, Decimal]] = {}
    for record in journal.read():
        sign = _SIGNS.get(record["kind"])
        if sign is not None:
            key = tuple(_GROUPS[name](record) for name in names)
            count, value = sums.get(key, (0, Decimal(0)))
            sums[key] = count + sign, value + sign * Decimal(record["value"])
    data = [
        {**dict(zip(names, key, strict=True)), "count": count, "value": format(value, "f")}
        for key, (count, value) in sorted(sums.items())
        if count
    ]
    return Answer(200, {}, {"object": "list", "data": data})
