"""The write-ahead witness: whatever reached the simulator was in the ledger before, attempt by attempt.

The simulator's side is taken at its door, so refused and repeated requests count too.  The ledger's side is read before
each restore and at the end: attempts of a timeline that was restored away stay known here.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from psycopg import Connection

from billing_pipeline.stripe_simulator.wire import Request

_STARTED = """
    SELECT 'attempt', a.attempt_id, e.identifier, a.started_at, a.outcome IS NOT NULL
      FROM billing_pipeline.attempts a JOIN billing_pipeline.ledger_entries e USING (entry_id)
     UNION ALL
    SELECT 'canary', c.canary_id, c.identifier, c.started_at, c.outcome IS NOT NULL
      FROM billing_pipeline.canaries c"""


@dataclass
class Witness:
    """Who was seen when, and who had said so before."""

    clock: Callable[[], datetime]
    seen: list[tuple[str, datetime]] = field(default_factory=list)
    _started: dict[tuple[str, int, str, datetime], bool] = field(default_factory=dict)

    def at_the_door(self, number: int, request: Request) -> None:
        """The simulator's seam for faults, which makes none."""
        now = self.clock()
        self.seen += [(identifier, now) for identifier in _identifiers(request)]

    def read_ledger(self, connection: Connection[Any]) -> None:
        """Remember every attempt and canary of this timeline."""
        for kind, number, identifier, started_at, answered in connection.execute(_STARTED):
            self._started[(kind, number, identifier, started_at)] = answered

    @property
    def never_heard_of(self) -> int:
        """Attempts whose outcome was never recorded: their worker, or its database, died in between."""
        return sum(not answered for answered in self._started.values())

    def unannounced(self) -> Iterator[str]:
        """Requests that came before their own attempt was in the ledger."""
        started: dict[str, list[datetime]] = defaultdict(list)
        for _, _, identifier, at in self._started:
            started[identifier].append(at)
        for times in started.values():
            times.sort()
        requests: dict[str, int] = defaultdict(int)
        for identifier, at in self.seen:
            requests[identifier] += 1
            before = bisect_right(started[identifier], at)
            if before < requests[identifier]:
                yield f"request {requests[identifier]} of {identifier} at {at}: {before} attempts were started before"


def _identifiers(request: Request) -> list[str]:
    if request.path == "/v1/billing/meter_events":
        return [str(request.params.get("identifier"))]
    if request.path == "/v2/billing/meter_event_stream":
        return [str(event["identifier"]) for event in request.params.get("events", ())]
    return []
