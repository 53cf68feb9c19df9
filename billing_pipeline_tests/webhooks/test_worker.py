"""The threads that handle what is stored go on through whatever happens to their step or their database."""

import asyncio
import time
from datetime import timedelta
from itertools import pairwise

import pytest

from billing_pipeline.errors import DatabaseUnavailable
from billing_pipeline.webhooks import worker
from billing_pipeline.webhooks.committer import CROWD, Committer
from billing_pipeline.webhooks.deliveries import read_delivery
from billing_pipeline.webhooks.worker import working
from billing_pipeline_tests.signing import body_of, event

pytestmark = pytest.mark.slow


def run_until(database_url, step, done, monkeypatch, is_crowded=lambda: False):
    monkeypatch.setattr(worker, "PAUSE_SECONDS", 0.01)
    with working(database_url, {"The worker": step}, is_crowded=is_crowded):
        deadline = time.monotonic() + 10
        while not done():
            assert time.monotonic() < deadline
            time.sleep(0.01)


@pytest.mark.parametrize(
    "fault", [DatabaseUnavailable("PostgreSQL does not answer."), ValueError("whsec_of_a_customer")]
)
def test_a_step_that_fails_is_tried_again_and_nothing_is_quoted(database_url, monkeypatch, caplog, fault):
    tries = []

    def step(_connection):
        tries.append(1)
        if len(tries) < 4:
            raise fault
        return 0

    run_until(database_url, step, lambda: len(tries) >= 5, monkeypatch)

    assert "whsec" not in caplog.text
    assert "The worker" in caplog.text


def test_a_connection_that_was_cut_is_opened_again(database_url, connection, monkeypatch):
    backends = []

    def step(own):
        backends.append(own.info.backend_pid)
        if len(backends) == 2:
            connection.execute("SELECT pg_terminate_backend(%s)", [backends[0]])
            own.execute("SELECT 1")
        return 0

    run_until(database_url, step, lambda: len(set(backends)) == 2, monkeypatch)


def test_the_end_waits_for_the_step_under_way(database_url, monkeypatch):
    steps = []

    def step(_connection):
        steps.append("begun")
        time.sleep(0.3)
        steps.append("done")
        return 1

    run_until(database_url, step, lambda: steps, monkeypatch)

    assert steps.count("begun") == steps.count("done")


def test_handling_gives_way_to_a_crowd_but_is_not_starved_by_it(database_url, monkeypatch):
    monkeypatch.setattr(worker, "TURN_SECONDS", 0.3)
    monkeypatch.setattr(worker, "IDLE_SECONDS", 0.01)
    turns = []

    def step(_connection):
        turns.append(time.monotonic())
        return 1

    run_until(database_url, step, lambda: len(turns) >= 4, monkeypatch, is_crowded=lambda: True)

    # The first turn also opens the connection, which is not in its time here.
    assert min(after - before for before, after in pairwise(turns[1:4])) >= 0.29


def test_deliveries_whose_commit_is_under_way_are_a_crowd_until_they_are_answered(database_url, connection):
    bodies = [body_of(event(f"evt_{number}")) for number in range(CROWD + 2)]

    async def run():
        async with Committer(database_url, stuck_after=timedelta(minutes=5)) as committer:
            with connection.transaction():
                connection.execute("LOCK TABLE stripe_events IN SHARE ROW EXCLUSIVE MODE")
                until = asyncio.get_running_loop().time() + 20
                deliveries = [read_delivery(body, "whsec_…") for body in bodies]
                answers = [asyncio.create_task(committer.store(one, until=until)) for one in deliveries]
                await asyncio.sleep(0.3)
                held = committer.is_crowded()
            await asyncio.gather(*answers)
            return held, committer.is_crowded()

    assert asyncio.run(run()) == (True, False)
