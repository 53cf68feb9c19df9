"""What the simulator tells about itself, outside Stripe's API: health and journal.

For tests and for whoever judges what was counted: everything is taken from the journal's lines, never from
the state, so it is an independent account.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from billing_pipeline.stripe_simulator.journal import Journal, Record
from billing_pipeline.stripe_simulator.parameters import checked, integer, text
from billing_pipeline.stripe_simulator.wire import Answer, invalid


def health() -> Answer:
    """GET /_health, without a key"""
    return Answer(200, {}, {"status": "ok"})


def journal_lines(journal: Journal, params: Mapping[str, Any]) -> Answer:
    """GET /_journal: the records, one JSON object a line, optionally `after` a line number and of one `kind`."""
    given = checked(params, optional={"after": integer(0), "kind": text()})
    wanted = (r for r in journal.read(given.get("after", 0)) if given.get("kind") in (None, r["kind"]))
    lines = "".join(f"{json.dumps(record)}\n" for record in wanted)
    return Answer(200, {"Content-Type": "application/x-ndjson"}, lines)


def _hour(record: Record) -> str:
    hour = datetime.fromtimestamp(record["timestamp"], UTC).replace(minute=0, second=0)
    return hour.isoformat().replace("+00:00", "Z")


_GROUPS: dict[str, Callable[[Record], str]] = {
    "customer": lambda record: record["customer"],
    "event_name": lambda record: record["event_name"],
    "hour": _hour,
}


def counted_sums(journal: Journal, params: Mapping[str, Any]) -> Answer:
    """GET /_journal/meter_events: number and exact sum of the counted meter events, by `group`.

    `group` is any of customer, event_name and hour, joined by commas; all three by default.
    Lag plays no part here: an event is counted from the moment it is acknowledged.
    """
    names = checked(params, optional={"group": text()}).get("group", ",".join(_GROUPS)).split(",")
    for name in names:
        if name not in _GROUPS:
            raise invalid(f"Unknown group '{name}'; known are {', '.join(_GROUPS)}.", "group")
    sums: dict[tuple[str, ...], tuple[int, Decimal]] = {}
    for record in journal.read():
        if record["kind"] == "meter_event":
            key = tuple(_GROUPS[name](record) for name in names)
            count, value = sums.get(key, (0, Decimal(0)))
            sums[key] = count + 1, value + Decimal(record["value"])
    data = [
        {**dict(zip(names, key, strict=True)), "count": count, "value": format(value, "f")}
        for key, (count, value) in sorted(sums.items())
    ]
    return Answer(200, {}, {"object": "list", "data": data})
