"""The simulator itself, without HTTP: a request goes in, an answer comes out.

A request is decided and recorded at once in `begin`; between `begin` and `finish` it only counts as being in
flight, which is what a second call for the same customer and meter runs into.
What is due later (a call that the network delivers late, the end of a period) is done, at its own time, before the
next request.
Not thread-safe: one event loop or one simulation drives it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

from billing_pipeline.stripe_simulator import views
from billing_pipeline.stripe_simulator.account import new_account
from billing_pipeline.stripe_simulator.due import NEVER
from billing_pipeline.stripe_simulator.execution import Execution
from billing_pipeline.stripe_simulator.faults import (
    NOT_EXECUTED,
    ConnectionLost,
    Fault,
    FaultKind,
    FaultPlan,
    Faults,
    answer_instead,
    spoiled_answer,
)
from billing_pipeline.stripe_simulator.journal import Journal, Record
from billing_pipeline.stripe_simulator.keys import KeyMode
from billing_pipeline.stripe_simulator.life import records_due
from billing_pipeline.stripe_simulator.rate_limits import RateLimiter, RateLimits
from billing_pipeline.stripe_simulator.state import State, rebuilt
from billing_pipeline.stripe_simulator.webhook_requests import Outgoing, outgoing
from billing_pipeline.stripe_simulator.webhook_weather import FAIR, Trouble, WebhookWeather
from billing_pipeline.stripe_simulator.wire import Answer, Refusal, Request

CONTROL = "/_control/"
Lag = timedelta | Callable[[Record], timedelta]


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request that has been decided, its answer, and what it reserves until it is finished.

    `answer` is None when the client's connection closes instead; `fault` says how the answer travels.
    """

    answer: Answer | None
    held: frozenset[Hashable] = frozenset()
    fault: Fault | None = None


