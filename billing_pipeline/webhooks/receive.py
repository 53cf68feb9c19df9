"""One request of Stripe's: refused, or stored and then answered.

In order: the size and the encoding, the whole body, the signature over its bytes, the event's envelope, whose event it
is, and the commit.  Nothing of a body is read before its signature is right.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from billing_pipeline.database import queries
from billing_pipeline.domain.envelope import Envelope
from billing_pipeline.domain.signature import verify_signature
from billing_pipeline.errors import DeliveryRefused, Unavailable
from billing_pipeline.webhooks.body import BODY_BYTES_MAX, BodyReader, NoRoom, Receive, TooLarge
from billing_pipeline.webhooks.committer import Committer
from billing_pipeline.webhooks.deliveries import Delivery, read_delivery
from billing_pipeline.webhooks.inbox import Result, Stored
from billing_pipeline.webhooks.metrics import RESULT_OF_REFUSAL, WebhookMetrics, WebhookResult

logger = logging.getLogger(__name__)
milestones = logging.getLogger("billing_pipeline.milestones")

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

PATH = "/webhooks/stripe"
PATIENCE_SECONDS = 20
"""From a whole body to its answer.  Stripe publishes no limit; what is not committed by then is to be sent again."""
RETRY_AFTER_SECONDS = 10


@dataclass(frozen=True, slots=True)
class Answer:
    """A status and a small JSON document; `last` closes the connection, because the rest of its request is unread."""

    status: int
    body: bytes
    last: bool = False


ACCEPTED = Answer(202, b'{"status":"accepted","duplicate":false}')
DUPLICATE = Answer(200, b'{"status":"already_processed","duplicate":true}')
REQUEUED = Answer(200, b'{"status":"requeued","duplicate":true}')
NOT_STORED = Answer(503, b'{"status":"not_stored"}')
NO_ROOM = Answer(503, b'{"status":"not_stored"}', last=True)
NO_SECRET = Answer(503, b'{"status":"no_webhook_secret"}', last=True)
TOO_LARGE = Answer(413, b'{"status":"refused","reason":"too_large"}', last=True)
ENCODED = Answer(415, b'{"status":"refused","reason":"content_encoding"}', last=True)
TOO_SLOW = Answer(408, b'{"status":"refused","reason":"too_slow"}', last=True)


class StripeEndpoint:
    """The ASGI application of `POST /webhooks/stripe`."""

    def __init__(
        self,
        committer: Committer,
        *,
        secrets: tuple[str, ...],
        livemode: bool,
        clock: Callable[[], datetime],
        metrics: WebhookMetrics,
    ) -> None:
        self._committer = committer
        self._secrets = secrets
        self._livemode = livemode
        self._clock = clock
        self._metrics = metrics
        self._bodies = BodyReader()
        self._own_account: str | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request; nothing escapes, so that no traceback holds a body."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            answer = await self._answer(scope, receive)
        except ConnectionResetError:
            return
        except Exception as exc:
            logger.error("Stripe webhook not stored: %s", type(exc).__name__)
            answer = NOT_STORED
        self._metrics.observe(PATH, answer.status, loop.time() - started)
        await _send(send, answer)

    async def _answer(self, scope: Scope, receive: Receive) -> Answer:
        if not self._secrets:
            return NO_SECRET
        headers = _single(scope["headers"])
        if headers.get(b"content-encoding", b"identity").strip().lower() != b"identity":
            return self._refused(ENCODED)
        length = headers.get(b"content-length", b"0")
        if not length.isdigit() or int(length) > BODY_BYTES_MAX:
            return self._refused(TOO_LARGE)
        try:
            body = await self._bodies.read(receive)
        except TimeoutError:
            return TOO_SLOW
        except TooLarge:
            return self._refused(TOO_LARGE)
        except NoRoom:
            return NO_ROOM
        return await self._receive(body, headers.get(b"stripe-signature"))

    async def _receive(self, body: bytes, header: bytes | None) -> Answer:
        now = self._clock()
        try:
            matched = verify_signature(
                body, None if header is None else header.decode("latin-1"), self._secrets, now=now
            )
        except DeliveryRefused as refused:
            self._committer.signature_failed(refused.reason, now=now)
            return self._refusal(refused)
        delivery = None
        try:
            until = asyncio.get_running_loop().time() + PATIENCE_SECONDS
            delivery = read_delivery(body, matched)
            await self._require_ours(delivery.envelope)
            stored = await self._committer.store(delivery, until=until)
        except DeliveryRefused as refused:
            envelope = delivery.envelope if delivery else None
            logger.error("Stripe webhook refused: %s", refused.reason, extra=_fields(envelope))
            return self._refusal(refused, envelope)
        except Unavailable:
            return NOT_STORED
        return self._stored(delivery, stored)

    def _stored(self, delivery: Delivery, stored: Stored) -> Answer:
        fields = _fields(delivery.envelope)
        self._metrics.count(WebhookResult(stored.result.value), delivery.envelope.event_type)
        if stored.other_body:
            logger.warning("Stripe webhook repeated with another body", extra=fields)
        if stored.result is Result.ACCEPTED:
            milestones.info("Stripe webhook accepted and queued", extra=fields)
            return ACCEPTED
        if stored.result is Result.REQUEUED:
            milestones.info("Stripe webhook requeued", extra=fields | {"found": stored.found})
            return REQUEUED
        milestones.info("Stripe webhook duplicate ignored", extra=fields)
        return DUPLICATE

    async def _require_ours(self, envelope: Envelope) -> None:
        """Raises `DeliveryRefused` for an event of the other mode or of another account than the ledger's."""
        if envelope.livemode is not self._livemode:
            raise DeliveryRefused("wrong_mode", "The event is of the other mode than STRIPE_SECRET_KEY.")
        # Events of the account itself name none, so the ledger is asked for few or none.
        if envelope.stripe_account is None:
            return
        if self._own_account is None:
            found = await self._committer.ask(
                lambda connection: queries.fetch_dicts(connection, "read_identity"), seconds=PATIENCE_SECONDS
            )
            self._own_account = found[0]["stripe_account"] if found else None
        if envelope.stripe_account != self._own_account:
            raise DeliveryRefused("wrong_account", "The event is of another account than the ledger's.")

    def _refused(self, answer: Answer) -> Answer:
        self._metrics.count(WebhookResult.INVALID_PAYLOAD)
        return answer

    def _refusal(self, refused: DeliveryRefused, envelope: Envelope | None = None) -> Answer:
        self._metrics.count(RESULT_OF_REFUSAL[refused.reason], envelope.event_type if envelope else None)
        return Answer(400, b'{"status":"refused","reason":"%b"}' % refused.reason.encode())


def _fields(envelope: Envelope | None) -> dict[str, str | None]:
    if envelope is None:
        return {}
    return {
        "stripe_event_id": envelope.stripe_event_id,
        "event_type": envelope.event_type,
        "tenant_hint": envelope.tenant_hint,
    }


def _single(headers: list[tuple[bytes, bytes]]) -> dict[bytes, bytes]:
    """Headers by name, joined with a comma where one comes twice, as HTTP reads them."""
    found: dict[bytes, bytes] = {}
    for name, value in headers:
        found[name] = b"%b,%b" % (found[name], value) if name in found else value
    return found


async def _send(send: Send, answer: Answer) -> None:
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(answer.body))]
    if answer.status == NOT_STORED.status:
        headers.append((b"retry-after", b"%d" % RETRY_AFTER_SECONDS))
    if answer.last:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": answer.status, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})
