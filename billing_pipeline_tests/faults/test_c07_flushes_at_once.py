"""C7: flushes at once send each entry once; the lease only saves work, so here it does not get to."""

from __future__ import annotations

import re
from decimal import Decimal

from billing_pipeline_tests.builders import billable_event, copy_events
from billing_pipeline_tests.faults.conftest import HOUR, ORGANIZATIONS, THIS_HOUR
from billing_pipeline_tests.fix_proxy import Mishap

FLUSHES = 8
HOURS = 503
SMALL_BATCHES = """
from billing_pipeline.usage import submit
assert submit.BATCH_SIZE_MAX > 50
submit.BATCH_SIZE_MAX = 25  # so that all of them find work
"""


def test_c07_eight_flushes_at_once_send_each_entry_once(world):
    many = [
        billable_event(organization_id=organization_id, quantity=Decimal(hour), occurred_at=THIS_HOUR - hour * HOUR)
        for organization_id in ORGANIZATIONS
        for hour in range(3, HOURS)
    ]
    copy_events(world.flow.connection, many)
    world.events += many
    world.flow.validate_contract()
    world.flow.aggregate()
    world.flow.cut()
    world.flow.give_lease_back()

    # A lease each, and so slow that the first is still at it when the last begins.
    flushes = [
        world.worker(
            before=SMALL_BATCHES, STRIPE_USAGE_FLUSH_LOCK_KEY=f"flush-{number}", STRIPE_METER_EVENTS_PER_SECOND=40
        )
        for number in range(FLUSHES)
    ]
    outputs = [flush.communicate(timeout=240) for flush in flushes]

    assert [flush.returncode for flush in flushes] == [0] * FLUSHES, outputs
    sent = [int(re.search(r"Stripe: +([\d,]+) sent", out)[1].replace(",", "")) for out, _ in outputs]
    assert sum(sent) == len(world.truth())
    assert sum(number > 0 for number in sent) >= FLUSHES // 2, "they were not at it at once"
    identifiers = [record["identifier"] for record in world.simulator.journal("meter_event")]
    assert len(identifiers) == len(set(identifiers))
    world.require_truth()


def test_c07_a_second_flush_with_the_same_key_is_skipped_and_changes_nothing(world, proxy):
    proxy.mishap_of_send = {1: Mishap.HOLD_REQUEST}
    first = world.worker(STRIPE_API_BASE=proxy.url, STRIPE_MAX_CONCURRENCY=1)
    assert proxy.reached.wait(60)
    before = everything(world)

    second = world.worker()
    out, err = second.communicate(timeout=60)

    assert (second.returncode, err) == (0, "")
    assert out.startswith("skipped=true: Another flush (billing-pipeline on ")
    assert everything(world) == before
    proxy.let_go()
    first.communicate(timeout=60)
    assert first.returncode == 0
    world.require_truth()


def everything(world):
    """The contents of every table of ours, and what Stripe has counted."""
    tables = world.flow.connection.execute(
        "SELECT tablename FROM pg_tables WHERE schemaname = 'billing_pipeline' ORDER BY tablename"
    ).fetchall()
    rows = {
        table: world.flow.connection.execute(f"SELECT t::text FROM {table} t ORDER BY 1").fetchall()
        for (table,) in tables
    }
    return rows, world.simulator.journal("meter_event")
