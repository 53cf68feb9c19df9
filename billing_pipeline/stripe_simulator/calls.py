"""What a resource module receives and what it gives back.

The core makes a `Call` of an authenticated request; an endpoint answers with a body when it only read, or with
the records that would change the state.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from billing_pipeline.stripe_simulator.journal import Record
from billing_pipeline.stripe_simulator.state import State
from billing_pipeline.stripe_simulator.wire import Body


@dataclass(frozen=True, slots=True)
class Call:
    """One authenticated request: when, on what (`target`, the id in the path), with which parameters.

    `hold` reserves something for as long as the call is being processed and refuses when another call has it.
    `lag_of` tells how long a meter event stays invisible in the summaries, and `stream_delay` how long what is
    judged after the answer (the stream, cancellations) takes to have its effect.
    """

    now: datetime
    target: str
    params: Mapping[str, Any]
    hold: Callable[[Hashable], None]
    lag_of: Callable[[Record], timedelta]
    stream_delay: timedelta

    @property
    def epoch(self) -> int:
        """Now, in whole epoch seconds, as Stripe states times."""
        return int(self.now.timestamp())


@dataclass(frozen=True, slots=True)
class Write:
    """Records to journal and apply together; the last one is what the request is answered with."""

    records: tuple[Record, ...]


Endpoint = Callable[[State, Call], Body | Write]


_STEMS = {"customer": "customer", "invoice": "invoice", "subscription": "customer.subscription"}
"""What Stripe calls the events of a kind; the other kinds tell of nothing by themselves."""


def created(kind: str, body: Body, *events: str) -> Record:
    """A new object, whole, and the types of the events it makes: by default its own creation."""
    return _record(kind, "created", body, events)


def updated(kind: str, body: Body, *events: str) -> Record:
    """An object as it is after the change, whole; `events` replace the one of an update."""
    return _record(kind, "updated", body, events)


def silent(kind: str, body: Body) -> Record:
    """An object that no event tells of: what is repeated as the answer, and what only the simulator knows."""
    return {"kind": kind, "change": "updated", "object": body}


def deleted(kind: str, stripe_name: str, id: str) -> Record:
    """What Stripe shows of an object after it is gone; its event shows it as it was."""
    return _record(kind, "deleted", {"id": id, "object": stripe_name, "deleted": True}, ())


def _record(kind: str, change: str, body: Body, events: tuple[str, ...]) -> Record:
    record: Record = {"kind": kind, "change": change, "object": body}
    told = list(events) or ([f"{_STEMS[kind]}.{change}"] if kind in _STEMS else [])
    return {**record, "events": told} if told else record
