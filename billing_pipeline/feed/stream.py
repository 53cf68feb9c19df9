"""`GET /api/v1/billing/stream`: one organization's feed as server-sent events, a bare ASGI application in `serve`.

A stream reads page after page from the table and sends it, so nothing is held for who reads slowly; who does not take
what was sent for a while is cut off and goes on later from the last id that he has seen.
The token is the web app's: its server asks on behalf of its users, each for the organization of his own session.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import parse_qs

from billing_pipeline.errors import BillingError
from billing_pipeline.feed.hub import Full, Hub, Seat
from billing_pipeline.feed.read import FeedRow
from billing_pipeline.settings import Settings

logger = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

PATH = "/api/v1/billing/stream"
HEARTBEAT_SECONDS = 15.0
"""Below the 60 seconds after which most proxies close a silent connection."""

SEND_SECONDS_MAX = 20.0
"""Who has not taken what was sent by then is cut off."""

ABORT = "billing_pipeline.abort"
"""The extension in the scope by which the server lets go of a connection; ASGI has no word for that."""

RECONNECT_MILLISECONDS = 3_000
RETRY_AFTER_SECONDS = 5
FEED_ID_MAX = 2**63 - 1
ID_DIGITS_MAX = len(str(FEED_ID_MAX))

ORGANIZATION = re.compile(r"[^\x00-\x1f]{1,255}")
HEARTBEAT = b": still here\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    # nginx holds answers back otherwise.
    (b"x-accel-buffering", b"no"),
]


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why there is no stream: a status, a code for programs, and a sentence for a person."""

    status: int
    code: str
    message: str