class SimulatedStripe:
    """One Stripe account in test mode.

    `clock` gives aware UTC instants.  `journal` is read first: its history is this account's history.
    A damaged journal raises `UserError`.
    `lag` is how long a counted meter event stays invisible in summaries, for all events or for each.
    `identifier_horizon` is how long an identifier is remembered; Stripe promises "at least 24 hours", no more.
    `stream_delay` is how long what the stream accepted takes to be judged, `error_samples_max` how many errors of
    each code its reports show.
    `keys` gives modes to single API keys; `rate_limits`, `fault` and `webhook_weather` are off unless given.
    """

    def __init__(
        self,
        clock: Callable[[], datetime],
        journal: Journal,
        *,
        lag: Lag = timedelta(0),
        identifier_horizon: timedelta = timedelta(hours=24),
        stream_delay: timedelta = timedelta(0),
        error_samples_max: int = 5,
        keys: Mapping[str, KeyMode] | None = None,
        rate_limits: RateLimits | None = None,
        fault: FaultPlan | None = None,
        webhook_weather: WebhookWeather = FAIR,
    ) -> None:
        self.clock = clock
        self.journal = journal
        self.keys = dict(keys or {})
        self.state = rebuilt(journal, State(identifier_horizon, error_samples_max, webhook_weather))
        self._faults = Faults(fault)
        self._execution = Execution(
            self.state,
            journal,
            lag_of=lag if callable(lag) else lambda _record: lag,
            stream_delay=stream_delay,
            keys=self.keys,
            limiter=RateLimiter(rate_limits or RateLimits()),
            weather=webhook_weather,
        )
        self._late: list[tuple[datetime, int, Request]] = []
        self._requests = 0
        self._started_at = clock()
        self._date = (0, "")
        if self.state.line == 0:
            self._execution.commit([new_account(self._started_at)], self._started_at, request_id=None)

    @property
    def faults_applied(self) -> dict[FaultKind, int]:
        """How many faults of each kind were really applied."""
        return dict(self._faults.applied)

    @property
    def webhook_troubles(self) -> dict[Trouble, int]:
        """How often each trouble of the webhook weather really happened."""
        return self.state.webhook_troubles()

    def handle(
        self,
        method: str,
        path: str,
        params: Mapping[str, Any] | None = None,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Answer one request at once.  Parameters are nested strings (JSON in v2); header names are in lower case.

        Raises `ConnectionLost` when a fault keeps the answer, or a part of it, from arriving.
        """
        authorization = {"authorization": f"Bearer {key}"} if key else {}
        exchange = self.begin(Request(method, path, params or {}, {**authorization, **(headers or {})}))
        self.finish(exchange)
        cut = exchange.fault is not None and exchange.fault.kind is FaultKind.RESET_MID_BODY
        if exchange.answer is None or cut:
            raise ConnectionLost(f"the connection closed before {method} {path} was answered")
        return exchange.answer

    def begin(self, request: Request) -> Exchange:
        """Decide and record a request.  Until `finish`, what it holds refuses other requests."""
        now = self.clock()
        self._deliver_due(now)
        if request.path.startswith("/_"):
            return self._own(request, now)
        fault = self._faults.next(request)
        if fault is None:
            return Exchange(*self._executed(request, now))
        return self._faulted(request, now, fault)

    def _own(self, request: Request, now: datetime) -> Exchange:
        if request.path.startswith(CONTROL):
            # What a dashboard or a person does; no fault of an API call meets it.
            return Exchange(*self._executed(request, now))
        answer = views.own_answer(request, now, self.keys, self.journal, self._faults, self.state)
        return Exchange(self._stamped(answer, now, self._new_request_id()))

    def finish(self, exchange: Exchange) -> None:
        """The request is over; what it held is free."""
        self._execution.release(exchange.held)

    def refuse(self, refusal: Refusal) -> Answer:
        """The answer to what is not even a request, such as a body that cannot be read."""
        answer = Answer(refusal.status, refusal.headers, refusal.body)
        return self._stamped(answer, self.clock(), self._new_request_id())

    def next_webhook(self) -> Outgoing | None:
        """The next webhook request that is due by now; answer it with `webhook_answered`."""
        now = self.clock()
        self._deliver_due(now)
        epoch = int(now.timestamp())
        delivery = self.state.deliveries.take_due(epoch)
        return None if delivery is None else outgoing(self.state, delivery, epoch)

    def webhook_answered(self, sent: Outgoing, http_status: int | None) -> None:
        """Record what a webhook request came to; `http_status` is None when no answer came."""
        attempt = {
            "id": f"{sent.delivery}.{sent.attempt}",
            "attempt": sent.attempt,
            "delivery": sent.delivery,
            "endpoint": sent.endpoint,
            "event": sent.event,
            "http_status": http_status,
        }
        self._execution.commit_alone([{"kind": "webhook_attempt", "object": attempt}], self.clock())

    def deliver_webhooks(self, send: Callable[[Outgoing], int | None]) -> int:
        """Hand every webhook request that is due by now to `send`, which gives the answer's status; how many."""
        count = 0
        while (due := self.next_webhook()) is not None:
            self.webhook_answered(due, send(due))
            count += 1
        return count

    def deliver_due(self) -> None:
        """Do what is due by now: late calls, ends of periods, retries.  Every request does this first."""
        self._deliver_due(self.clock())

    def _deliver_due(self, now: datetime) -> None:
        while self._late and self._late[0][0] <= now:
            due, _, request = heapq.heappop(self._late)
            self._live_until(due)
            _, held = self._executed(request, due)
            self._execution.release(held)
        self._live_until(now)

    def _live_until(self, now: datetime) -> None:
        # Whatever periods, drafts and retries come to by the clock, each at its own moment.
        if self.state.due.next_at == NEVER:
            return
        epoch = now.timestamp()
        while self.state.due.next_at <= epoch:
            moment, kind, id = self.state.due.first()
            records = records_due(self.state, kind, id, moment)
            if not self._execution.commit_alone(records, datetime.fromtimestamp(moment, UTC)):
                return
            assert self.state.due.moment_of(kind, id) != moment, f"{kind} {id} stands still at {moment}"

    def _executed(
        self, request: Request, now: datetime, fault: FaultKind | None = None
    ) -> tuple[Answer, frozenset[Hashable]]:
        request_id = self._new_request_id()
        answer, held = self._execution.answer(request, now, request_id, fault)
        return self._stamped(answer, now, request_id), held

    def _faulted(self, request: Request, now: datetime, fault: Fault) -> Exchange:
        kind = fault.kind
        if kind in NOT_EXECUTED:
            self._faults.applied[kind] += 1
            instead = answer_instead(kind)
            return Exchange(instead and self._stamped(instead, now, self._new_request_id()), fault=fault)
        if kind is FaultKind.LATE_DELIVERY:
            self._faults.applied[kind] += 1
            heapq.heappush(self._late, (now + fault.delay, self._faults.calls, request))
            return Exchange(None, fault=fault)
        lost_before = self.state.meter_events.lost
        answer, held = self._executed(request, now, kind)
        if kind is FaultKind.DUPLICATED_DELIVERY:
            # The copy arrives when the first is over, so it meets what the first left, not its locks.
            self._execution.release(held)
            _, held = self._executed(request, now)
        arrives = spoiled_answer(answer, kind)
        # These two may find nothing to spoil: no meter event was counted, no mode is told.
        nothing_lost = kind is FaultKind.ASYNC_SILENT_DROP and self.state.meter_events.lost == lost_before
        nothing_told = kind is FaultKind.WRONG_MODE and arrives == answer
        if not (nothing_lost or nothing_told):
            self._faults.applied[kind] += 1
        return Exchange(arrives, held, fault)

    def _new_request_id(self) -> str:
        self._requests += 1
        return f"req_{self.state.digest('request', self._started_at, self._requests)}"

    def _stamped(self, answer: Answer, now: datetime, request_id: str) -> Answer:
        headers = {"Request-Id": request_id, "Date": self._date_of(now), **answer.headers}
        return Answer(answer.status, headers, answer.body)

    def _date_of(self, now: datetime) -> str:
        # Thousands of answers share a second, and formatting one takes as long as counting a meter event.
        second = int(now.timestamp())
        if self._date[0] != second:
            self._date = second, format_datetime(now, usegmt=True)
        return self._date[1]
