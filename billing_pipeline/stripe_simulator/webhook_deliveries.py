"""What is to be sent to whom and when, and what becomes of it: no I/O, no clock.

Fed from the journal by `state`: events and endpoints make deliveries, recorded attempts end them or put them off.
A delivery ends with a 2xx, when its endpoint is gone, or when three days of retries are over (Stripe, "Webhooks").
What is in flight is not journaled: after a restart it is sent again, as Stripe may.
"""

from __future__ import annotations

import heapq
from collections import Counter
from dataclasses import dataclass

from billing_pipeline.stripe_simulator.due import NEVER
from billing_pipeline.stripe_simulator.error_reports import ErrorReport
from billing_pipeline.stripe_simulator.snapshots import Snapshot
from billing_pipeline.stripe_simulator.webhook_weather import Trouble, WebhookWeather
from billing_pipeline.stripe_simulator.wire import Body

RETRY_SECONDS = (300, 1_800, 7_200, 18_000, 36_000, 43_200, 43_200, 43_200, 43_200)
"""Between the attempts: growing, and over within the three days of live mode."""


Told = Snapshot | ErrorReport
"""An event of either kind; a report's is thin, and made when its window closes."""


@dataclass(slots=True)
class Delivery:
    """One event on its way to one endpoint; a copy is one that arrives although the first did.

    `place` is its number in the queue.
    """

    id: str
    event: Told
    endpoint: str
    due_at: int
    attempts: int = 0
    is_copy: bool = False
    place: int = 0


class Deliveries:
    """All deliveries that are not over, and how the others ended, by event."""

    def __init__(self, weather: WebhookWeather) -> None:
        self._weather = weather
        self._endpoints: dict[str, Body] = {}
        self._open: dict[str, Delivery] = {}
        self._heap: list[tuple[int, int, str]] = []
        self._pushed = 0
        self._made = 0
        self._pending: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self.troubles: Counter[Trouble] = Counter()

    def put_endpoint(self, endpoint: Body) -> None:
        """Take a new, changed or deleted endpoint into account."""
        if endpoint.get("deleted"):
            self._endpoints.pop(endpoint["id"], None)
        else:
            self._endpoints[endpoint["id"]] = endpoint

    def endpoint(self, id: str) -> Body | None:
        """An endpoint that still takes deliveries."""
        endpoint = self._endpoints.get(id)
        return endpoint if endpoint is not None and endpoint["status"] == "enabled" else None

    @property
    def has_endpoints(self) -> bool:
        """Whether anything is ever to be sent."""
        return bool(self._endpoints)

    @property
    def open_count(self) -> int:
        """How many deliveries are not over."""
        return len(self._open)

    def add(self, event: Told) -> None:
        """An event sets out for every endpoint that takes its type."""
        for endpoint in self._endpoints.values():
            if self.endpoint(endpoint["id"]) and _takes(endpoint, event):
                self._set_out(event, endpoint["id"])

    def _set_out(self, event: Told, endpoint: str) -> None:
        number, self._made = self._made, self._made + 1
        trouble = self._weather.of_delivery(number)
        if trouble is not None:
            self.troubles[trouble] += 1
        if trouble is Trouble.DROPPED:
            self._failed[event.id] += 1
            return
        late = self._weather.delay(number) if trouble is Trouble.DELAYED else 0
        self._pending[event.id] += 1
        self._push(Delivery(f"{number}", event, endpoint, event.created + late))
        if trouble is Trouble.DUPLICATED:
            due_at = event.created + self._weather.delay(number) - 1
            self._push(Delivery(f"{number}.copy", event, endpoint, due_at, is_copy=True))

    def _push(self, delivery: Delivery) -> None:
        self._open[delivery.id] = delivery
        self._pushed += 1
        delivery.place = self._pushed
        heapq.heappush(self._heap, (delivery.due_at, self._pushed, delivery.id))

    def take_due(self, epoch: int) -> Delivery | None:
        """The next delivery that is due by now, taken out until it is answered."""
        while self._heap and self._heap[0][0] <= epoch:
            _, place, id = heapq.heappop(self._heap)
            delivery = self._open.get(id)
            if delivery is None or delivery.place != place:
                continue
            if self.endpoint(delivery.endpoint) is not None:
                return delivery
            self._give_up(delivery)
        return None

    @property
    def next_at(self) -> int:
        """When the next delivery is due, in epoch seconds."""
        return self._heap[0][0] if self._heap else NEVER

    def answered(self, attempt: Body, epoch: int) -> None:
        """Take a recorded attempt into account: `http_status` is None when no answer came."""
        delivery = self._open.get(attempt["delivery"])
        if delivery is None:
            return
        delivery.attempts += 1
        # Read again from the journal it was never taken out of the queue, so its place there must not count.
        delivery.place = 0
        if 200 <= (attempt["http_status"] or 0) < 300:
            self._end(delivery)
        elif delivery.is_copy or delivery.attempts > len(RETRY_SECONDS) or self.endpoint(delivery.endpoint) is None:
            self._give_up(delivery)
        else:
            delivery.due_at = epoch + RETRY_SECONDS[delivery.attempts - 1]
            self._push(delivery)

    def _end(self, delivery: Delivery) -> None:
        del self._open[delivery.id]
        if not delivery.is_copy:
            self._pending[delivery.event.id] -= 1

    def _give_up(self, delivery: Delivery) -> None:
        self._end(delivery)
        if not delivery.is_copy:
            self._failed[delivery.event.id] += 1

    def pending(self, event: str) -> int:
        """At how many endpoints an event has yet to arrive."""
        return self._pending[event]

    def succeeded(self, event: str) -> bool:
        """Whether an event arrived wherever it was sent."""
        return self._pending[event] == 0 and self._failed[event] == 0


def _takes(endpoint: Body, event: Told) -> bool:
    if (endpoint["_payload"] == "thin") != isinstance(event, ErrorReport):
        return False
    return "*" in endpoint["enabled_events"] or event.type in endpoint["enabled_events"]
