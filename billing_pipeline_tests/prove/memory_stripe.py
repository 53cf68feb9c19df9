"""The simulated Stripe in this process, asked without HTTP or SDK, and the witness of what reached it.

The simulator decides what is counted: its memory of identifiers, its limits, its lag and its faults.  The sink says
what the client would make of each answer; that the product's own sink makes the same is proven in `faults/`.
Every request is held against what was committed before it, and every counted minute against all others.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from billing_pipeline.domain.entries import Outcome
from billing_pipeline.domain.windows import DAY, HOUR, MINUTE
from billing_pipeline.stripe_api.meter_events import DUPLICATE_MESSAGE, Answer, MeterEvent
from billing_pipeline.stripe_simulator.core import SimulatedStripe
from billing_pipeline.stripe_simulator.faults import Fault, FaultKind
from billing_pipeline.stripe_simulator.journal import MemoryJournal
from billing_pipeline.stripe_simulator.keys import KeyMode
from billing_pipeline.stripe_simulator.wire import Request
from billing_pipeline_tests.prove.memory_ledger import Witness
from billing_pipeline_tests.prove.memory_statements import EVENT_NAME

KEY = "sk_test_of_the_machine"
SAFE_SEND, LEASE, TAKES = timedelta(hours=20), timedelta(minutes=2), timedelta(days=35)
"""The design's times, written down again: no send later than this after the first, a claim's length, Stripe's limit."""


class Trouble(StrEnum):
    """What becomes of one request."""

    NONE = "none"
    LOST_REQUEST = FaultKind.LOSE_REQUEST
    LOST_ANSWER = FaultKind.LOSE_ANSWER
    RATE_LIMITED = FaultKind.RATE_LIMITED_429
    ERROR_BEFORE = FaultKind.ERROR_500_BEFORE
    ERROR_AFTER = FaultKind.ERROR_500_AFTER
    TWICE = FaultKind.DUPLICATED_DELIVERY
    LATE = FaultKind.LATE_DELIVERY
    DROPPED = FaultKind.ASYNC_SILENT_DROP
    REFUSED = "refused"  # a definitive 4xx


@dataclass(frozen=True, slots=True)
class Weather:
    """How the next requests fare, in turn and over again, and how long the summaries lag behind them."""

    troubles: tuple[Trouble, ...] = (Trouble.NONE,)
    late: timedelta = 30 * MINUTE
    lag: timedelta = timedelta(0)


