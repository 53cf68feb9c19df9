"""Sends webhook deliveries over HTTP from the process that serves the simulator.

It runs only while webhook endpoints exist, in the server's own event loop, so nothing else touches the core meanwhile.
A redirect is a failure, as it is for Stripe; the time an endpoint has is not published, 20 seconds are a guess.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress

import aiohttp

from billing_pipeline.stripe_simulator.core import SimulatedStripe
from billing_pipeline.stripe_simulator.webhook_requests import Outgoing

TICK_SECONDS = 0.25
"""How often it looks for what has become due by the clock alone."""
ANSWER_SECONDS_MAX = 20
IN_FLIGHT_MAX = 16


class WebhookSender:
    """Sends what is due, several requests at once, until it is closed."""

    def __init__(self, core: SimulatedStripe) -> None:
        self._core = core
        self._running: asyncio.Task[None] | None = None
        self._wake = asyncio.Event()
        self._in_flight: set[asyncio.Task[None]] = set()

    def poke(self) -> None:
        """Something may be due: called in the event loop at its start and after every request."""
        if not self._core.state.deliveries.has_endpoints:
            return
        if self._running is None or self._running.done():
            self._running = asyncio.get_running_loop().create_task(self._run())
        self._wake.set()

    async def close(self) -> None:
        """Stop; what is in flight counts as not answered and is sent again after a restart."""
        tasks = [task for task in (self._running, *self._in_flight) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _run(self) -> None:
        timeout = aiohttp.ClientTimeout(total=ANSWER_SECONDS_MAX)
        async with aiohttp.ClientSession(timeout=timeout) as session:
            while self._core.state.deliveries.has_endpoints or self._in_flight:
                free = len(self._in_flight) < IN_FLIGHT_MAX
                due = self._core.next_webhook() if free else None
                if due is None:
                    await self._rest()
                else:
                    self._start(session, due)

    async def _rest(self) -> None:
        self._wake.clear()
        with suppress(TimeoutError):
            await asyncio.wait_for(self._wake.wait(), TICK_SECONDS)

    def _start(self, session: aiohttp.ClientSession, due: Outgoing) -> None:
        task = asyncio.get_running_loop().create_task(self._send(session, due))
        self._in_flight.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._in_flight.discard(task)
        self._wake.set()

    async def _send(self, session: aiohttp.ClientSession, due: Outgoing) -> None:
        status = None
        with suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with session.post(due.url, data=due.body, headers=due.headers, allow_redirects=False) as answer:
                status = answer.status
        self._core.webhook_answered(due, status)
