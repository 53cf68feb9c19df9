"""How fast webhooks are taken: over HTTP, verified, stored and committed before each answer, all on this machine.

Beside it the same inserts without HTTP, signatures or parsing, in batches as large as the intake's largest.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil

from billing_pipeline.cli.children import Child, wait_until_ready
from billing_pipeline.database.connection import connect
from billing_pipeline.webhooks.committer import BATCH_MAX
from billing_pipeline.webhooks.deliveries import read_delivery
from billing_pipeline.webhooks.inbox import Origin, store
from billing_pipeline_tests.bench.line import Line
from billing_pipeline_tests.bench.stack import bench_stack
from billing_pipeline_tests.cli.command import environment
from billing_pipeline_tests.signing import SECRET, body_of, realistic_event

EVENTS = 30_000
BARE_EVENTS = 10_000
CONNECTIONS = 128
PER_SECOND_MIN = 3_000
RATIO_MIN = 0.4
P99_MS_MAX = 50
MEGABYTES_MAX = 300


@dataclass(frozen=True)
class Served:
    """A running `serve`: its port and its process."""

    port: int
    process: psutil.Process
    database_url: str

    def load(self, events: int, *, first: int, rate: int = 0) -> dict[str, Any]:
        """What the load generator measured."""
        arguments = [self.port, events, CONNECTIONS, rate, first]
        command = [sys.executable, "-m", "billing_pipeline_tests.bench.intake_load", *map(str, arguments)]
        return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def intake() -> Line:
    """Webhooks a second, against the same inserts alone."""
    with serving() as served:
        before = _bare_rate(served.database_url, first=0)
        served.load(2_000, first=500_000)
        measured = served.load(EVENTS, first=1_000_000)
        _require_all_stored(served.database_url, EVENTS + 2_000)
        bare = (before + _bare_rate(served.database_url, first=BARE_EVENTS)) / 2
    ratio = measured["per_second"] / bare
    ok = measured["per_second"] >= PER_SECOND_MIN and ratio >= RATIO_MIN
    return Line("intake", measured["per_second"], "events/s", ratio, f"{PER_SECOND_MIN:,}/s,{RATIO_MIN}x", ok)


def intake_p99() -> Line:
    """Milliseconds within which 99 of 100 webhooks are answered, at half the demanded rate."""
    with serving() as served:
        served.load(2_000, first=500_000)
        milliseconds = served.load(EVENTS, first=1_000_000, rate=PER_SECOND_MIN // 2)["p99"] * 1_000
    return Line(
        "intake_p99", milliseconds, "ms", milliseconds / P99_MS_MAX, f"<{P99_MS_MAX}", milliseconds < P99_MS_MAX
    )


def intake_memory() -> Line:
    """Peak memory of the process that took all of them and of the one that handles them, together, in MB."""
    with serving() as served:
        served.load(EVENTS, first=1_000_000)
        peaks = [_peak_kilobytes(one) for one in (served.process, *served.process.children())]
    assert len(peaks) == 2, peaks
    megabytes = sum(peaks) // 1024
    return Line(
        "intake_memory", megabytes, "MB", megabytes / MEGABYTES_MAX, f"<{MEGABYTES_MAX}", megabytes < MEGABYTES_MAX
    )


BENCHMARKS = {"intake": intake, "intake_p99": intake_p99, "intake_memory": intake_memory}


@contextmanager
def serving() -> Iterator[Served]:
    """`serve` as a process, with its log in a file, before a durable database."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with bench_stack() as stack, tempfile.NamedTemporaryFile() as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "billing_pipeline.cli", "serve"],
            stdout=log,
            stderr=log,
            env=environment(DATABASE_URL=stack.database_url, STRIPE_WEBHOOK_SECRET=SECRET, BILLING_INTAKE_PORT=port),
        )
        try:
            wait_until_ready(Child("serve", Path(log.name), process), f"http://127.0.0.1:{port}/readyz", seconds=30)
            yield Served(port, psutil.Process(process.pid), stack.database_url)
        finally:
            process.terminate()
            process.wait()


def _bare_rate(database_url: str, *, first: int) -> float:
    numbers = range(first, first + BARE_EVENTS)
    deliveries = [read_delivery(body_of(realistic_event(f"evt_bare_{number}", number)), "bench") for number in numbers]
    with connect(database_url) as connection:
        started = time.perf_counter()
        for start in range(0, BARE_EVENTS, BATCH_MAX):
            batch = deliveries[start : start + BATCH_MAX]
            store(connection, batch, origin=Origin.WEBHOOK, stuck_after=timedelta(minutes=5))
        return BARE_EVENTS / (time.perf_counter() - started)


def _peak_kilobytes(process: psutil.Process) -> int:
    return int(Path(f"/proc/{process.pid}/status").read_text().partition("VmHWM:")[2].split()[0])


def _require_all_stored(database_url: str, events: int) -> None:
    question = "SELECT count(*) FROM stripe_events WHERE stripe_event_id LIKE 'evt\\_bench\\_%'"
    with connect(database_url) as connection:
        assert connection.execute(question).fetchone() == (events,)
