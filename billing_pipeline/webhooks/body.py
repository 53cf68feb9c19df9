"""Reads the body of one request: bounded in bytes and in time, and in the bytes of all requests together.

Anybody may send a body, and only its end shows whether Stripe signed it; until then it may cost little.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

BODY_BYTES_MAX = 1 << 20
BODY_SECONDS_MAX = 10

UNVERIFIED_BYTES_MAX = 64 << 20
"""Of all bodies that are being read; beyond it a request is turned away, and Stripe sends it again later."""


class TooLarge(Exception):
    """The body has more bytes than one may have."""


class NoRoom(Exception):
    """Too many bytes of other bodies are held."""


class BodyReader:
    """Reads bodies, and knows how many bytes of unfinished ones it holds."""

    def __init__(self) -> None:
        self._held = 0

    async def read(self, receive: Receive) -> bytes:
        """The whole body.

        Raises `TooLarge`, `NoRoom`, `TimeoutError`, and `ConnectionResetError` where the client has left.
        """
        async with asyncio.timeout(BODY_SECONDS_MAX):
            return await self._read(receive)

    async def _read(self, receive: Receive) -> bytes:
        body = bytearray()
        try:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ConnectionResetError
                part: bytes = message.get("body", b"")
                if len(body) + len(part) > BODY_BYTES_MAX:
                    raise TooLarge
                if not message.get("more_body", False):
                    # Almost always the only part, which then is not copied.
                    return bytes(body) + part if body else part
                if self._held + len(part) > UNVERIFIED_BYTES_MAX:
                    raise NoRoom
                self._held += len(part)
                body += part
        finally:
            self._held -= len(body)