class MemoryStripe:
    """A Stripe account with customers; a meter sink and a reader of summaries."""

    channel = "memory"
    batch_size = 1

    def __init__(self, clock: Callable[[], datetime], witness: Witness, customers: int) -> None:
        self.clock, self.witness = clock, witness
        self.wrong: list[str] = []
        self.troubles: Counter[str] = Counter()
        self.counted: dict[tuple[str, datetime], int] = {}
        """Units by customer and minute: the judge's book, from the journal."""
        self.cancelled: set[tuple[str, datetime]] = set()
        """Minutes of a lost timeline that no recovery can see: within their hour they add up to nothing."""
        self._journal = MemoryJournal()
        self._read = 0
        self._first_left: dict[str, datetime] = {}
        self._queue: deque[Trouble] = deque()
        self.weather = Weather()
        self.sent = 0
        self.core = SimulatedStripe(clock, self._journal, lag=lambda record: self.weather.lag, fault=self._fault)
        body = {"display_name": EVENT_NAME, "event_name": EVENT_NAME, "default_aggregation": {"formula": "sum"}}
        self._meter = self._post("/v1/billing/meters", body)["id"]
        self.customers = [self._post("/v1/customers", {"name": str(number)})["id"] for number in range(customers + 1)]
        self.canary_customer = self.customers.pop()

    def set_weather(self, weather: Weather) -> None:
        """From the next request on."""
        self.weather, self._queue = weather, deque(weather.troubles)

    def refuse_key(self, refused: bool) -> None:
        """The key is rolled: the old one is refused until the new one is there."""
        self.core.keys[KEY] = KeyMode(expires_at=self.clock()) if refused else KeyMode()

    async def __aenter__(self) -> MemoryStripe:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def send(self, events: Sequence[MeterEvent]) -> list[Answer]:
        """One request."""
        (event,) = events
        self._queue.rotate(-1)
        trouble = self._queue[-1]
        self.sent += 1
        self._hold_against_the_rules(event)
        if trouble is Trouble.REFUSED:
            self.troubles[trouble] += 1
            return [Answer(Outcome.REJECTED, 400, "refused")]
        answer = self._answer(event)
        if answer.outcome is not Outcome.NOT_EXECUTED:
            self._first_left.setdefault(event.identifier, self.clock())
        return [answer]

    def _answer(self, event: MeterEvent) -> Answer:
        payload = {"stripe_customer_id": event.stripe_customer_id, "value": str(event.value)}
        params = {
            "event_name": event.event_name,
            "payload": payload,
            "identifier": event.identifier,
            "timestamp": str(int(event.timestamp.timestamp())),
        }
        headers = {"authorization": f"Bearer {KEY}", "idempotency-key": event.idempotency_key}
        exchange = self.core.begin(Request("POST", "/v1/billing/meter_events", params, headers))
        self.core.finish(exchange)
        if exchange.answer is None or exchange.answer.status >= 500:
            return Answer(Outcome.UNKNOWN)
        status = exchange.answer.status
        if status == 401:
            return Answer(Outcome.NOT_EXECUTED, status, stop=True)
        if status == 429:
            return Answer(Outcome.NOT_EXECUTED, status)
        if status == 400:
            duplicate = DUPLICATE_MESSAGE in str(exchange.answer.body)
            return Answer(Outcome.DUPLICATE if duplicate else Outcome.REJECTED, status, "refused")
        return Answer(Outcome.OK, status)

    def _fault(self, number: int, request: Request) -> Fault | None:
        trouble = self._queue[-1] if self._queue and request.path == "/v1/billing/meter_events" else Trouble.NONE
        if trouble in (Trouble.NONE, Trouble.REFUSED):
            return None
        self.troubles[trouble] += 1
        return Fault(FaultKind(trouble.value), delay=self.weather.late)

    def _hold_against_the_rules(self, event: MeterEvent) -> None:
        now, name = self.clock(), event.identifier
        committed_at = self.witness.committed.get((name, event.fence))
        if committed_at is None:
            self.wrong.append(f"{name} left with attempt {event.fence}, which was not committed before")
        elif now > committed_at + LEASE:
            self.wrong.append(f"{name} left {now - committed_at} after its attempt {event.fence}, past the claim")
        if now > self._first_left.get(name, now) + SAFE_SEND + LEASE:
            self.wrong.append(f"{name} left {now - self._first_left[name]} after it left first")
        if event.timestamp <= now - TAKES:
            self.wrong.append(f"{name} left with a minute of {event.timestamp}, which Stripe takes no more")

    def look(self) -> None:
        """Read the journal on: nothing may be counted in a minute that was counted before."""
        self.core.deliver_due()
        for record in self._journal.read(self._read):
            self._read += 1
            if record["kind"] == "meter_event":
                place = record["customer"], datetime.fromtimestamp(record["timestamp"], UTC)
                if place in self.counted and place not in self.cancelled:
                    self.wrong.append(f"the minute {place[1]:%m-%d %H:%M} of {place[0]} was counted twice")
                self.counted[place] = self.counted.get(place, 0) + int(record["value"])

    def minute(self, event_name: str, customer: str, minute: datetime) -> int:
        """What Stripe shows of a minute."""
        return sum(self._shown(customer, minute, minute + MINUTE, MINUTE).values())

    def hours(self, event_name: str, customer: str, start: datetime, end: datetime) -> dict[datetime, int]:
        """What Stripe shows by the hour."""
        return self._shown(customer, start, end, HOUR)

    def days(self, event_name: str, customer: str, start: datetime, end: datetime) -> dict[datetime, int]:
        """What Stripe shows by the day."""
        return self._shown(customer, start, end, DAY)

    def _shown(self, customer: str, start: datetime, end: datetime, length: timedelta) -> dict[datetime, int]:
        self.core.deliver_due()
        seconds = int(length.total_seconds())
        shown: Counter[datetime] = Counter()
        bounds = int(start.timestamp()), int(end.timestamp())
        for event in self.core.state.meter_events.visible(self._meter, customer, *bounds, self.clock()):
            shown[datetime.fromtimestamp(event.timestamp // seconds * seconds, UTC)] += int(event.value)
        return dict(shown)

    def _post(self, path: str, body: dict[str, Any]) -> Any:
        return self.core.handle("POST", path, body, key=KEY).body
