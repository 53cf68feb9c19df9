"""C6: a transaction that PostgreSQL breaks off for the sake of another begins again as a whole."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from psycopg import IsolationLevel
from psycopg.errors import DeadlockDetected

from billing_pipeline.database.connection import connect
from billing_pipeline.database.transactions import PAUSE_SECONDS_MAX, TRIES_MAX, in_transaction
from billing_pipeline.errors import DatabaseUnavailable
from billing_pipeline.usage.flow import UsageFlow
from billing_pipeline_tests.faults.conftest import wait_until
from billing_pipeline_tests.fix_pg_proxy import Loss


def add(connection, key, number):
    connection.execute("UPDATE counters SET total = total + %s WHERE key = %s", (number, key))


@pytest.fixture
def counters(connection):
    connection.execute("CREATE TABLE counters AS SELECT key, 0 AS total FROM unnest('{a,b}'::text[]) AS key")
    return lambda: dict(connection.execute("SELECT key, total FROM counters").fetchall())


def test_c06_two_transactions_that_deadlock_both_come_to_their_end_and_count_once(database_url, counters):
    both_hold_one = threading.Barrier(2)
    tries = []

    def run(first, second):
        with connect(database_url) as connection:

            def work():
                tries.append(first)
                add(connection, first, 1)
                if len(tries) <= 2:
                    both_hold_one.wait(timeout=30)
                add(connection, second, 10)

            in_transaction(connection, work, name="The test")

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(run, "a", "b"), pool.submit(run, "b", "a")]:
            done.result(timeout=60)

    assert len(tries) == 3, "PostgreSQL breaks off one of the two"
    assert counters() == {"a": 11, "b": 11}


def test_c06_a_serialization_failure_begins_again_with_a_new_snapshot(connection, database_url, counters):
    seen = []

    def work():
        seen.append(connection.execute("SELECT total FROM counters WHERE key = 'a'").fetchone()[0])
        if len(seen) == 1:
            with connect(database_url) as other:
                add(other, "a", 5)
        add(connection, "a", 1)

    in_transaction(connection, work, name="The test", isolation=IsolationLevel.REPEATABLE_READ, sleep=lambda _: None)

    assert (seen, counters()["a"]) == ([0, 5], 6)
    assert connection.isolation_level is None, "the next transaction is as the server has it"


def test_c06_five_tries_with_growing_pauses_and_then_a_clear_end(connection, counters):
    pauses = []

    def work():
        add(connection, "a", 1)
        raise DeadlockDetected

    with pytest.raises(DatabaseUnavailable, match=r"The test met concurrent changes 5 times .* nothing was changed"):
        in_transaction(connection, work, name="The test", sleep=pauses.append)

    assert counters()["a"] == 0
    assert len(pauses) == TRIES_MAX - 1
    assert all(0 <= pause <= PAUSE_SECONDS_MAX for pause in pauses)


def test_c06_a_retry_inside_another_transaction_is_refused(connection):
    with connection.transaction(), pytest.raises(RuntimeError, match="cannot run inside another"):
        in_transaction(connection, lambda: None, name="The test")


@pytest.mark.parametrize(
    ("stage", "halt_at", "held_by_the_person", "wanted_by_the_person"),
    [
        ("aggregate", "merge_counted_windows", "LOCK TABLE usage_windows IN SHARE MODE", "LOCK TABLE aggregations"),
        (
            "cut",
            "insert_entries",
            "LOCK TABLE ledger_entries IN SHARE MODE",
            "UPDATE usage_windows SET target = target",
        ),
        (
            "confirm",
            "replace_entries",
            "LOCK TABLE usage_windows IN SHARE MODE",
            "UPDATE ledger_entries SET fence = fence",
        ),
    ],
)
def test_c06_a_stage_that_deadlocks_with_a_person_at_psql_comes_to_its_end(
    world, pg_proxy, stage, halt_at, held_by_the_person, wanted_by_the_person
):
    stages = ["validate_contract", "aggregate", "cut", "submit", "confirm"]
    for earlier in stages[: stages.index(stage)]:
        getattr(world.flow, earlier)()
    with connect(pg_proxy.url) as connection, connect(world.database_url) as person, ThreadPoolExecutor(2) as pool:
        # Whoever looks for deadlocks first loses; the person never looks.
        person.execute("SET deadlock_timeout = '1h'")
        connection.execute("SET deadlock_timeout = '50ms'")
        pg_proxy.at(halt_at, Loss.HOLD)
        running = pool.submit(getattr(UsageFlow(connection, pg_proxy.url, world.settings, holder="test"), stage))
        assert pg_proxy.reached.wait(60)
        person.execute("BEGIN")
        person.execute(held_by_the_person)
        waiting = pool.submit(lambda: (person.execute(wanted_by_the_person), person.execute("COMMIT")))
        blocked = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        wait_until(lambda: world.flow.connection.execute(blocked).fetchone() == (1,))
        pg_proxy.let_go()
        waiting.result(timeout=60)
        running.result(timeout=60)
    assert deadlocks(world) == 1

    world.flush()
    world.require_truth()


def deadlocks(world):
    # The server's counter is written by a session when it has nothing else to do, at the latest when it ends.
    world.wait_for_backends_to_end()
    sql = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
    return world.flow.connection.execute(sql).fetchone()[0]


def test_c06_a_connection_that_was_lost_is_told_as_that(database_url):
    def work_on_a_lost_connection():
        with connect(database_url) as lost:
            lost.close()
            in_transaction(lost, lambda: None, name="The test")

    with pytest.raises(DatabaseUnavailable, match="PostgreSQL failed during the work"):
        work_on_a_lost_connection()
