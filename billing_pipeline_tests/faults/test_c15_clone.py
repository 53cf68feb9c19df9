"""C15: a copy of the ledger started elsewhere with the same key never bills beside the original."""

from __future__ import annotations

import pytest

from billing_pipeline.errors import IdentityMismatch, LedgerFrozen
from billing_pipeline.usage.flush import flush
from billing_pipeline_tests.builders import insert_events
from billing_pipeline_tests.faults.conftest import usage
from billing_pipeline_tests.faults.drill import Drill
from billing_pipeline_tests.fix_flow import counted_by_stripe


@pytest.fixture
def clone(drill):
    """Production with three flushed entries and three more that are cut and not sent, and a copy of its server."""
    drill.set_up("acme")
    insert_events(drill.connection, *usage(["acme"], hours_ago=(3, 4, 5)))
    flush(drill.flow)
    insert_events(drill.connection, *usage(["acme"], hours_ago=(6, 7, 8)))
    drill.flow.aggregate()
    assert drill.flow.cut().entries == 3
    drill.flow.give_lease_back()
    elsewhere = drill.state_dir.parent / "elsewhere"
    elsewhere.mkdir()
    drill.snapshot(elsewhere / "postgres")
    clones = []

    def start(mark_url=None):
        clones.append(Drill(elsewhere, drill.simulator, drill.time, mark_url))
        return clones[0]

    yield start
    for started in clones:
        started.stop()


@pytest.mark.slow
def test_c15_a_clone_without_the_mark_is_refused(clone, drill):
    sent = drill.calls()

    with pytest.raises(LedgerFrozen, match="high-water mark is missing"):
        flush(clone().flow)

    assert drill.calls() == sent
    assert flush(drill.flow).submit.accepted == 3, "production goes on"


@pytest.mark.slow
@pytest.mark.parametrize("first", ["production", "clone"])
def test_c15_of_production_and_a_clone_that_share_the_mark_only_the_first_sends(clone, drill, first):
    order = [drill, clone(drill.settings.mark_url)]
    if first == "clone":
        order.reverse()

    assert flush(order[0].flow).submit.accepted == 3
    with pytest.raises(LedgerFrozen, match="restored from a backup"):
        flush(order[1].flow)

    counted = counted_by_stripe(drill.simulator)
    assert sum(counted.values()) == sum(int(event["quantity"]) for event in usage(["acme"], hours_ago=range(3, 9)))
    assert len(drill.simulator.journal("meter_event")) == len(
        {record["identifier"] for record in drill.simulator.journal("meter_event")}
    )


def require_refusal(world, other_identity, refusal, told):
    """A ledger that has billed and then finds itself under another identity refuses to flush, and sends nothing."""
    world.flush()
    world.flow.connection.execute(f"UPDATE ledger_identity SET {other_identity}")
    world.record_usage(*usage(hours_ago=(7,)))
    counted = counted_by_stripe(world.simulator)

    with pytest.raises(refusal, match=told):
        world.flush()

    assert counted_by_stripe(world.simulator) == counted


def test_c15_a_ledger_brought_to_another_server_by_a_dump_is_refused(world):
    # What a dump brings along is the ledger's memory of the server it was written on.
    other_server = "database_system_id = '7000000000000000000'"
    require_refusal(world, other_server, LedgerFrozen, "another database server")


def test_c15_a_ledger_sends_to_no_other_account(world):
    require_refusal(world, "stripe_account = 'acct_other'", IdentityMismatch, "acct_other")
