"""How fast the projections are made anew from the inbox, beside a plain read of the same payloads."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from typing import Any

from psycopg import Connection

from billing_pipeline.database.clock import DatabaseClock
from billing_pipeline.database.connection import connect
from billing_pipeline.webhooks.dispatch import Dispatcher
from billing_pipeline.webhooks.rebuild import rebuild
from billing_pipeline_tests.bench.line import Line
from billing_pipeline_tests.bench.stack import bench_stack
from billing_pipeline_tests.webhooks.events import event, invoice, subscription

CUSTOMERS = 4_000
MONTHS = 4
EVENTS_A_SECOND = 5_000

STORE = (
    "COPY stripe_events (stripe_event_id, event_type, payload_style, livemode, object_id, object_key, created_at, "
    "payload, origin) FROM STDIN"
)
WAIT = (
    "INSERT INTO event_dispatches (stripe_event_id, object_key, created_at, due_at) "
    "SELECT stripe_event_id, object_key, created_at, now() FROM stripe_events"
)
READ = "SELECT stripe_event_id, event_type, created_at, payload FROM stripe_events"


def rebuild_rate() -> Line:
    """Events a second, comparison included, of customers with a subscription and monthly invoices."""
    with bench_stack() as stack, connect(stack.database_url) as connection:
        events = _store(connection)
        clock = DatabaseClock(connection)
        Dispatcher(connection, clock, sla=timedelta(hours=1)).drain(events_max=events, batch=2_000)
        connection.execute("VACUUM ANALYZE")
        began = time.perf_counter()
        report = rebuild(connection, clock)
        ours = events / (time.perf_counter() - began)
        assert (report.differ, report.replayed.unreadable) == (0, ()), report
        assert report.replayed.events == CUSTOMERS * (1 + 4 * MONTHS), report
        bare = _read_rate(connection, events)
    return Line("rebuild", ours, "events/s", ours / bare, f"{EVENTS_A_SECOND:,}/s", ours >= EVENTS_A_SECOND)


BENCHMARKS = {"rebuild": rebuild_rate}


def _store(connection: Connection[Any]) -> int:
    number = 0
    with connection.cursor() as cursor, cursor.copy(STORE) as copy:
        for customer in range(CUSTOMERS):
            for one in _life(customer):
                number += 1
                about = one["data"]["object"]
                at = datetime.fromtimestamp(one["created"], UTC)
                ids = (about["id"], about["id"])
                copy.write_row((f"evt_{number}", one["type"], "snapshot", False, *ids, at, json.dumps(one), "webhook"))
    connection.execute(WAIT)
    return number


def _life(customer: int) -> list[dict[str, Any]]:
    """What Stripe tells of one customer: it subscribes, and each month an invoice is made, finalized and paid."""
    names = {"customer": f"cus_{customer}", "metadata": {"organization_id": f"org_{customer}"}}
    bought = subscription(id=f"sub_{customer}", **names)
    told = [event("customer.subscription.created", bought)]
    for month in range(MONTHS):
        at = month * 2_592_000
        bill = invoice(id=f"in_{customer}_{month}", customer=names["customer"])
        told += [
            event("invoice.created", bill, at=at),
            event("invoice.finalized", {**bill, "status": "open"}, at=at + 3_600),
            event("charge.succeeded", {"id": f"ch_{customer}_{month}", "object": "charge", **names}, at=at + 3_601),
            event("invoice.paid", {**bill, "status": "paid"}, at=at + 3_602),
            event("customer.subscription.updated", bought, at=at),
        ]
    return told


def _read_rate(connection: Connection[Any], events: int) -> float:
    began = time.perf_counter()
    with connection.transaction(), connection.cursor(name="plain") as cursor:
        cursor.itersize = 2_000
        assert sum(1 for _ in cursor.execute(READ)) == events
    return events / (time.perf_counter() - began)
