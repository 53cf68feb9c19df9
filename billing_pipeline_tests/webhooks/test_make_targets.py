"""What `make` does for the webhooks, as it would run it."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def commands_of(*arguments):
    """The commands that make would run, without running them; the environment counts as installed."""
    ended = subprocess.run(
        ["make", "--dry-run", "--no-print-directory", "--assume-old=.venv/.installed-with-constraints", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return ended.stdout.splitlines()


def test_the_webhooks_tests_have_a_target_that_fails_without_tests_and_below_95_percent(tmp_path):
    run, report = commands_of("test-stripe")[-2:]
    assert run.startswith(".venv/bin/python -m coverage run -m pytest ")
    assert {"billing_pipeline_tests/webhooks", "billing_pipeline_tests/feed"} <= set(run.split())
    assert report == ".venv/bin/python -m coverage report --fail-under=95"

    nothing = subprocess.run([sys.executable, "-m", "pytest", "-q", tmp_path], cwd=tmp_path, capture_output=True)
    assert nothing.returncode == 5


def test_stripe_replay_hands_its_arguments_on():
    for arguments in ("list --status failed", "replay --event-id evt_123"):
        assert commands_of("stripe-replay", f"ARGS={arguments}")[-1] == f".venv/bin/billing-pipeline events {arguments}"


def test_the_lint_of_the_fixtures_is_a_target():
    assert commands_of("lint-stripe-fixtures")[-1] == ".venv/bin/python -m billing_pipeline_tests.fixtures"


def test_the_help_shows_them():
    shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout

    for target in ("test-stripe", "lint-stripe-fixtures", "stripe-replay"):
        assert f"  make {target} " in shown
