"""How fast stored webhooks become rows, and how soon a delivery changes an entitlement.

Beside the first the same claims and completions with nothing between them; beside the second the answer to a delivery.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

from psycopg import Connection

from billing_pipeline.database.connection import connect
from billing_pipeline.database.transactions import in_transaction
from billing_pipeline.webhooks.claims import claim_due, finish, hold
from billing_pipeline.webhooks.deliveries import read_delivery
from billing_pipeline.webhooks.dispatch import BATCH, Dispatcher
from billing_pipeline.webhooks.inbox import Origin, store
from billing_pipeline_tests.bench.intake import Served, serving
from billing_pipeline_tests.bench.line import Line
from billing_pipeline_tests.bench.stack import bench_stack
from billing_pipeline_tests.signing import body_of, event, realistic_event, signed
from billing_pipeline_tests.webhooks.events import subscription

EVENTS = 20_000
SLA = timedelta(minutes=5)
PER_SECOND_MIN = 1_500
ENTITLEMENTS = 500
BACKGROUND_PER_SECOND = 100
P99_MS_MAX = 1_000


def process() -> Line:
    """Stored events a second that become final rows, by one worker."""
    with bench_stack() as stack, connect(stack.database_url) as connection:
        _store(connection, "evt_bare", EVENTS // 2)
        started = time.perf_counter()
        _finish_all(connection)
        bare = EVENTS / 2 / (time.perf_counter() - started)
        _store(connection, "evt_ours", EVENTS)
        dispatcher = Dispatcher(connection, _clock)
        started = time.perf_counter()
        report = dispatcher.drain(events_max=EVENTS)
        ours = EVENTS / (time.perf_counter() - started)
        assert report.processed == EVENTS, report
    return Line("process", ours, "events/s", ours / bare, f"{PER_SECOND_MIN:,}/s", ours >= PER_SECOND_MIN)


def entitlement_p99() -> Line:
    """Milliseconds from sending a delivery until its entitlement can be read, in 99 of 100 cases.

    Once `serve` handles what it takes, which is a second after its start.
    """
    with serving() as served:
        _warm_up(served)
        background = threading.Thread(
            target=served.load, args=(ENTITLEMENTS * 2,), kwargs={"first": 0, "rate": BACKGROUND_PER_SECOND}
        )
        background.start()
        sent: dict[str, float] = {}
        took: list[float] = []
        seen: dict[str, float] = {}
        watcher = threading.Thread(target=_watch, args=(served.database_url, seen))
        watcher.start()
        with closing(http.client.HTTPConnection("127.0.0.1", served.port)) as client:
            for number in range(ENTITLEMENTS):
                sent[f"gate-{number}"] = began = time.perf_counter()
                _deliver(client, number)
                took.append(time.perf_counter() - began)
                time.sleep(0.01)
        watcher.join()
        background.join()
    p99 = _p99([seen[name] - sent[name] for name in sent]) * 1_000
    ratio = p99 / (_p99(took) * 1_000)
    return Line("entitlement_p99", p99, "ms", ratio, f"<{P99_MS_MAX}", p99 < P99_MS_MAX)


BENCHMARKS = {"process": process, "entitlement_p99": entitlement_p99}


def _clock() -> datetime:
    return datetime.now(UTC)


def _store(connection: Connection[Any], prefix: str, events: int) -> None:
    """So many events of invoices and subscriptions in turn, due now."""
    for start in range(0, events, BATCH):
        bodies = [_body(f"{prefix}_{number}", number) for number in range(start, start + BATCH)]
        batch = [read_delivery(body, "bench") for body in bodies]
        store(connection, batch, origin=Origin.WEBHOOK, stuck_after=SLA)
    connection.execute("ANALYZE")


def _body(event_id: str, number: int) -> bytes:
    if number % 2:
        return body_of(realistic_event(event_id, number))
    return body_of(event(event_id, created=1_790_000_000 + number, data={"object": _subscription(number // 2 % 5_000)}))


def _subscription(number: int) -> dict[str, Any]:
    # As long as Stripe's own are, which have many fields that nobody sets.
    unset = {f"field_that_stripe_sends_{n}": None for n in range(60)}
    owner = {"organization_id": f"gate-{number}"}
    return {**subscription(id=f"sub_{number}", customer=f"cus_{number:08d}", metadata=owner), **unset}


def _finish_all(connection: Connection[Any]) -> None:
    while claims := claim_due(connection, limit=BATCH, sla=SLA, now=_clock()):

        def work(claims: Sequence[Any] = claims) -> None:
            outcomes = {held.stripe_event_id: "processed" for held in hold(connection, claims)}
            finish(connection, outcomes, now=_clock())

        in_transaction(connection, work, name="A bare batch")


def _deliver(client: http.client.HTTPConnection, number: int) -> None:
    body, headers = signed(event(f"evt_gate_{number}", data={"object": _subscription(number)}))
    client.request("POST", "/webhooks/stripe", body, headers)
    answer = client.getresponse()
    answer.read()
    assert answer.status == 202, answer.status


def _warm_up(served: Served) -> None:
    with closing(http.client.HTTPConnection("127.0.0.1", served.port)) as client:
        _deliver(client, ENTITLEMENTS)
    deadline = time.perf_counter() + 30
    with connect(served.database_url) as connection:
        while not connection.execute("SELECT FROM entitlements").fetchall():
            assert time.perf_counter() < deadline, "nothing is handled"
            time.sleep(0.05)


def _watch(database_url: str, seen: dict[str, float]) -> None:
    """When each entitlement could first be read."""
    deadline = time.perf_counter() + 120
    with connect(database_url) as connection:
        while len(seen) < ENTITLEMENTS and time.perf_counter() < deadline:
            rows = connection.execute("SELECT organization_id FROM entitlements WHERE active").fetchall()
            now = time.perf_counter()
            for (name,) in rows:
                if name.startswith("gate-") and name != f"gate-{ENTITLEMENTS}":
                    seen.setdefault(name, now)
            time.sleep(0.005)


def _p99(values: list[float]) -> float:
    return sorted(values)[len(values) * 99 // 100]
