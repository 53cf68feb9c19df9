"""Sends signed webhooks over kept connections, as cheaply as Python can, and prints how long each answer took.

A process of its own: `python -m billing_pipeline_tests.bench.intake_load PORT REQUESTS CONNECTIONS RATE FIRST`.
With a rate, requests are due at their times whether or not earlier ones are answered, and each is timed from when it
was due; with rate 0 each connection sends the next as soon as it has an answer.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

import uvloop

from billing_pipeline_tests.signing import body_of, realistic_event, signature_header

ACCEPTED = b"HTTP/1.1 202 "
END = b'"duplicate":false}'


class Connection(asyncio.Protocol):
    """One kept connection with at most one request under way."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._received = b""
        self._due = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._load.idle(self)

    def send(self, request: bytes, due: float) -> None:
        self._due = due
        self._transport.write(request)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._received.endswith(END):
            assert self._received.startswith(ACCEPTED), self._received
            self._received = b""
            self._load.answered(self, time.perf_counter() - self._due)

    def connection_lost(self, exc: Exception | None) -> None:
        self._load.lost(self, exc)


class Load:
    """Hands requests to connections and gathers how long each took."""

    def __init__(self, requests: list[bytes], rate: int) -> None:
        self._requests = requests
        self._rate = rate
        self._next = 0
        self._idle: list[Connection] = []
        self.seconds: list[float] = []
        self.done = asyncio.get_running_loop().create_future()
        self._started = 0.0

    def idle(self, connection: Connection) -> None:
        self._idle.append(connection)

    def answered(self, connection: Connection, seconds: float) -> None:
        self.seconds.append(seconds)
        if len(self.seconds) == len(self._requests):
            self.done.set_result(None)
        elif self._rate or self._next == len(self._requests):
            self._idle.append(connection)
        else:
            self._send(connection, time.perf_counter())

    def lost(self, connection: Connection, exc: Exception | None) -> None:
        if connection in self._idle:
            # Closed after it had rested for long; at a low rate few are needed.
            self._idle.remove(connection)
        elif not self.done.done():
            self.done.set_exception(ConnectionError(f"after {len(self.seconds)} answers: {exc}"))

    async def run(self) -> float:
        """Send all; returns the seconds it took."""
        started = time.perf_counter()
        while self._next < len(self._requests):
            now = time.perf_counter()
            due = int((now - started) * self._rate) + 1 if self._rate else len(self._requests)
            while self._idle and self._next < min(due, len(self._requests)):
                self._send(self._idle.pop(), started + self._next / self._rate if self._rate else now)
            await asyncio.sleep(0.001 if self._rate else 0.05)
        await self.done
        return time.perf_counter() - started

    def _send(self, connection: Connection, due: float) -> None:
        connection.send(self._requests[self._next], due)
        self._next += 1


def request(number: int) -> bytes:
    body = body_of(realistic_event(f"evt_bench_{number:09d}", number))
    head = (
        "POST /webhooks/stripe HTTP/1.1\r\nHost: localhost\r\nUser-Agent: Stripe/1.0 (+https://stripe.com/docs/webhooks)\r\n"
        f"Content-Length: {len(body)}\r\nContent-Type: application/json; charset=utf-8\r\nAccept: */*\r\n"
        f"Stripe-Signature: {signature_header(body)}\r\n\r\n"
    )
    return head.encode() + body


async def main(port: int, requests: int, connections: int, rate: int, first: int) -> None:
    prepared = [request(number) for number in range(first, first + requests)]
    load = Load(prepared, rate)
    loop = asyncio.get_running_loop()
    for _ in range(connections):
        await loop.create_connection(lambda: Connection(load), "127.0.0.1", port)
    took = await load.run()
    ordered = sorted(load.seconds)
    told = {
        "per_second": requests / took,
        "p50": ordered[len(ordered) // 2],
        "p99": ordered[len(ordered) * 99 // 100],
        "bytes": sum(map(len, prepared)) / requests,
    }
    print(json.dumps(told))  # noqa: T201


if __name__ == "__main__":
    uvloop.run(main(*map(int, sys.argv[1:])))
