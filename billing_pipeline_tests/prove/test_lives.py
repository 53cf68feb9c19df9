"""Lives in memory in every test run: thousands of hours in seconds, and every broken rule is found by them too."""

from __future__ import annotations

import pytest

from billing_pipeline_tests.prove.life import run_lives
from billing_pipeline_tests.prove.machine_controls import BROKEN_RULES, BrokenRule, in_force

HOURS = 100
LIVES_MAX = 40
pytestmark = pytest.mark.slow


def test_no_life_loses_or_doubles_a_unit():
    found = run_lives(first=0, seeds=30, hours=HOURS)

    assert found.wrong == []
    assert (found.seeds, found.lost, found.over, found.undetected) == (30, 0, 0, 0)
    assert found.hours > 30 * HOURS
    assert found.sends > found.hours
    assert sum(found.faults.values()) > found.hours / 2
    assert found.happened["crash"] > found.hours / 50
    assert found.restores >= found.restores_that_lost > 3
    assert {"recovery", "zombie", "frozen"} <= found.happened.keys()


def test_a_seed_lives_the_same_life_again():
    assert run_lives(first=3, seeds=2, hours=HOURS) == run_lives(first=3, seeds=2, hours=HOURS)


@pytest.mark.parametrize("broken", BROKEN_RULES, ids=lambda broken: broken.name)
def test_a_broken_rule_goes_wrong_in_some_life(broken: BrokenRule):
    with in_force(broken):
        assert any(run_lives(seed, 1, HOURS).wrong for seed in range(LIVES_MAX)), broken.meaning
