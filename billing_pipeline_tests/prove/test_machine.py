"""The state machine in every test run, the same examples each time; and every broken rule is found."""

from __future__ import annotations

import pytest

from billing_pipeline_tests.prove.machine import run_machine
from billing_pipeline_tests.prove.machine_controls import BROKEN_RULES, BrokenRule, run_broken

SEED = 1


@pytest.mark.slow
def test_no_order_of_steps_loses_or_doubles_a_unit():
    run = run_machine(examples=200, steps=50, seed=SEED)

    assert not run.wrong, "\n".join(run.wrong)
    assert run.examples >= 200
    reached = {"crash", "zombie", "frozen", "recovery", "restore that lost attempts", "StripeRefused", "late_delivery"}
    assert reached <= run.happened.keys(), run.happened


@pytest.mark.slow
@pytest.mark.parametrize("broken", BROKEN_RULES, ids=lambda broken: broken.name)
def test_a_broken_rule_is_found(broken: BrokenRule):
    # The first example that shows it ends the run; which one that is depends on what else is imported.
    assert run_broken(broken, examples=1_000, steps=50, seed=SEED).wrong, broken.meaning
