"""A Stripe simulator on a free port, in this process, for tests that speak to Stripe.

`simulator` is one with the machine's time; `running_simulator` takes any core, for tests that set lag, horizon,
processing time, a clock that stands still, or a journal on disk.
`client_without_sockets` spares a test the server: everything but uvicorn is the same, and a call takes 1 ms.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlsplit

import pytest
import stripe

from billing_pipeline.stripe_simulator.core import Lag, SimulatedStripe
from billing_pipeline.stripe_simulator.delivery import CONNECTION
from billing_pipeline.stripe_simulator.journal import Journal, MemoryJournal, Record
from billing_pipeline.stripe_simulator.server import application, bind, make_server
from billing_pipeline.stripe_simulator.webhook_sender import WebhookSender

KEY = "sk_test_of_the_tests"
START_SECONDS_MAX = 5


class SimulatorClock:
    """The machine's time, or one instant that stands still; `advance` moves either."""

    def __init__(self, still_at: datetime | None = None) -> None:
        self._still_at = still_at
        self._shift = timedelta(0)

    def __call__(self) -> datetime:
        return (self._still_at or datetime.now(UTC)) + self._shift

    def advance(self, **duration: float) -> None:
        """Go on by a duration given like a timedelta's, such as `hours=24`."""
        self._shift += timedelta(**duration)


@dataclass(frozen=True)
class RunningSimulator:
    """A simulator that answers at `url`.  Touch `core` only while no request is under way."""

    url: str
    core: SimulatedStripe
    key: str = KEY

    @property
    def clock(self) -> Callable[[], datetime]:
        return self.core.clock

    def journal(self, kind: str | None = None) -> list[Record]:
        """The journal's records, optionally of one kind."""
        return journal_of(self.core, kind)

    def client(self, key: str = KEY) -> stripe.StripeClient:
        """The official SDK, pointed here, without retries or telemetry."""
        return stripe.StripeClient(
            key, base_addresses={"api": self.url, "meter_events": self.url}, max_network_retries=0
        )


class _InProcess(stripe.HTTPClient):
    """Hands the SDK's requests, as the bytes they are, to the ASGI application.

    A connection that the application closes is the SDK's `APIConnectionError`.
    """

    name = "in process"

    def __init__(self, core: SimulatedStripe) -> None:
        super().__init__()
        self._app = application(core)

    def request(
        self, method: str, url: str, headers: Any, post_data: Any = None, *, _usage: Any = None
    ) -> tuple[str, int, dict[str, str]]:
        parts = urlsplit(url)
        scope = {
            "method": method.upper(),
            "path": parts.path,
            "query_string": parts.query.encode(),
            "headers": [(name.lower().encode(), str(value).encode()) for name, value in headers.items()],
            "extensions": {CONNECTION: {"close": lambda: closed.append(True)}},
        }
        sent: list[Any] = []
        closed: list[bool] = []

        async def receive() -> Any:
            if closed:
                return {"type": "http.disconnect"}
            return {"type": "http.request", "body": (post_data or "").encode(), "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(self._app(scope, receive, send))
        if closed:
            raise stripe.APIConnectionError("the connection closed before the answer was complete")
        start, *parts = sent
        answered = {name.decode(): value.decode() for name, value in start["headers"]}
        return b"".join(part["body"] for part in parts).decode(), start["status"], answered

    def close(self) -> None:
        """Nothing is open."""


def client_without_sockets(core: SimulatedStripe, key: str = KEY) -> stripe.StripeClient:
    """The official SDK in front of a core that no server serves."""
    return stripe.StripeClient(key, http_client=_InProcess(core), max_network_retries=0)


def streaming(client: stripe.StripeClient, client_with: Callable[[str], stripe.StripeClient]) -> Any:
    """The SDK's stream service with the token of a new session; `client_with` makes a client for a key."""
    token = client.v2.billing.meter_event_session.create().authentication_token
    return client_with(token).v2.billing.meter_event_stream


def journal_of(core: SimulatedStripe, kind: str | None = None) -> list[Record]:
    """The journal's records, optionally of one kind."""
    return [record for record in core.journal.read() if kind in (None, record["kind"])]


def make_core(
    clock: Callable[[], datetime] | None = None, journal: Journal | None = None, **options: Any
) -> SimulatedStripe:
    """A simulator without HTTP; `options` are those of `SimulatedStripe`."""
    return SimulatedStripe(clock or SimulatorClock(), journal or MemoryJournal(), **options)


@contextmanager
def running_simulator(
    core: SimulatedStripe | None = None, *, lag: Lag = timedelta(0), processing: timedelta = timedelta(0)
) -> Iterator[RunningSimulator]:
    """Serve a core (or a new one with `lag`) from a thread of its own until the block ends."""
    core = core or make_core(lag=lag)
    with bind("127.0.0.1", 0) as listener:
        sender = WebhookSender(core)
        server = make_server(application(core, processing, sender), sender)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + START_SECONDS_MAX
        while not server.started:
            if not thread.is_alive() or time.monotonic() > deadline:
                raise RuntimeError("the simulator did not start")
            time.sleep(0.002)
        try:
            yield RunningSimulator(f"http://127.0.0.1:{listener.getsockname()[1]}", core)
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture(autouse=True, scope="session")
def _no_telemetry() -> None:
    # The SDK would write a file into the home directory of whoever runs the tests.
    stripe.enable_telemetry = False


@pytest.fixture
def simulator() -> Iterator[RunningSimulator]:
    """A fresh account, with the machine's time and no lag."""
    with running_simulator() as running:
        yield running
