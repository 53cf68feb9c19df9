"""C9: a worker's clock may say what it likes; one clock tells the ledger's time, and it must agree with Stripe's."""

from __future__ import annotations

import ast
from datetime import timedelta
from pathlib import Path

import pytest

import billing_pipeline
from billing_pipeline.errors import GateClosed
from billing_pipeline_tests.fix_flow import counted_by_stripe

PACKAGE = Path(billing_pipeline.__file__).parent
LEDGER = ("database", "domain", "usage", "reconciliation", "stripe_api")
READS_OF_THE_TIME = {"now", "utcnow", "today", "time", "time_ns", "localtime", "gmtime"}
FAKETIME = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)


@pytest.mark.skipif(FAKETIME is None, reason="libfaketime is not installed: apt-get install faketime")
@pytest.mark.parametrize("offset", ["+36h", "-36h"])
def test_c09_a_worker_whose_clock_is_36_hours_off_bills_exactly_once_at_the_databases_time(world, offset):
    faked = {
        "LD_PRELOAD": FAKETIME,
        "FAKETIME": offset,
        # Timeouts run on a clock that nobody sets, on a real machine as here.
        "FAKETIME_DONT_FAKE_MONOTONIC": 1,
        "DONT_FAKE_MONOTONIC": 1,
    }
    told = world.worker(before="import time; print(int(time.time()), flush=True)", **faked)
    out, err = told.communicate(timeout=120)

    assert (told.returncode, err) == (0, "")
    now = world.flow.clock()
    off = timedelta(seconds=abs(int(out.splitlines()[0]) - now.timestamp()))
    assert timedelta(hours=35) < off < timedelta(hours=37), "the worker's clock was not off at all"
    times = world.flow.connection.execute(
        "SELECT min(t), max(t) FROM ledger_entries, unnest(ARRAY[created_at, first_attempt_at, last_attempt_at]) AS t"
    ).fetchone()
    assert now - timedelta(minutes=2) < times[0] <= times[1] <= now
    world.require_truth()


def test_c09_nothing_that_touches_the_ledger_reads_the_machines_clock():
    """Durations may be measured (`time.monotonic`, `clock_gettime_ns`), but what time it is only the database says."""
    calls = [
        f"{module.relative_to(PACKAGE)}:{node.lineno}"
        for part in LEDGER
        for module in (PACKAGE / part).rglob("*.py")
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in READS_OF_THE_TIME
        and ast.unparse(node.func.value) in ("datetime", "date", "time", "datetime.datetime", "datetime.date")
    ]

    assert calls == []


@pytest.mark.parametrize("seconds", [75, -75])
def test_c09_nothing_is_sent_while_the_database_and_stripe_disagree_about_the_time(world, seconds):
    world.time.advance(seconds=seconds)

    with pytest.raises(GateClosed, match="mend the database server's time"):
        world.flush()
    assert counted_by_stripe(world.simulator) == {}

    world.time.advance(seconds=-seconds)
    world.flush()
    world.require_truth()
