"""Every Event object of the account: what changed, as it was then.

Fed from the journal by `state`, one record at a time; listed by `events`, sent by the webhook deliveries.
A record names the types of the events it makes, so what was left out or told twice stays so after a restart.
Source: Stripe's API reference, "Events"; its rule for `previous_attributes` (a changed list is there as a whole).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime

from billing_pipeline.stripe_simulator.display import displayed
from billing_pipeline.stripe_simulator.journal import Record
from billing_pipeline.stripe_simulator.old_shape import in_old_shape, is_old
from billing_pipeline.stripe_simulator.webhook_weather import Trouble
from billing_pipeline.stripe_simulator.wire import Body

API_VERSION = "2026-10-28.endive"
"""What the account is set to; an event keeps the version it was made in."""

_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One event; `position` is its place in the order of making, `before` the object before the change."""

    id: str
    position: int
    type: str
    created: int
    kind: str
    object: Body
    before: Body | None
    request_id: str | None
    idempotency_key: str | None

    def body(
        self,
        pending_webhooks: int = 0,
        api_version: str = API_VERSION,
        price_of: Callable[[str], Body | None] = lambda _id: None,
    ) -> Body:
        """The Event object in the shape of a version; `price_of` finds the prices that the old shape embeds."""

        def shown(object: Body) -> Body:
            body = displayed(self.kind, object)
            return in_old_shape(self.kind, body, price_of) if is_old(api_version) else body

        data: Body = {"object": shown(self.object)}
        if self.before is not None and self.type.endswith(".updated"):
            data["previous_attributes"] = previous_attributes(shown(self.before), data["object"])
        return {
            "id": self.id,
            "object": "event",
            "api_version": api_version,
            "created": self.created,
            "data": data,
            "livemode": False,
            "pending_webhooks": pending_webhooks,
            "request": {"id": self.request_id, "idempotency_key": self.idempotency_key},
            "type": self.type,
        }


def previous_attributes(before: Body, after: Body) -> Body:
    """What had another value before, with that value; of a nested group only what changed in it."""
    previous: Body = {}
    for name in (*before, *(name for name in after if name not in before)):
        old, new = before.get(name, _ABSENT), after.get(name, _ABSENT)
        if isinstance(old, dict) and isinstance(new, dict):
            inner = previous_attributes(old, new)
            if inner:
                previous[name] = inner
        elif old != new:
            previous[name] = None if old is _ABSENT else old
    return previous


class Snapshots:
    """All events, by id and in the order of their `created`; `digest` makes the ids."""

    def __init__(self, digest: Callable[..., str]) -> None:
        self._digest = digest
        self._all: list[Snapshot] = []
        self._by_id: dict[str, Snapshot] = {}
        self._order: list[tuple[int, int]] = []
        self.troubles: Counter[Trouble] = Counter()

    def add(self, record: Record, before: Body | None, received_at: datetime) -> list[Snapshot]:
        """The events that one record makes.  An update that changed nothing makes none."""
        gone = record["change"] == "deleted"
        changed = before != record["object"]
        types = [type for type in record["events"] if changed or not type.endswith(".updated")]
        missing = [type for type in record.get("not_generated", ()) if changed or not type.endswith(".updated")]
        self.troubles[Trouble.NOT_GENERATED] += len(missing)
        self.troubles[Trouble.TWO_EVENTS] += len(types) - len(set(types))
        made = []
        for number, type in enumerate(types):
            event = Snapshot(
                id=f"evt_{self._digest('event', record['line'], number)}",
                position=len(self._all),
                type=type,
                created=int(received_at.timestamp()),
                kind=record["kind"],
                object=before if gone and before is not None else record["object"],
                before=before,
                request_id=record["request_id"],
                idempotency_key=record.get("idempotency_key"),
            )
            self._all.append(event)
            self._by_id[event.id] = event
            # Appended, unless the clock went back.
            insort(self._order, (event.created, event.position))
            made.append(event)
        return made

    def find(self, id: str) -> Snapshot | None:
        """The event with this id."""
        return self._by_id.get(id)

    def __len__(self) -> int:
        return len(self._all)

    def since(self, position: int) -> list[Snapshot]:
        """The events from this place of the order of making on."""
        return self._all[position:]

    def newest_first(self, low: int, high: int, after: Snapshot | None = None) -> Iterator[Snapshot]:
        """Events created from `low` to `high` (epoch seconds, both included), those older than `after` if given."""
        first, last = self._span(low, high)
        if after is not None:
            last = min(last, bisect_left(self._order, (after.created, after.position)))
        return (self._all[self._order[place][1]] for place in range(last - 1, first - 1, -1))

    def oldest_first(self, low: int, high: int, after: Snapshot) -> Iterator[Snapshot]:
        """Events created from `low` to `high` that are newer than `after`, beginning with the one next to it."""
        first, last = self._span(low, high)
        first = max(first, bisect_left(self._order, (after.created, after.position)) + 1)
        return (self._all[self._order[place][1]] for place in range(first, last))

    def _span(self, low: int, high: int) -> tuple[int, int]:
        return bisect_left(self._order, (low, 0)), bisect_left(self._order, (high + 1, 0))
