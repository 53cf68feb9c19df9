"""A proxy between a client and a server that loses things on purpose, one connection at a time.

The unlucky moments of a network cannot be asked of a real server; this stands in front of one and makes them.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from urllib.parse import urlsplit

import pytest

from billing_pipeline_tests.tcp_server import running_tcp_server


class Mishap(StrEnum):
    """What happens to the requests of one connection."""

    NONE = "none"
    LOSE_REQUEST = "lose_request"  # the server never sees it; the client sees the connection close
    LOSE_ANSWER = "lose_answer"  # the server does the work; the client sees the connection close
    CUT_ANSWER = "cut_answer"  # the client gets the first half of the answer
    FOREIGN_ANSWER = "foreign_answer"  # a captive portal answers 200 with a page of its own
    REPLACED_ANSWER = "replaced_answer"  # the server does the work, and the client gets that page all the same
    SERVER_ERROR = "server_error"  # the server does the work, then a gateway answers 502
    HOLD_REQUEST = "hold_request"  # the server sees it only when `let_go` is called, if ever
    HOLD_ANSWER = "hold_answer"  # the server does the work; the client gets the answer when `let_go` is called


PAGE = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 13\r\nConnection: close\r\n\r\n<html></html>"
SENDS = (b"POST /v1/billing/meter_events ", b"POST /v2/billing/meter_event_stream ")
BAD_GATEWAY = b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"


class UnluckyProxy:
    """Serves `url`; `mishaps` says what happens to the next connections, then all is well.

    `mishap_of_send` says the same of requests that send usage, by their number from 1; `sends` keeps them, and
    `reached` tells that one is being held.
    """

    def __init__(self, target: str) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname, parts.port)
        self.mishaps: list[Mishap] = []
        self.page = PAGE
        self.mishap_of_send: dict[int, Mishap] = {}
        self.sends: list[bytes] = []
        self.reached = threading.Event()
        self._let_go = threading.Event()
        self.url = ""

    def let_go(self) -> None:
        """Let what is held go on, and hold nothing more."""
        self._let_go.set()

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Carry one request there and its answer back, or lose them."""
        mishap = self.mishaps.pop(0) if self.mishaps else Mishap.NONE
        try:
            request = await _message(reader)
            if request.startswith(SENDS):
                self.sends.append(request)
                mishap = self.mishap_of_send.get(len(self.sends), mishap)
            if mishap is Mishap.HOLD_REQUEST:
                await self._hold()
            if mishap is Mishap.FOREIGN_ANSWER:
                writer.write(self.page)
            elif mishap is not Mishap.LOSE_REQUEST:
                answer = await self._ask(request)
                if mishap is Mishap.HOLD_ANSWER:
                    await self._hold()
                writer.write(self.page if mishap is Mishap.REPLACED_ANSWER else _delivered(answer, mishap))
            await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _hold(self) -> None:
        self.reached.set()
        while not self._let_go.is_set():
            await asyncio.sleep(0.01)

    async def _ask(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection(*self._target)
        writer.write(request)
        answer = await _message(reader)
        writer.close()
        # One request a connection, so that a mishap concerns exactly one.
        head, _, body = answer.partition(b"\r\n\r\n")
        return head + b"\r\nConnection: close\r\n\r\n" + body


def _delivered(answer: bytes, mishap: Mishap) -> bytes:
    match mishap:
        case Mishap.LOSE_ANSWER:
            return b""
        case Mishap.CUT_ANSWER:
            return answer[: len(answer) - 20]
        case Mishap.SERVER_ERROR:
            return BAD_GATEWAY
        case _:
            return answer


async def _message(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        (int(line.split(b":")[1]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0
    )
    return head + await reader.readexactly(length)


@contextmanager
def unlucky_proxy(target: str) -> Iterator[UnluckyProxy]:
    """A proxy in front of `target`."""
    proxy = UnluckyProxy(target)
    with running_tcp_server(proxy.handle) as port:
        proxy.url = f"http://127.0.0.1:{port}"
        yield proxy


@pytest.fixture
def proxy(simulator) -> Iterator[UnluckyProxy]:
    """A proxy in front of the simulator."""
    with unlucky_proxy(simulator.url) as running:
        yield running
