"""Sends meter events and says what became of each: by the v1 endpoint one at a time, or by the v2 stream in hundreds.

Called by the submitter for entries whose attempts are already committed.  An outcome is `ok` only when the answer is
provably Stripe's to our request; whatever may have been executed without our knowing is `unknown`.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

import aiohttp
import stripe

from billing_pipeline.domain.entries import Outcome
from billing_pipeline.domain.identifiers import idempotency_key
from billing_pipeline.settings import MeterSinkName, Settings
from billing_pipeline.stripe_api.client import AUTH_ERRORS, is_stripes_own, make_client, stripe_words
from billing_pipeline.stripe_api.http import JsonBodyClient, MeterHttpClient
from billing_pipeline.stripe_api.pace import Pace

DUPLICATE_MESSAGE = "An event already exists with identifier"
"""Observed in production (langfuse, 2026-08): HTTP 400, invalid_request_error, no code."""
DUPLICATE_CODE = "duplicate_meter_event"
"""The v2 API's code for the same."""
STREAM_BATCH_MAX = 100
"""Stripe: at most 100 events in a stream request."""
SESSION_RENEWAL_SECONDS = 600
"""Stripe's session lives 15 minutes; a new one is made at ten, so that no request meets its end."""
ERROR_MESSAGE_LENGTH_MAX = 500


class ForeignSession(Exception):
    """What was answered as a session cannot be one of this key."""


@dataclass(frozen=True, slots=True)
class MeterEvent:
    """One meter event as Stripe takes it; `value` in whole Stripe units, `fence` numbers its attempts."""

    identifier: str
    fence: int
    event_name: str
    stripe_customer_id: str
    value: int
    timestamp: datetime

    @property
    def idempotency_key(self) -> str:
        """The header of this attempt."""
        return idempotency_key(self.identifier, self.fence)


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one event; `stop` means that no further request can succeed (the key is refused)."""

    outcome: Outcome
    http_status: int | None = None
    error_code: str | None = None
    error_message: str | None = None
    request_id: str | None = None
    stop: bool = False


class V1MeterSink:
    """`POST /v1/billing/meter_events` over one pooled asynchronous session; an async context manager."""

    channel = "v1"
    batch_size = 1

    def __init__(self, settings: Settings, http: stripe.HTTPClient | None = None) -> None:
        self._http = http or MeterHttpClient(settings.stripe_timeout_seconds)
        self._client = make_client(settings, self._http)
        self._livemode = settings.livemode
        self._pace = Pace(settings.meter_events_per_second)

    async def __aenter__(self) -> V1MeterSink:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close_async()  # type: ignore[no-untyped-call]

    async def send(self, events: Sequence[MeterEvent]) -> list[Answer]:
        """Send one event once.  Never raises for anything Stripe or the network does."""
        (event,) = events
        await self._pace.turn(1)
        try:
            echoed = await self._client.v1.billing.meter_events.create_async(
                {
                    "event_name": event.event_name,
                    "payload": _payload(event),
                    "identifier": event.identifier,
                    "timestamp": int(event.timestamp.timestamp()),
                },
                {"idempotency_key": event.idempotency_key},
            )
        except Exception as exc:
            answer = _answer_of(exc)
            if answer.http_status == 429:
                self._pace.slow_down()
            return [answer]
        return [self._check_echo(echoed, event)]

    def _check_echo(self, echoed: Any, event: MeterEvent) -> Answer:
        # The SDK hands on whatever JSON came, a list or a text as well.
        is_object = isinstance(echoed, stripe.StripeObject)
        request_id = echoed.last_response.request_id if is_object and echoed.last_response else None
        body = echoed.to_dict() if is_object else {}
        expected = {"identifier": event.identifier, "event_name": event.event_name, "livemode": self._livemode}
        if {name: body.get(name) for name in expected} != expected:
            return Answer(Outcome.UNKNOWN, 200, "foreign_answer", "the answer does not echo our event", request_id)
        return Answer(Outcome.OK, 200, request_id=request_id)


class V2StreamSink:
    """`POST /v2/billing/meter_event_stream`: up to 100 events a request, accepted as a whole.

    Stripe says nothing per event; refusals come later as error reports, and summaries decide.  When an answer is
    lost, every event of the request is unknown on its own.
    """

    channel = "v2_stream"
    batch_size = STREAM_BATCH_MAX

    def __init__(self, settings: Settings, http: stripe.HTTPClient | None = None) -> None:
        self._settings = settings
        self._http = http or MeterHttpClient(settings.stripe_timeout_seconds)
        self._sessions = make_client(settings, self._http)
        self._pace = Pace(settings.meter_events_per_second)
        self._token: str | None = None
        self._renew_at = 0.0

    async def __aenter__(self) -> V2StreamSink:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close_async()  # type: ignore[no-untyped-call]

    async def send(self, events: Sequence[MeterEvent]) -> list[Answer]:
        """Send up to 100 events once.  Never raises for anything Stripe or the network does."""
        await self._pace.turn(len(events))
        try:
            token = await self._session()
        except Exception as exc:
            # No session, no request: nothing of ours was executed, whatever became of the session's own request.
            return [replace(_answer_of(exc), outcome=Outcome.NOT_EXECUTED)] * len(events)
        try:
            # The SDK's own method for this throws the body away, and with it the proof that Stripe answered.
            stream = make_client(self._settings, JsonBodyClient(self._http, _stream_body(events)), key=token)
            answered = await stream.raw_request_async("post", "/v2/billing/meter_event_stream", base="meter_events")
        except stripe.TemporarySessionExpiredError as exc:
            self._token = None
            return [Answer(Outcome.NOT_EXECUTED, exc.http_status, "session_expired", None, exc.request_id)] * len(
                events
            )
        except Exception as exc:
            return [self._batch_answer(_answer_of(exc), len(events))] * len(events)
        if answered.data != {}:
            foreign = Answer(Outcome.UNKNOWN, answered.code, "foreign_answer", "the answer is not the stream's")
            return [foreign] * len(events)
        return [Answer(Outcome.OK, answered.code, request_id=answered.request_id)] * len(events)

    def _batch_answer(self, answer: Answer, events: int) -> Answer:
        if answer.http_status == 429:
            self._pace.slow_down()
        if answer.outcome in (Outcome.REJECTED, Outcome.DUPLICATE) and events > 1:
            # Whose fault it was, and whether the others count, is documented nowhere: evidence must tell.
            return Answer(
                Outcome.UNKNOWN, answer.http_status, answer.error_code, answer.error_message, answer.request_id
            )
        return answer

    async def _session(self) -> str:
        if self._token is None or time.monotonic() >= self._renew_at:
            session = await self._sessions.v2.billing.meter_event_session.create_async()
            if session.livemode != self._settings.livemode:
                raise ForeignSession("the session is of another mode than the key")
            self._token = session.authentication_token
            self._renew_at = time.monotonic() + SESSION_RENEWAL_SECONDS
        return self._token


def make_sink(settings: Settings, http: stripe.HTTPClient | None = None) -> V1MeterSink | V2StreamSink:
    """The sink that `STRIPE_METER_SINK` names; `http` is the SDK's transport, a pool of connections by default."""
    if settings.stripe_meter_sink is MeterSinkName.V2_STREAM:
        return V2StreamSink(settings, http)
    return V1MeterSink(settings, http)