class NoStream(Exception):
    """The request is answered with a refusal."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.code)
        self.refusal = refusal


DISABLED = Refusal(503, "stream_disabled", "The billing stream is off. Set ENABLE_BILLING_STREAM=true.")
NO_BACKEND = Refusal(
    503, "stream_backend_missing", "The billing stream has no Redis. Set BILLING_EVENTS_REDIS_URL or REDIS_URL."
)
NO_TOKEN = Refusal(503, "stream_token_missing", "The billing stream has no token to ask for. Set BILLING_ACCESS_TOKEN.")
UNAUTHORIZED = Refusal(401, "unauthorized", "A token is needed.")
NOT_READ = Refusal(405, "method_not_allowed", "The billing stream is read with GET.")
NO_ORGANIZATION = Refusal(422, "organization_missing", "Say which, once: ?organization_id=...")
NO_ID = Refusal(400, "last_event_id_invalid", "Last-Event-ID is none of this stream's.")
FULL = Refusal(503, "stream_full", "This process takes no further streams.")
ORGANIZATION_FULL = Refusal(429, "organization_full", "This organization has too many streams.")
NO_DATABASE = Refusal(503, "database", "The database does not answer.")


class BillingStream:
    """The ASGI application, which streams inside its `async with` block; `hub` may be why there can be no stream."""

    def __init__(
        self,
        hub: Hub | Refusal,
        token: str = "",
        *,
        heartbeat: float = HEARTBEAT_SECONDS,
        send_seconds: float = SEND_SECONDS_MAX,
    ) -> None:
        self._hub = hub
        self._token = token.encode()
        self.heartbeat = heartbeat
        self.send_seconds = send_seconds

    @property
    def refusal(self) -> Refusal | None:
        """Why nobody gets a stream here, if so."""
        return self._hub if isinstance(self._hub, Refusal) else None

    async def __aenter__(self) -> Self:
        if isinstance(self._hub, Hub):
            await self._hub.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        if isinstance(self._hub, Hub):
            await self._hub.__aexit__(*exc)

    def end(self) -> None:
        """Let every stream end by itself now: the process stops."""
        if isinstance(self._hub, Hub):
            self._hub.end()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One stream, until the client leaves, is cut off, or the process ends."""
        try:
            hub, organization_id, last_seen = self._asked(scope)
            with hub.seat(organization_id) as seat:
                stream = _Stream(self, hub, seat, organization_id, send, scope)
                await _until_gone(receive, stream.run(last_seen))
        except NoStream as exc:
            await _refuse(send, exc.refusal)
        except Full as full:
            await _refuse(send, ORGANIZATION_FULL if full.of_organization else FULL)

    def _asked(self, scope: Scope) -> tuple[Hub, str, int | None]:
        if isinstance(self._hub, Refusal):
            raise NoStream(self._hub)
        if scope["method"] != "GET":
            raise NoStream(NOT_READ)
        headers = dict(scope["headers"])
        if not hmac.compare_digest(headers.get(b"authorization", b""), b"Bearer " + self._token):
            raise NoStream(UNAUTHORIZED)
        asked = parse_qs(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        organizations = asked.get("organization_id", [])
        if len(organizations) != 1 or not ORGANIZATION.fullmatch(organizations[0]):
            raise NoStream(NO_ORGANIZATION)
        # A browser's first connection cannot send the header.
        last_seen = headers.get(b"last-event-id", b"").decode("latin-1") or asked.get("last_event_id", [""])[0]
        return self._hub, organizations[0], _feed_id(last_seen)


class _Stream:
    """One client's stream, between its page of the table and its socket."""

    def __init__(
        self, owner: BillingStream, hub: Hub, seat: Seat, organization_id: str, send: Send, scope: Scope
    ) -> None:
        self._heartbeat, self._send_seconds = owner.heartbeat, owner.send_seconds
        self._hub = hub
        self._seat = seat
        self._organization_id = organization_id
        self._send = send
        self._abort: Callable[[], None] | None = scope.get("extensions", {}).get(ABORT, {}).get("abort")

    async def run(self, last_seen: int | None) -> None:
        """Send what follows, until the process ends or the client is too slow.  Raises `NoStream` before anything."""
        try:
            beginning = await self._hub.begin(self._organization_id, last_seen)
        except BillingError:
            raise NoStream(NO_DATABASE) from None
        await self._send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        about = {"organization_id": self._organization_id}
        try:
            # The id alone: whoever is cut off before the first row goes on from here all the same.
            await self._write(b"retry: %d\nid: %d\n\n" % (RECONNECT_MILLISECONDS, beginning.after))
            if beginning.has_gap:
                await self._write(_gap(last_seen, beginning.after))
            await self._follow(beginning.after)
        except TimeoutError:
            logger.warning("A billing stream was cut off, because its client is too slow", extra=about)
            await self._cut_off()
        except Exception as exc:
            # Its client comes again with the last id that it has.  No traceback: it may hold what was read.
            said = str(exc) if isinstance(exc, BillingError) else type(exc).__name__
            logger.warning("A billing stream ended: %s", said, extra=about)
        await self._send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _follow(self, after: int) -> None:
        while not self._seat.is_over:
            if rows := await self._hub.rows(self._organization_id, after):
                await self._write(b"".join(map(_message, rows)))
                after = rows[-1].feed_id
                continue
            while not await self._seat.sleep(self._heartbeat):
                await self._write(HEARTBEAT)

    async def _write(self, body: bytes) -> None:
        async with asyncio.timeout(self._send_seconds):
            await self._send({"type": "http.response.body", "body": body, "more_body": True})

    async def _cut_off(self) -> None:
        # What waits in the socket's buffer goes with it.  The server then tells of a client that has left, which ends
        # this stream where it sleeps; a server that cannot abort is left to close what it likes.
        if self._abort is not None:
            self._abort()
            await asyncio.sleep(self._send_seconds)


def _feed_id(text: str) -> int | None:
    if not text:
        return None
    if not (text.isascii() and text.isdigit()) or len(text) > ID_DIGITS_MAX or int(text) > FEED_ID_MAX:
        raise NoStream(NO_ID)
    return int(text)


def _message(row: FeedRow) -> bytes:
    return b"id: %d\ndata: %b\n\n" % (row.feed_id, row.payload.encode())


def _gap(last_seen: int | None, after: int) -> bytes:
    told = json.dumps({"last_seen": last_seen, "resumed_after": after}).encode()
    return b"event: gap\ndata: %b\n\n" % told


async def _until_gone(receive: Receive, stream: Any) -> None:
    """Run the stream; end it when its client has left, which only a read tells."""
    streaming = asyncio.ensure_future(stream)
    leaving = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({streaming, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if streaming.done():
            streaming.result()
    finally:
        for task in (streaming, leaving):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _refuse(send: Send, refusal: Refusal) -> None:
    body = json.dumps({"code": refusal.code, "message": refusal.message}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if refusal.status in (429, 503):
        headers.append((b"retry-after", b"%d" % RETRY_AFTER_SECONDS))
    if refusal is UNAUTHORIZED:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def make_stream(settings: Settings, database_url: str) -> BillingStream:
    """The stream as it is configured; where it is not whole it only says what is missing."""
    token = settings.billing_access_token
    if not settings.enable_billing_stream:
        return BillingStream(DISABLED)
    if settings.feed_redis_url is None:
        return BillingStream(NO_BACKEND)
    if token is None:
        return BillingStream(NO_TOKEN)
    return BillingStream(Hub(database_url, settings.feed_redis_url), token.get_secret_value())
