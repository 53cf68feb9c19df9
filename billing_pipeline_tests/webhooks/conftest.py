"""The intake as `serve` runs it, on a free port and a database of the test's own."""

from __future__ import annotations

import http.client
import json
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import urlsplit

import pytest

from billing_pipeline.cli.serve import bind, make_server
from billing_pipeline.settings import load_settings
from billing_pipeline.webhooks.app import make_app
from billing_pipeline_tests.signing import SECRET, event, signed

START_SECONDS_MAX = 20


@dataclass(frozen=True)
class Answered:
    """What came back: the document is parsed where it is JSON."""

    status: int
    document: object
    headers: dict[str, str]
    raw: bytes


@dataclass(frozen=True)
class Intake:
    """An intake that answers at `url`."""

    url: str

    @property
    def address(self) -> tuple[str, int]:
        parts = urlsplit(self.url)
        return parts.hostname, parts.port

    def ask(self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None) -> Answered:
        connection = http.client.HTTPConnection(*self.address, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            raw = response.read()
            json_type = raw and response.getheader("content-type", "").startswith("application/json")
            return Answered(response.status, json.loads(raw) if json_type else None, dict(response.getheaders()), raw)
        finally:
            connection.close()

    def post(self, body: bytes, headers: dict[str, str]) -> Answered:
        return self.ask("POST", "/webhooks/stripe", body, headers)

    def deliver(self, event_id: str = "evt_1", *secrets: str, **fields: object) -> Answered:
        return self.post(*signed(event(event_id, **fields), *secrets))


@contextmanager
def serving(database_url, *, clock=lambda: datetime.now(UTC), background=None, **settings):
    chosen = load_settings(**{"stripe_webhook_secret": SECRET, "database_url": database_url} | settings)
    server = make_server(make_app(chosen, database_url, clock=clock, background=background))
    with bind("127.0.0.1", 0) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        deadline = time.monotonic() + START_SECONDS_MAX
        while not server.started:
            if not thread.is_alive() or time.monotonic() > deadline:
                raise RuntimeError("the intake did not start")
            time.sleep(0.002)
        try:
            yield Intake(f"http://127.0.0.1:{listener.getsockname()[1]}")
        finally:
            server.should_exit = True
            thread.join()


@pytest.fixture
def intake(database_url):
    with serving(database_url) as running:
        yield running
