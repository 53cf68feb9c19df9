"""A piece of the proof in every test run: 0 lost, 0 doubled, whatever breaks; and every broken variant is caught."""

from __future__ import annotations

import threading

import pytest

from billing_pipeline.stripe_simulator.faults import FaultKind
from billing_pipeline_tests.prove.controls import CONTROLS
from billing_pipeline_tests.prove.crash import Crash, Death
from billing_pipeline_tests.prove.jobs import corpus, run_job
from billing_pipeline_tests.prove.runs import run_control, run_world
from billing_pipeline_tests.prove.sweep import sweep
from billing_pipeline_tests.prove.world import Place

SEEDS, HOURS = 10, 100
CONTROL_HOURS = 150
pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def place(server_url, template):
    return Place(server_url, template)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_nothing_is_lost_or_doubled_whatever_breaks(place, seed):
    run = run_world(place, seed, HOURS)

    assert run.wrong == ()
    assert run.sends > 200
    assert sum(run.faults.values()) > 30
    assert sum(run.crashes.values()) > 3


def test_a_seed_lives_the_same_life_again(place):
    assert run_world(place, 7, 40) == run_world(place, 7, 40)


def test_a_death_counts_its_own_flush_only():
    death = Death(1)
    other = threading.Thread(target=lambda: [death("statement", lambda: None) for _ in range(3)])
    other.start()
    other.join()

    death("statement", lambda: None)
    with pytest.raises(Crash):
        death("request", lambda: None)
    assert death.steps.total() == 1


@pytest.mark.parametrize("control", CONTROLS, ids=lambda control: control.name)
def test_a_broken_protocol_is_caught(place, control):
    # That the whole product stands the same weather is part of `make prove`.
    assert run_control(place, control, CONTROL_HOURS, and_whole=False).wrong == ()


@pytest.mark.parametrize("outcome", [None, FaultKind.LOSE_ANSWER, FaultKind.LATE_DELIVERY])
def test_a_flush_that_dies_at_any_step_bills_its_hour_once(place, outcome):
    found = sweep(place, outcome, every=7)

    assert found.wrong == ()
    assert found.cases > 10


def test_what_failed_once_never_fails_again(place):
    assert [wrong for job in corpus() for wrong in run_job(place, job)["wrong"]] == []
