"""C8: a worker that sleeps through its claim and wakes up later records nothing and sends nothing more."""

from __future__ import annotations

import signal

from billing_pipeline_tests.faults.conftest import wait_until
from billing_pipeline_tests.fix_flow import canary_of, counted_by_stripe
from billing_pipeline_tests.fix_proxy import Mishap

SHORT = {"BILLING_ENTRY_LEASE_SECONDS": 40, "STRIPE_TIMEOUT_SECONDS": 20}
"""A short claim; nothing is sent later than 10 s after it."""


def test_c08_a_flush_paused_past_its_claim_records_nothing_and_sends_nothing_more(world, proxy):
    connection = world.flow.connection
    proxy.mishap_of_send = {2: Mishap.HOLD_ANSWER}
    zombie = world.worker(STRIPE_API_BASE=proxy.url, STRIPE_MAX_CONCURRENCY=1, **SHORT)
    assert proxy.reached.wait(60)
    zombie.send_signal(signal.SIGSTOP)
    claims_run = "SELECT count(*) FROM ledger_entries WHERE lease_until > clock_timestamp()"
    assert connection.execute(claims_run).fetchone() == (9,)
    wait_until(lambda: connection.execute(claims_run).fetchone() == (0,))

    # A lease of its own, or the zombie's would keep it out for longer than its claim.
    other = world.worker(STRIPE_USAGE_FLUSH_LOCK_KEY="another", **SHORT)
    out, err = other.communicate(timeout=120)
    assert (other.returncode, err) == (0, "")
    assert "9 sent, 7 accepted, 2 duplicate" in out
    assert counted_by_stripe(world.simulator) == world.truth()
    recorded = everything_recorded(connection)

    zombie.send_signal(signal.SIGCONT)
    proxy.let_go()
    _, err = zombie.communicate(timeout=120)

    assert "Traceback" not in err
    assert everything_recorded(connection) == recorded
    canary = canary_of(world.simulator).encode()
    assert sum(canary not in request for request in proxy.sends) == 2
    world.require_truth()


def everything_recorded(connection):
    entries = "SELECT entry_id, state::text, fence, first_attempt_at FROM ledger_entries ORDER BY entry_id"
    attempts = "SELECT attempt_id, fence, outcome, finished_at FROM attempts ORDER BY attempt_id"
    return connection.execute(entries).fetchall(), connection.execute(attempts).fetchall()
