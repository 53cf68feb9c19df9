"""How fast entries go out, beside the same calls without a ledger, and how much memory a million of them takes."""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
import time
from collections import deque
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any, cast

from billing_pipeline.database.connection import connect
from billing_pipeline.settings import MeterSinkName, Settings
from billing_pipeline.stripe_api.catalogue import set_up_catalogue
from billing_pipeline.stripe_api.client import StripeClient, make_client
from billing_pipeline.stripe_api.customers import create_customers
from billing_pipeline.stripe_api.http import MeterHttpClient
from billing_pipeline.usage.flow import UsageFlow
from billing_pipeline_tests.bench.line import Line
from billing_pipeline_tests.bench.stack import bench_stack

CUSTOMERS = 200
MEMORY_ENTRIES = 1_000_000
THIS_HOUR = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)

ENTRIES = """
WITH customer AS (
    SELECT customer, row_number() OVER () AS number FROM unnest(%(customers)s::text[]) AS customer
), usage_window AS (
    INSERT INTO usage_windows (organization_id, stripe_customer_id, meter, event_name, meter_version,
                               starts_at, ends_at, target, quantity, event_count, contract_version, cutoff_at, cut_due)
    SELECT 'org-' || number, customer, 'prompt_tokens', 'prompt_tokens', '', minute, minute + interval '1 minute',
           0, 0, 0, '', 'epoch', false
      FROM generate_series(%(start)s::timestamptz, %(end)s::timestamptz - interval '1 minute', interval '1 minute')
           AS minute, customer
    RETURNING window_id, stripe_customer_id, starts_at
)
INSERT INTO ledger_entries (window_id, sequence, epoch, stripe_customer_id, event_name, value, slot_at, identifier)
SELECT window_id, 0, 0, stripe_customer_id, 'prompt_tokens', 1, starts_at, 'bench-' || window_id
  FROM usage_window
"""
"""An entry for each customer and minute, as the cut would leave them."""


def submit_v2() -> Line:
    """Entries a second over the v2 stream, against a bare loop of the SDK over the same stream."""
    return _rate("submit_v2", "v2_stream", entries=120_000, at_least=10_000, ratio_at_least=0.5)


def submit_v1() -> Line:
    """Entries a second over the v1 endpoint, against a bare asynchronous loop of the SDK."""
    return _rate("submit_v1", "v1", entries=10_000, at_least=1_000, ratio_at_least=0.6)


def submit_memory() -> Line:
    """Peak memory of the process that submits a million pending entries, in MB; less than 400."""
    command = [
        sys.executable,
        "-c",
        "from billing_pipeline_tests.bench.submission import submit_a_million as run; run()",
    ]
    megabytes = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
    return Line("submit_memory", megabytes, "MB", megabytes / 400, "<400", megabytes < 400)


def submit_a_million() -> None:
    """Runs in a process of its own, so that the peak is the submitter's."""
    with bench_stack(stripe_meter_sink="v2_stream") as stack, connect(stack.database_url) as connection:
        flow = UsageFlow(connection, stack.database_url, stack.settings, holder="bench")
        _prepare(flow, MEMORY_ENTRIES)
        sent = flow.submit().accepted
        assert sent == MEMORY_ENTRIES, sent
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)  # noqa: T201


BENCHMARKS = {"submit_v2": submit_v2, "submit_v1": submit_v1, "submit_memory": submit_memory}


def _rate(name: str, sink: str, *, entries: int, at_least: int, ratio_at_least: float) -> Line:
    with bench_stack(stripe_meter_sink=sink) as stack, connect(stack.database_url) as connection:
        flow = UsageFlow(connection, stack.database_url, stack.settings, holder="bench")
        customers = _prepare(flow, entries)
        before = _bare_rate(stack.settings, customers, range(entries // 4))
        started = time.perf_counter()
        report = flow.submit()
        ours = entries / (time.perf_counter() - started)
        assert report.accepted == entries, report
        # Before and after: a shared machine changes its pace within the run.
        bare = (before + _bare_rate(stack.settings, customers, range(entries // 4, entries // 2))) / 2
    ratio = ours / bare
    goal = f"{at_least:,}/s,{ratio_at_least}x"
    return Line(name, ours, "entries/s", ratio, goal, ours >= at_least and ratio >= ratio_at_least)


def _prepare(flow: UsageFlow, entries: int) -> list[str]:
    set_up_catalogue(flow.stripe, flow.settings, flow.catalogue)
    customers = list(create_customers(flow.stripe, flow.settings, [f"org-{n}" for n in range(CUSTOMERS)]).values())
    flow.pass_gate(contract=False)
    start = THIS_HOUR - timedelta(minutes=entries // CUSTOMERS)
    made = flow.connection.execute(ENTRIES, {"customers": customers, "start": start, "end": THIS_HOUR}).rowcount
    assert made == entries, (made, entries)
    flow.connection.execute("ANALYZE")
    return customers


def _bare_rate(settings: Settings, customers: list[str], numbers: range) -> float:
    """The same events by the SDK's own methods alone: no ledger, nothing recorded."""

    async def run() -> float:
        http = MeterHttpClient(settings.stripe_timeout_seconds)
        try:
            client = make_client(settings, http)
            if settings.stripe_meter_sink is MeterSinkName.V1:
                calls = deque(partial(_create, client, _event(customers, number)) for number in numbers)
            else:
                session = await client.v2.billing.meter_event_session.create_async()
                stream = make_client(settings, http, key=session.authentication_token)
                calls = deque(
                    partial(_stream, stream, [_event(customers, number) for number in numbers[start : start + 100]])
                    for start in range(0, len(numbers), 100)
                )

            async def work() -> None:
                while calls:
                    await calls.popleft()()

            started = time.perf_counter()
            await asyncio.gather(*(work() for _ in range(settings.stripe_max_concurrency)))
            return len(numbers) / (time.perf_counter() - started)
        finally:
            await http.close_async()

    return asyncio.run(run())


async def _create(client: StripeClient, event: dict[str, Any]) -> None:
    event["timestamp"] = int(event["timestamp"].timestamp())
    await client.v1.billing.meter_events.create_async(cast(Any, event))


async def _stream(client: StripeClient, events: list[dict[str, Any]]) -> None:
    for event in events:
        event["timestamp"] = event["timestamp"].isoformat()
    await client.v2.billing.meter_event_stream.create_async({"events": cast(Any, events)})


def _event(customers: list[str], number: int) -> dict[str, Any]:
    return {
        "event_name": "prompt_tokens",
        "payload": {"stripe_customer_id": customers[number % len(customers)], "value": "1"},
        "identifier": f"bare-{number}",
        "timestamp": THIS_HOUR - timedelta(days=20) + timedelta(minutes=number % 1_000),
    }
