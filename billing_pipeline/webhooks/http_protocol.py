"""uvicorn's HTTP protocol with an end to its patience: a connection that sends no whole head in time is closed.

uvicorn bounds how long a connection rests between two requests, but neither how long it may take to send its first
head nor how large a head may be.  Bodies are bounded where they are read, in `body`.
An answer leaves in one piece, where uvicorn writes its head and its body: a packet and a system call less.
"""

from __future__ import annotations

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

HEAD_SECONDS = 10
"""From a connection's first moment, or a later request's first byte, to the end of the request's head."""
HEAD_BYTES_MAX = 64 << 10
"""Far more than Stripe's heads have, and proxies pass on."""
PIECE_BYTES_MAX = 16 << 10


class _Pieces:
    """A transport that sends together what is written before the event loop goes on."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._held: list[bytes] = []
        self._bytes = 0

    def write(self, data: bytes) -> None:
        """Send it by the end of this turn of the loop, or at once where much is held."""
        if not self._held:
            self._loop.call_soon(self._send)
        self._held.append(data)
        self._bytes += len(data)
        if self._bytes > PIECE_BYTES_MAX:
            self._send()

    def close(self) -> None:
        """Send what is held and close."""
        self._send()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _send(self) -> None:
        # Who has gone meanwhile is sent nothing.
        if self._held and not self._transport.is_closing():
            self._transport.write(b"".join(self._held))
        self._held.clear()
        self._bytes = 0


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection."""

    _deadline: asyncio.TimerHandle | None = None
    _head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A head is waited for from now on."""
        super().connection_made(cast("asyncio.Transport", _Pieces(transport, self.loop)))
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Whatever comes while no request is under way is a new head, or what was left of an unread body."""
        cycle: RequestResponseCycle | None = self.cycle
        if self._deadline is None and (cycle is None or cycle.response_complete):
            self._await_head()
        super().data_received(data)
        if self._deadline is not None:
            self._head_bytes += len(data)
            if self._head_bytes > HEAD_BYTES_MAX:
                self.transport.close()

    def on_headers_complete(self) -> None:
        """The head is whole."""
        self._stop_waiting()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._stop_waiting()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._head_bytes = 0
        self._deadline = self.loop.call_later(HEAD_SECONDS, self._give_up)

    def _give_up(self) -> None:
        self.transport.close()

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
