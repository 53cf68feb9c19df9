"""A piece of the kills in every test run; and the judge catches a worker that is broken on purpose."""

from __future__ import annotations

import tempfile
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from billing_pipeline.stripe_api.meter_events import V1MeterSink
from billing_pipeline.usage import flow, gate
from billing_pipeline_tests.prove.kill_deck import Kind
from billing_pipeline_tests.prove.kills import run_kills, run_together

pytestmark = pytest.mark.slow

DISASTERS = [kind for kind in Kind if kind not in (Kind.SIGKILL, Kind.FULL_DISK)]


@pytest.fixture
def folder():
    # Not in pytest's own folder, which the server's user cannot enter.
    with tempfile.TemporaryDirectory(prefix="billing-kills-") as folder:
        yield Path(folder)


def test_usage_is_billed_once_whenever_its_worker_is_killed(folder):
    run = run_kills(1, 20, folder, kinds={Kind.SIGKILL: 1})

    assert run.wrong == ()
    assert run.kills == {Kind.SIGKILL: 20}
    assert run.unheard > 0, "no kill struck between a send and its record"
    assert (run.lost, run.over, run.doubled) == (0, 0, 0)


def test_usage_is_billed_once_whatever_happens_to_the_database(folder):
    run = run_kills(1, len(DISASTERS) + 2, folder, kinds=dict.fromkeys(DISASTERS, 1))

    assert run.wrong == ()
    assert run.kills.keys() == set(DISASTERS)
    assert run.restores == 1
    assert run.undetected == 0


def test_usage_is_billed_once_by_eight_flushes_at_once_whose_backends_are_terminated(folder):
    run = run_together(150, 8, folder)

    assert run.wrong == ()
    assert run.kills[Kind.TERMINATE_BACKEND] > 0
    assert run.sends >= 150


def identifiers_at_random():
    """Every attempt has a name of its own, so a repeated one counts again."""
    send = V1MeterSink.send

    async def renamed(self, events):
        return await send(self, [replace(event, identifier=uuid4().hex) for event in events])

    V1MeterSink.send = renamed


def test_a_worker_with_random_identifiers_is_caught(folder):
    run = run_kills(1, 20, folder, kinds={Kind.SIGKILL: 1}, before=identifiers_at_random)

    assert run.doubled > 0
    assert run.over > 0
    assert any("attempts were started before" in wrong for wrong in run.wrong), "the witness saw nothing"


def no_gate():
    """A restored ledger goes on as if nothing had happened."""
    gate.lost_attempts = lambda *_: None
    flow.lost_canaries = lambda *_, **__: None


def test_a_worker_that_does_not_notice_a_restore_is_caught(folder):
    run = run_kills(3, 2, folder, kinds={Kind.RESTORE: 1}, before=no_gate)

    assert run.restores_that_lost > 0
    assert run.undetected > 0
    assert any("not noticed" in wrong for wrong in run.wrong)
