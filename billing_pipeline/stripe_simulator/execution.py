"""One request from its key to its answer: authenticate, limit, look for a saved answer, decide, journal, apply.

Called by the core, which adds the clock, the request's id and the faults.
A refusal or a journal that cannot be written becomes an answer here; nothing is half done after either.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Hashable, Mapping
from datetime import datetime, timedelta

from billing_pipeline.stripe_simulator.answers import answer_body
from billing_pipeline.stripe_simulator.calls import Call, Write
from billing_pipeline.stripe_simulator.entitlements import entitlement_records
from billing_pipeline.stripe_simulator.faults import FaultKind, spoiled_records
from billing_pipeline.stripe_simulator.idempotency import fingerprint_of, key_of
from billing_pipeline.stripe_simulator.journal import Journal, Record
from billing_pipeline.stripe_simulator.keys import KeyMode, authenticate
from billing_pipeline.stripe_simulator.rate_limits import RateLimiter
from billing_pipeline.stripe_simulator.routes import find_endpoint, scope_of
from billing_pipeline.stripe_simulator.state import State
from billing_pipeline.stripe_simulator.stream import STREAM_PATH
from billing_pipeline.stripe_simulator.webhook_weather import FAIR, WebhookWeather, weathered
from billing_pipeline.stripe_simulator.wire import Answer, Body, Refusal, Request


class Execution:
    """Executes requests on one state and its journal, and knows which are in flight."""

    def __init__(
        self,
        state: State,
        journal: Journal,
        *,
        lag_of: Callable[[Record], timedelta],
        stream_delay: timedelta,
        keys: Mapping[str, KeyMode],
        limiter: RateLimiter,
        weather: WebhookWeather = FAIR,
    ) -> None:
        self._state = state
        self._journal = journal
        self._lag_of = lag_of
        self._stream_delay = stream_delay
        self._keys = keys
        self._limiter = limiter
        self._weather = weather
        self._in_flight: set[Hashable] = set()

    def answer(
        self, request: Request, now: datetime, request_id: str, fault: FaultKind | None = None
    ) -> tuple[Answer, frozenset[Hashable]]:
        """The answer, and what the request holds until it is released."""
        held: set[Hashable] = set()
        try:
            answer = self._execute(request, now, request_id, held, fault)
        except Refusal as refusal:
            answer = Answer(refusal.status, refusal.headers, refusal.body)
        except OSError as exc:
            # The journal comes first, so nothing was counted and nothing changed.
            sys.stderr.write(f"stripe simulator: the journal cannot be written: {exc}\n")
            error = {"type": "api_error", "message": "The journal cannot be written; nothing was changed."}
            answer = Answer(500, {}, {"error": error})
        return answer, frozenset(held)

    def release(self, held: frozenset[Hashable]) -> None:
        """What a request held is free for others."""
        self._in_flight -= held

    def commit(self, records: list[Record], now: datetime, request_id: str | None) -> Body:
        """Journal and apply records together; the answer that the last one stands for."""
        received_at = now.isoformat()
        numbered = [
            {"line": number, "received_at": received_at, "request_id": request_id, **record}
            for number, record in enumerate(records, start=self._state.line + 1)
        ]
        if self._weather is not FAIR:
            numbered = [weathered(record, self._weather) if "events" in record else record for record in numbered]
        self._journal.append(numbered)
        for record in numbered:
            self._state.apply(record)
        return answer_body(numbered[-1])

    def commit_alone(self, records: list[Record], at: datetime) -> bool:
        """Journal and apply what no request asked for; whether the journal could be written."""
        if self._state.has("feature"):
            records = [*records, *entitlement_records(self._state, records)]
        try:
            self.commit(records, at, request_id=None)
        except OSError as exc:
            sys.stderr.write(f"stripe simulator: the journal cannot be written: {exc}\n")
            return False
        return True

    def _execute(
        self, request: Request, now: datetime, request_id: str, held: set[Hashable], fault: FaultKind | None
    ) -> Answer:
        self._authenticate(request, now)
        self._limiter.refuse_beyond(request, now)
        endpoint, target = find_endpoint(request.method, request.path)
        key, api = key_of(request), request.api
        saved_under: Record = {}
        if key is not None:
            saved_under = {"idempotency_key": key, "fingerprint": fingerprint_of(request), "api": api}
            self._hold(("idempotency_key", key), held, _key_in_use)
            saved = self._state.saved_answers[api].find(key, saved_under["fingerprint"], now)
            if saved is not None:
                return Answer(saved.status, {"Idempotent-Replayed": "true"}, saved.body)
        locked = _locked_v2 if api == "v2" else _locked
        call = Call(
            now,
            target,
            request.params,
            hold=lambda thing: self._hold(thing, held, locked),
            lag_of=self._lag_of,
            stream_delay=self._stream_delay,
        )
        try:
            outcome = endpoint(self._state, call)
        except Refusal as refusal:
            # v2 executes a failed request again; only v1 repeats its error.
            if refusal.executed and saved_under and api == "v1":
                record = {"kind": "refusal", "status": refusal.status, "object": refusal.body, **saved_under}
                self.commit([record], now, request_id)
            raise
        if not isinstance(outcome, Write):
            return Answer(200, {}, outcome)
        *earlier, last = outcome.records
        if self._state.has("feature"):
            earlier += entitlement_records(self._state, outcome.records)
        records = [*earlier, {**last, **saved_under}]
        if fault is not None:
            records = spoiled_records(records, fault, api)
        body = self.commit(records, now, request_id)
        # A payment that failed changed something and is refused all the same.
        refused = records[-1].get("status", 200) if fault is None else 200
        return Answer(refused, {}, body)

    def _authenticate(self, request: Request, now: datetime) -> None:
        if request.path == STREAM_PATH:
            self._state.sessions.authenticate(request.headers, now)
            return
        mode = authenticate(request.headers, self._keys, now)
        if mode.scopes is not None:
            mode.refuse_beyond(scope_of(request.method, request.path))

    def _hold(self, thing: Hashable, held: set[Hashable], refusal: Callable[[], Refusal]) -> None:
        if thing in self._in_flight:
            raise refusal()
        self._in_flight.add(thing)
        held.add(thing)


def _locked() -> Refusal:
    return Refusal(
        429,
        "This object cannot be accessed right now because another API request is currently accessing it. "
        "Send one meter event at a time per customer and meter.",
        code="lock_timeout",
        headers={"Stripe-Rate-Limited-Reason": "resource-specific"},
    )


def _locked_v2() -> Refusal:
    return Refusal(
        409,
        "Cannot create multiple usage events for the same customer, meter concurrently.",
        code="too_many_concurrent_requests",
    )


def _key_in_use() -> Refusal:
    return Refusal(
        409,
        "There is currently another in-progress request using this Idempotency-Key. Try again when it has ended.",
        code="idempotency_key_in_use",
    )
