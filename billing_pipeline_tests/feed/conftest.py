"""A feed as `serve` has it: the dispatcher, the writer, a Redis, and the stream on a free port."""

from __future__ import annotations

import http.client
import threading
import time
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import pytest

from billing_pipeline.cli.serve import bind, make_server
from billing_pipeline.feed.broadcast import nobody_listens
from billing_pipeline.feed.stream import PATH, make_stream
from billing_pipeline.orchestration.feed_parts import make_feed_writer
from billing_pipeline.settings import load_settings
from billing_pipeline.webhooks.app import make_app
from billing_pipeline.webhooks.dispatch import Dispatcher
from billing_pipeline_tests.feed.tiny_redis import TinyRedis
from billing_pipeline_tests.signing import SECRET
from billing_pipeline_tests.tcp_server import running_tcp_server
from billing_pipeline_tests.webhooks.conftest import Intake
from billing_pipeline_tests.webhooks.events import store

NOW = datetime(2026, 9, 22, tzinfo=UTC)
TOKEN = "a-token-of-the-web-app-0123456789"
START_SECONDS_MAX = 20
WAIT_SECONDS_MAX = 10


def feed_settings(**given: Any):
    return load_settings(**{"enable_billing_stream": True, "billing_access_token": TOKEN} | given)


@dataclass
class Feeding:
    """Stores events, handles them and writes the feed, over one connection; what was told is in `told`."""

    connection: Any
    now: datetime = NOW
    announce: Any = nobody_listens
    settings: Any = field(default_factory=feed_settings)
    told: list[tuple[str, str]] = field(default_factory=list)

    @property
    def dispatcher(self):
        return Dispatcher(self.connection, lambda: self.now, feeds=self.settings.enable_billing_stream)

    @property
    def writer(self):
        def told(*of_event):
            self.told.append(of_event)

        return make_feed_writer(self.connection, self.settings, lambda: self.now, self.announce, told)

    def handle(self, *events):
        store(self.connection, events, now=self.now)
        return self.dispatcher.drain(events_max=1_000)

    def feed(self, *events):
        self.handle(*events)
        return self.writer.drain(events_max=10_000)

    def rows(self):
        return self.connection.execute(
            "SELECT organization_id, stripe_event_id, event_type FROM billing_event_feed ORDER BY feed_id"
        ).fetchall()

    def payloads(self):
        return [row[0] for row in self.connection.execute("SELECT payload FROM billing_event_feed ORDER BY feed_id")]


@pytest.fixture
def feeding(connection):
    return Feeding(connection)


@pytest.fixture
def redis():
    """A Redis; `url` is its address."""
    server = TinyRedis()
    with running_tcp_server(server.handle) as port:
        server.url = f"redis://:hunter2@127.0.0.1:{port}/0"
        yield server


@dataclass
class Client:
    """One open stream; `read` gives the next blocks as dictionaries of their fields."""

    response: http.client.HTTPResponse

    @property
    def status(self) -> int:
        return self.response.status

    def block(self) -> dict[str, str]:
        """The next one that is no heartbeat; an empty one where the stream has ended."""
        found: dict[str, str] = {}
        while line := self.response.readline().decode():
            if line == "\n":
                if found:
                    return found
                continue
            name, _, value = line.rstrip("\n").partition(":")
            if name:
                found[name] = value.strip()
        return found

    def ids(self, count: int) -> list[int]:
        """The ids of the next messages."""
        return [int(self.block()["id"]) for _ in range(count)]


@dataclass
class Streaming:
    """A server with the stream, at `intake`."""

    intake: Intake
    stream: Any

    @contextmanager
    def open(self, organization_id="acme", *, last=None, token=TOKEN, query=None, method="GET"):
        connection = http.client.HTTPConnection(*self.intake.address, timeout=WAIT_SECONDS_MAX)
        headers = {"Authorization": f"Bearer {token}"} | ({} if last is None else {"Last-Event-ID": str(last)})
        asked = f"organization_id={quote(organization_id)}" if query is None else query
        try:
            connection.request(method, f"{PATH}?{asked}", headers=headers)
            yield Client(connection.getresponse())
        finally:
            connection.close()


@contextmanager
def streaming(database_url, redis_url, **options):
    """`serve` without its workers, for as long as the block runs; `options` are the stream's or the hub's own."""
    settings = feed_settings(
        database_url=database_url,
        stripe_webhook_secret=SECRET,
        **({"redis_url": redis_url} if redis_url else {}),
        **options.pop("settings", {}),
    )
    stream = make_stream(settings, database_url)
    for name, value in options.items():
        setattr(stream if hasattr(stream, name) else stream._hub, name, value)

    @asynccontextmanager
    async def background(_metrics, _is_crowded):
        async with stream:
            yield

    app = make_app(
        settings, database_url, clock=lambda: datetime.now(UTC), background=background, further={PATH: stream}
    )
    server = make_server(app, stream.end)
    with bind("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + START_SECONDS_MAX
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            assert time.monotonic() < deadline, "the server did not start in time"
            time.sleep(0.002)
        try:
            yield Streaming(Intake(f"http://127.0.0.1:{listener.getsockname()[1]}"), stream)
        finally:
            server.should_exit = True
            thread.join(START_SECONDS_MAX)
            assert not thread.is_alive(), "the server did not stop"


def wait_until(holds, *, seconds=WAIT_SECONDS_MAX):
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)
