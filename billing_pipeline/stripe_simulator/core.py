"""The simulator itself, without HTTP: a request goes in, an answer comes out.

Every request takes the same steps: authenticate, find the endpoint, look for a saved answer, let the endpoint
decide, write the journal, apply to the state, answer.
A request is decided and recorded at once in `begin`; between `begin` and `finish` it only counts as being in
flight, which is what a second call for the same customer and meter runs into.
Not thread-safe: one event loop or one simulation drives it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from email.utils import format_datetime
from typing import Any

from billing_pipeline.errors import UserError
from billing_pipeline.stripe_simulator import views
from billing_pipeline.stripe_simulator.account import authenticate, new_account
from billing_pipeline.stripe_simulator.calls import Call, Write
from billing_pipeline.stripe_simulator.idempotency import answer_body, fingerprint_of, key_of
from billing_pipeline.stripe_simulator.journal import Journal, Record
from billing_pipeline.stripe_simulator.routes import find_endpoint
from billing_pipeline.stripe_simulator.state import State
from billing_pipeline.stripe_simulator.wire import Answer, Body, Refusal, Request

Lag = timedelta | Callable[[Record], timedelta]


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request that has been decided, its answer, and what it reserves until it is finished."""

    answer: Answer
    held: frozenset[Hashable]


class SimulatedStripe:
    """One Stripe account in test mode.

    `clock` gives aware UTC instants.  `journal` is read first: its history is this account's history.
    A damaged journal raises `UserError`.
    `lag` is how long a counted meter event stays invisible in summaries, for all events or for each.
    `identifier_horizon` is how long an identifier is remembered; Stripe promises "at least 24 hours", no more.
    """

    def __init__(
        self,
        clock: Callable[[], datetime],
        journal: Journal,
        *,
        lag: Lag = timedelta(0),
        identifier_horizon: timedelta = timedelta(hours=24),
    ) -> None:
        self.clock = clock
        self.journal = journal
        self._lag_of: Callable[[Record], timedelta] = lag if callable(lag) else lambda _record: lag
        self.state = _rebuilt(journal, State(identifier_horizon))
        self._in_flight: set[Hashable] = set()
        self._requests = 0
        self._started_at = clock()
        if self.state.line == 0:
            self._commit([new_account(self._started_at)], self._started_at, request_id=None)

    def handle(
        self,
        method: str,
        path: str,
        params: Mapping[str, Any] | None = None,
        *,
        key: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """Answer one request at once.  Parameters are nested strings; header names are in lower case."""
        authorization = {"authorization": f"Bearer {key}"} if key else {}
        exchange = self.begin(Request(method, path, params or {}, {**authorization, **(headers or {})}))
        self.finish(exchange)
        return exchange.answer

    def begin(self, request: Request) -> Exchange:
        """Decide and record a request.  Until `finish`, what it holds refuses other requests."""
        now = self.clock()
        request_id = self._new_request_id()
        held: set[Hashable] = set()
        try:
            answer = self._answer(request, now, request_id, held)
        except Refusal as refusal:
            answer = Answer(refusal.status, refusal.headers, refusal.body)
        except OSError as exc:
            # The journal comes first, so nothing was counted and nothing changed.
            sys.stderr.write(f"stripe simulator: the journal cannot be written: {exc}\n")
            error = {"type": "api_error", "message": "The journal cannot be written; nothing was changed."}
            answer = Answer(500, {}, {"error": error})
        return Exchange(_stamped(answer, now, request_id), frozenset(held))

    def finish(self, exchange: Exchange) -> None:
        """The request is over; what it held is free."""
        self._in_flight -= exchange.held

    def refuse(self, refusal: Refusal) -> Answer:
        """The answer to what is not even a request, such as a body that cannot be read."""
        return _stamped(Answer(refusal.status, refusal.headers, refusal.body), self.clock(), self._new_request_id())

    def _new_request_id(self) -> str:
        self._requests += 1
        return f"req_{self.state.digest('request', self._started_at, self._requests)}"

    def _answer(self, request: Request, now: datetime, request_id: str, held: set[Hashable]) -> Answer:
        if (request.method, request.path) == ("GET", "/_health"):
            return views.health()
        authenticate(request.headers)
        if (request.method, request.path) == ("GET", "/_journal"):
            return views.journal_lines(self.journal, request.params)
        if (request.method, request.path) == ("GET", "/_journal/meter_events"):
            return views.counted_sums(self.journal, request.params)
        return self._execute(request, now, request_id, held)

    def _execute(self, request: Request, now: datetime, request_id: str, held: set[Hashable]) -> Answer:
        endpoint, target = find_endpoint(request.method, request.path)
        key = key_of(request)
        saved_under: Record = {}
        if key is not None:
            saved_under = {"idempotency_key": key, "fingerprint": fingerprint_of(request)}
            self._hold(("idempotency_key", key), held, _key_in_use)
            saved = self.state.saved_answers.find(key, saved_under["fingerprint"], now)
            if saved is not None:
                return Answer(saved.status, {"Idempotent-Replayed": "true"}, saved.body)
        call = Call(
            now,
            target,
            request.params,
            hold=lambda thing: self._hold(thing, held, _locked),
            lag_of=self._lag_of,
        )
        try:
            outcome = endpoint(self.state, call)
        except Refusal as refusal:
            if refusal.executed and saved_under:
                record = {"kind": "refusal", "status": refusal.status, "object": refusal.body, **saved_under}
                self._commit([record], now, request_id)
            raise
        if not isinstance(outcome, Write):
            return Answer(200, {}, outcome)
        *earlier, last = outcome.records
        return Answer(200, {}, self._commit([*earlier, {**last, **saved_under}], now, request_id))

    def _commit(self, records: list[Record], now: datetime, request_id: str | None) -> Body:
        numbered = [
            {"line": number, "received_at": now.isoformat(), "request_id": request_id, **record}
            for number, record in enumerate(records, start=self.state.line + 1)
        ]
        self.journal.append(numbered)
        for record in numbered:
            self.state.apply(record)
        return answer_body(numbered[-1])

    def _hold(self, thing: Hashable, held: set[Hashable], refusal: Callable[[], Refusal]) -> None:
        if thing in self._in_flight:
            raise refusal()
        self._in_flight.add(thing)
        held.add(thing)


def _rebuilt(journal: Journal, state: State) -> State:
    for number, record in enumerate(journal.read(), start=1):
        try:
            if record["line"] != number:
                raise ValueError("a line is missing")
            state.apply(record)
        except (KeyError, TypeError, ValueError):
            raise UserError(
                f"Line {number} of the journal is damaged or missing, so the account cannot be rebuilt. "
                "Start with another journal file."
            ) from None
    return state


def _stamped(answer: Answer, now: datetime, request_id: str) -> Answer:
    headers = {"Request-Id": request_id, "Date": format_datetime(now, usegmt=True), **answer.headers}
    return Answer(answer.status, headers, answer.body)


def _locked() -> Refusal:
    return Refusal(
        429,
        "This object cannot be accessed right now because another API request is currently accessing it. "
        "Send one meter event at a time per customer and meter.",
        code="lock_timeout",
        headers={"Stripe-Rate-Limited-Reason": "resource-specific"},
    )


def _key_in_use() -> Refusal:
    return Refusal(
        409,
        "There is currently another in-progress request using this Idempotency-Key. Try again when it has ended.",
        code="idempotency_key_in_use",
    )
