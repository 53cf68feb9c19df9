"""Measures that the tests take every branch of the code that decides: states, sending, evidence and the gate."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
DECIDING = (
    "billing_pipeline/domain/adjustments.py",
    "billing_pipeline/domain/entries.py",
    "billing_pipeline/domain/protocol.py",
    "billing_pipeline/domain/cuts.py",
    "billing_pipeline/domain/seals.py",
    "billing_pipeline/usage/attempts.py",
    "billing_pipeline/usage/confirm.py",
    "billing_pipeline/usage/gate.py",
    "billing_pipeline/usage/send.py",
    "billing_pipeline/usage/submit.py",
)
TESTS = (
    "domain",
    "usage/test_confirm.py",
    "usage/test_cut.py",
    "usage/test_gate.py",
    "usage/test_log_lines.py",
    "usage/test_seal.py",
    "usage/test_submit.py",
    "faults/test_c11_failover.py",
    "faults/test_c13_crash.py",
    "faults/test_c14_restore_drill.py",
    "faults/test_c15_clone.py",
    "faults/test_c19_c20_backlog.py",
    "faults/test_d_answers.py",
    "faults/test_d_time.py",
    "faults/test_d_wrong_stripe.py",
    "faults/test_e_confirmation.py",
)


@dataclass(frozen=True)
class Decisions:
    """Branches there are, and those that were taken."""

    modules: int
    branches: int
    covered: int
    wrong: tuple[str, ...]


def measure() -> Decisions:
    """Run the tests of the deciding modules with every branch counted."""
    with tempfile.TemporaryDirectory(prefix="billing-branches-") as folder:
        # Settings of its own: the project's are of another measure, which names other modules.
        settings = Path(folder) / "coverage.ini"
        settings.write_text("[run]\nbranch = true\n")
        environment = os.environ | {"COVERAGE_FILE": f"{folder}/data", "COVERAGE_RCFILE": str(settings)}
        coverage = [sys.executable, "-m", "coverage"]
        tests = [f"billing_pipeline_tests/{name}" for name in TESTS]
        # The same examples every time, because the code is measured here; `make test` looks for new ones.
        pytest = ["-m", "pytest", "-q", "--hypothesis-seed=0", *tests]
        run = [*coverage, "run", f"--include={','.join(DECIDING)}", *pytest]
        passed = subprocess.run(run, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if passed.returncode:
            return Decisions(len(DECIDING), 0, 0, (f"the tests failed: {passed.stdout[-500:]}",))
        told = subprocess.run(
            [*coverage, "json", "-q", "-o", "-"], cwd=ROOT, env=environment, capture_output=True, text=True, check=True
        )
    files = json.loads(told.stdout)["files"]
    wrong = tuple(
        f"{name} has lines or branches without a test: {found['missing_lines']} {found['missing_branches']}"
        for name, found in files.items()
        if found["missing_lines"] or found["missing_branches"]
    )
    wrong += tuple(f"{name} was not measured" for name in DECIDING if name not in files)
    summaries = [found["summary"] for found in files.values()]
    return Decisions(
        len(files),
        sum(summary["num_branches"] for summary in summaries),
        sum(summary["covered_branches"] for summary in summaries),
        wrong,
    )
