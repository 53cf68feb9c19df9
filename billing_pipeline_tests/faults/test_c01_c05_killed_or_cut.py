"""C1 to C5: a flush killed, or cut off from its database, at any step bills everything exactly once all the same.

Real processes and a real SIGKILL.  A proxy in front of PostgreSQL or Stripe stops the worker at the place a row names.
"""

from __future__ import annotations

import pytest

from billing_pipeline_tests.fix_flow import counted_by_stripe
from billing_pipeline_tests.fix_pg_proxy import Loss
from billing_pipeline_tests.fix_proxy import Mishap

STEPS = (
    "record_aggregation",
    "insert_entries",
    "settle_windows",
    "claim_due_entries",
    "record_outcome",
    "insert_canaries",
    "record_canaries",
    "store_summaries",
    "confirm_entries",
    "release_lease",
)
"""Where a flush writes, in order."""
COMMITS = (
    "record_aggregation",
    "insert_entries",
    "claim_due_entries",
    "record_outcome",
    "insert_canaries",
    "confirm_entries",
)
"""One statement of each transaction whose COMMIT may get lost."""


def attempts(world):
    return world.flow.connection.execute("SELECT count(*) FROM attempts").fetchone()[0]


def test_c01_a_kill_before_the_cut_commits_is_as_if_nothing_had_been_cut(world, pg_proxy):
    pg_proxy.at("insert_entries", Loss.HOLD, commit_after=True)
    world.kill_at(pg_proxy.reached, world.worker(DATABASE_URL=pg_proxy.url))
    assert world.flow.connection.execute("SELECT count(*) FROM ledger_entries").fetchone() == (0,)

    world.outlive_leases()
    assert world.flush().cut.entries == 9

    world.require_truth()


def test_c02_a_kill_after_the_claim_and_before_the_send_loses_nothing(world, proxy):
    # Every lane's first request is held before Stripe sees it.
    proxy.mishap_of_send = dict.fromkeys(range(1, 100), Mishap.HOLD_REQUEST)
    world.kill_at(proxy.reached, world.worker(STRIPE_API_BASE=proxy.url))
    assert (attempts(world), counted_by_stripe(world.simulator)) == (9, {})

    world.outlive_leases()
    world.flush()

    world.require_truth()


def test_c03_a_kill_after_the_send_and_before_the_answer_doubles_nothing(world, proxy):
    proxy.mishap_of_send = {3: Mishap.HOLD_ANSWER}
    world.kill_at(proxy.reached, world.worker(STRIPE_API_BASE=proxy.url, STRIPE_MAX_CONCURRENCY=1))
    assert len(counted_by_stripe(world.simulator)) == 3

    world.outlive_leases()
    report = world.flush().submit

    assert (report.duplicates, report.accepted) == (3, 6)
    world.require_truth()


def test_c04_a_kill_after_the_answers_and_before_they_are_recorded_doubles_nothing(world, pg_proxy):
    pg_proxy.at("record_outcome", Loss.HOLD)
    world.kill_at(pg_proxy.reached, world.worker(DATABASE_URL=pg_proxy.url))
    assert counted_by_stripe(world.simulator) == world.truth()

    world.outlive_leases()
    report = world.flush().submit

    assert (report.duplicates, report.accepted) == (9, 0)
    world.require_truth()


@pytest.mark.parametrize("step", STEPS)
def test_c01_to_c04_a_kill_at_any_step_bills_everything_exactly_once(world, pg_proxy, step):
    pg_proxy.at(step, Loss.HOLD)
    world.kill_at(pg_proxy.reached, world.worker(DATABASE_URL=pg_proxy.url))

    world.outlive_leases()
    world.flush()

    world.require_truth()


@pytest.mark.parametrize("step", COMMITS)
def test_c05_a_connection_cut_after_the_commit_fails_in_one_sentence_and_the_next_flush_is_exact(world, pg_proxy, step):
    pg_proxy.at(step, Loss.CUT)

    worker = world.worker(DATABASE_URL=pg_proxy.url)
    _, err = worker.communicate(timeout=60)

    assert pg_proxy.reached.is_set()
    assert worker.returncode == 1
    assert "PostgreSQL failed during the work" in err
    assert "Traceback" not in err
    world.outlive_leases()
    world.flush()
    world.require_truth()
