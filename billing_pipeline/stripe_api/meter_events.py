"""Sends one meter event by `POST /v1/billing/meter_events` and says what became of it.

Called by the submitter for entries whose attempt is already committed.  An outcome is `ok` only when Stripe's answer
echoes our identifier; whatever may have been executed without our knowing is `unknown`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import aiohttp
import stripe

from billing_pipeline.domain.entries import Outcome
from billing_pipeline.settings import Settings
from billing_pipeline.stripe_api.client import AUTH_ERRORS, make_client, stripe_words

DUPLICATE_MESSAGE = "An event already exists with identifier"
"""Observed in production (langfuse, 2026-08): HTTP 400, invalid_request_error, no code."""
DUPLICATE_CODE = "duplicate_meter_event"
"""The v2 API's code for the same."""
ERROR_MESSAGE_LENGTH_MAX = 500


@dataclass(frozen=True, slots=True)
class MeterEvent:
    """One meter event as Stripe takes it; `value` in whole Stripe units."""

    identifier: str
    idempotency_key: str
    event_name: str
    stripe_customer_id: str
    value: int
    timestamp: datetime


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of one request; `stop` means that no further request can succeed (the key is refused)."""

    outcome: Outcome
    http_status: int | None = None
    error_code: str | None = None
    error_message: str | None = None
    request_id: str | None = None
    stop: bool = False


class V1MeterSink:
    """The v1 endpoint over one pooled asynchronous HTTP session; use it as an async context manager."""

    channel = "v1"

    def __init__(self, settings: Settings) -> None:
        self._http = stripe.AIOHTTPClient(timeout=aiohttp.ClientTimeout(total=settings.stripe_timeout_seconds))
        self._client = make_client(settings, self._http)
        self._livemode = settings.livemode

    async def __aenter__(self) -> V1MeterSink:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.close_async()  # type: ignore[no-untyped-call] # the SDK leaves it untyped

    async def send(self, event: MeterEvent) -> Answer:
        """Send once.  Never raises for anything Stripe or the network does."""
        try:
            echoed = await self._client.v1.billing.meter_events.create_async(
                {
                    "event_name": event.event_name,
                    "payload": {"stripe_customer_id": event.stripe_customer_id, "value": str(event.value)},
                    "identifier": event.identifier,
                    "timestamp": int(event.timestamp.timestamp()),
                },
                {"idempotency_key": event.idempotency_key},
            )
        except stripe.StripeError as exc:
            return _answer_of(exc)
        except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as exc:
            # The SDK does not wrap what breaks while the body is being read.
            return Answer(Outcome.UNKNOWN, error_code=type(exc).__name__)
        return self._check_echo(echoed, event)

    def _check_echo(self, echoed: stripe.billing.MeterEvent, event: MeterEvent) -> Answer:
        response = echoed.last_response
        request_id = response.request_id if response else None
        body = echoed.to_dict()
        expected = {"identifier": event.identifier, "event_name": event.event_name, "livemode": self._livemode}
        if {name: body.get(name) for name in expected} != expected:
            return Answer(Outcome.UNKNOWN, 200, "foreign_answer", "the answer does not echo our event", request_id)
        return Answer(Outcome.OK, 200, request_id=request_id)


def _answer_of(exc: stripe.StripeError) -> Answer:
    status = exc.http_status
    code = exc.error.code if exc.error else None
    message = stripe_words(exc)[:ERROR_MESSAGE_LENGTH_MAX]

    def answer(outcome: Outcome, *, stop: bool = False) -> Answer:
        return Answer(outcome, status, code or type(exc).__name__, message, exc.request_id, stop)

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
