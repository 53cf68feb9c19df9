"""How an answer travels back over HTTP: whole, or as the fault of its call says.

Last step of the HTTP face.  A client that is to get nothing finds its connection closed, so the protocol below
hands the application the means to close it, which ASGI has not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from billing_pipeline.stripe_simulator.core import Exchange
from billing_pipeline.stripe_simulator.faults import FaultKind
from billing_pipeline.stripe_simulator.wire import Answer

CONNECTION = "billing_pipeline.connection"
"""The name of the scope's extension whose `close` ends the client's connection, once what was sent has left."""
DRIPS = 10

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


class ClosableProtocol(HttpToolsProtocol):
    """uvicorn's protocol, which also lets the application close the connection."""

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.scope["extensions"] = {CONNECTION: {"close": self.transport.close}}


async def deliver(exchange: Exchange, scope: Scope, receive: Receive, send: Send) -> None:
    """Send the answer of an exchange, or as much of it as its fault lets through."""
    answer, fault = exchange.answer, exchange.fault
    if answer is None:
        await _close(scope, receive)
    elif fault is not None and fault.kind is FaultKind.RESET_MID_BODY:
        content = answer.content()
        await send(_start(answer, len(content)))
        await send({"type": "http.response.body", "body": content[: len(content) // 2], "more_body": True})
        await _close(scope, receive)
    elif fault is not None and fault.kind is FaultKind.SLOW_DRIP:
        await _drip(answer, fault.delay.total_seconds(), send)
    else:
        await send_answer(send, answer)


async def send_answer(send: Send, answer: Answer) -> None:
    """Send a whole answer."""
    content = answer.content()
    await send(_start(answer, len(content)))
    await send({"type": "http.response.body", "body": content})


def _start(answer: Answer, length: int) -> Message:
    headers = {"Content-Type": "application/json", **answer.headers, "Content-Length": str(length)}
    encoded = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
    return {"type": "http.response.start", "status": answer.status, "headers": encoded}


async def _drip(answer: Answer, seconds: float, send: Send) -> None:
    content = answer.content()
    await send(_start(answer, len(content)))
    for drip in range(DRIPS):
        await asyncio.sleep(seconds / DRIPS)
        part = content[len(content) * drip // DRIPS : len(content) * (drip + 1) // DRIPS]
        await send({"type": "http.response.body", "body": part, "more_body": drip + 1 < DRIPS})


async def _close(scope: Scope, receive: Receive) -> None:
    scope["extensions"][CONNECTION]["close"]()
    # Until the server has noticed, it would answer 500 in our place.
    while (await receive())["type"] != "http.disconnect":
        pass
