"""C18: however cutters and edits of a mapping come in between each other, each unit is billed to one customer once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest

from billing_pipeline.database.connection import connect
from billing_pipeline.settings import load_settings
from billing_pipeline.stripe_api.customers import create_customers
from billing_pipeline.usage.aggregate import Scope
from billing_pipeline.usage.flow import UsageFlow
from billing_pipeline.usage.flush import flush
from billing_pipeline_tests.fix_flow import counted_by_stripe
from billing_pipeline_tests.fix_pg_proxy import Loss

HALTS = [
    ("lock_windows_due_for_cut", False),
    ("facts_for_cut", False),
    ("insert_entries", False),
    ("settle_windows", False),
    ("settle_windows", True),
]
"""Where a cutter halts, and whether before the statement or before the COMMIT after it."""


@contextmanager
def another_flow(world, url, number):
    """A flow with a lease of its own, so that no lease keeps two apart."""
    settings = load_settings(**world.settings.model_dump() | {"stripe_usage_flush_lock_key": f"flow-{number}"})
    with connect(url) as connection:
        yield UsageFlow(connection, url, settings, holder=f"flow-{number}")


@pytest.fixture
def halted_cut(world, pg_proxy):
    """A cutter that waits at a place until the block ends."""

    @contextmanager
    def halt(statement, commit_after):
        world.flow.validate_contract()
        world.flow.aggregate()
        world.flow.give_lease_back()
        with another_flow(world, pg_proxy.url, 1) as cutter, ThreadPoolExecutor(1) as pool:
            pg_proxy.at(statement, Loss.HOLD, commit_after=commit_after)
            cutting = pool.submit(cutter.cut)
            assert pg_proxy.reached.wait(60)
            try:
                yield cutting
            finally:
                pg_proxy.let_go()

    return halt


@pytest.mark.parametrize(("statement", "commit_after"), HALTS)
def test_c18_a_mapping_edited_while_its_windows_are_cut_bills_the_new_customer_alone(
    world, halted_cut, statement, commit_after
):
    (new_customer,) = create_customers(world.flow.stripe, world.settings, ["acme-renamed"]).values()
    with another_flow(world, world.database_url, 2) as editor, ThreadPoolExecutor(1) as pool:
        with halted_cut(statement, commit_after) as cutting:
            editor.connection.execute(
                "UPDATE customer_mappings SET stripe_customer_id = %s WHERE organization_id = 'acme'", (new_customer,)
            )
            aggregating = pool.submit(editor.aggregate, Scope.FULL)
        aggregating.result(timeout=60)
        cutting.result(timeout=60)

    flush(world.flow, scope=Scope.FULL)
    flush(world.flow, scope=Scope.FULL)

    world.customers["acme"] = new_customer
    counted = {key: units for key, units in counted_by_stripe(world.simulator).items() if units}
    assert counted == world.truth()


@pytest.mark.parametrize(("statement", "commit_after"), HALTS)
def test_c18_two_cutters_at_once_state_each_window_once(world, halted_cut, statement, commit_after):
    with another_flow(world, world.database_url, 2) as other:
        with halted_cut(statement, commit_after) as cutting:
            second = other.cut().entries
        first = cutting.result(timeout=60).entries

    assert first + second == 9
    world.flush()
    world.require_truth()