def _payload(event: MeterEvent) -> dict[str, str]:
    return {"stripe_customer_id": event.stripe_customer_id, "value": str(event.value)}


def _stream_body(events: Sequence[MeterEvent]) -> dict[str, Any]:
    return {
        "events": [
            {
                "event_name": event.event_name,
                "payload": _payload(event),
                "identifier": event.identifier,
                "timestamp": event.timestamp.isoformat(),
            }
            for event in events
        ]
    }


def _answer_of(exc: Exception) -> Answer:
    """What an exception of the SDK, or of the HTTP library below it, says about the request."""
    if not isinstance(exc, stripe.StripeError):
        # Such as an answer that the SDK cannot read.
        return Answer(Outcome.UNKNOWN, error_code=type(exc).__name__)
    status = exc.http_status
    code = exc.error.code if exc.error else None
    message = stripe_words(exc)[:ERROR_MESSAGE_LENGTH_MAX]

    def answer(outcome: Outcome, *, stop: bool = False) -> Answer:
        return Answer(outcome, status, code or type(exc).__name__, message, exc.request_id, stop)

    if not isinstance(exc, stripe.APIConnectionError) and not is_stripes_own(exc):
        # A proxy, a firewall or a captive portal answered; what it did with the request, nobody knows.
        return answer(Outcome.UNKNOWN)
    if isinstance(exc, stripe.APIConnectionError):
        refused = isinstance(exc.__cause__, (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError))
        return answer(Outcome.NOT_EXECUTED if refused else Outcome.UNKNOWN)
    if isinstance(exc, AUTH_ERRORS):
        return answer(Outcome.NOT_EXECUTED, stop=True)
    if status == 429:
        # Stripe's limiters stand before the endpoint.
        return answer(Outcome.NOT_EXECUTED)
    if code == DUPLICATE_CODE or DUPLICATE_MESSAGE in message:
        return answer(Outcome.DUPLICATE)
    if status is not None and 400 <= status < 500 and status not in (408, 409):
        return answer(Outcome.REJECTED)
    return answer(Outcome.UNKNOWN)
