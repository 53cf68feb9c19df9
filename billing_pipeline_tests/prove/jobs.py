"""The proof's jobs: what can be run by itself, again, and in a process of its own.

A job is a line such as `world 12 200`; it says all that its run depends on.  A failing one is printed, and joins the
corpus that every test run repeats.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from billing_pipeline.stripe_simulator.faults import FaultKind
from billing_pipeline_tests.faults.storm_run import run_storm
from billing_pipeline_tests.prove import decisions
from billing_pipeline_tests.prove.controls import CONTROLS, Control
from billing_pipeline_tests.prove.kill_deck import Kind
from billing_pipeline_tests.prove.kills import run_kills, run_together
from billing_pipeline_tests.prove.life import run_lives
from billing_pipeline_tests.prove.machine import run_machine
from billing_pipeline_tests.prove.runs import run_control, run_world
from billing_pipeline_tests.prove.sweep import OUTCOMES, sweep
from billing_pipeline_tests.prove.world import Place

CORPUS = Path(__file__).parent / "corpus.txt"
Result = dict[str, Any]
"""What a job came to; `wrong` is empty when all was right."""


def controls() -> dict[str, Control]:
    """The broken variants by name."""
    return {control.name: control for control in CONTROLS}


def outcomes() -> dict[str, FaultKind | None]:
    """What a dying flush's sends can meet, by name."""
    return {str(outcome or "ok"): outcome for outcome in OUTCOMES}


RUNS: dict[str, Callable[..., Any]] = {
    "world": lambda place, seed, hours: run_world(place, int(seed), int(hours)),
    "control": lambda place, name, hours: run_control(place, controls()[name], int(hours)),
    "sweep": lambda place, name, every: sweep(place, outcomes()[name], every=int(every)),
    "lives": lambda _, first, seeds, hours: run_lives(int(first), int(seeds), int(hours)),
    "machine": lambda _, examples, steps, seed: run_machine(int(examples), int(steps), int(seed)),
    "kills": lambda _, seed, kills: _in_folder(partial(run_kills, int(seed), int(kills))),
    "sigkills": lambda _, seed, kills: _in_folder(partial(run_kills, int(seed), int(kills), kinds={Kind.SIGKILL: 1})),
    "restores": lambda _, seed, kills: _in_folder(partial(run_kills, int(seed), int(kills), kinds={Kind.RESTORE: 1})),
    "together": lambda _, entries, workers, seed: _in_folder(
        partial(run_together, int(entries), int(workers), seed=int(seed))
    ),
    "storm": lambda _, seed, deliveries: _in_folder(partial(run_storm, int(seed), int(deliveries))),
    "decisions": lambda _: decisions.measure(),
}
REAL_PROCESSES = ("kills", "sigkills", "restores", "together")


def run_job(place: Place, job: str) -> Result:
    """Run the job of this line."""
    began = time.monotonic()
    kind, *arguments = job.split()
    try:
        found: Result = json.loads(json.dumps(asdict(RUNS[kind](place, *arguments)), default=str))
    except Exception as exc:
        # One job that cannot be run must not end a night's run, nor pass.
        kind, found = "broken", {"wrong": [f"{type(exc).__name__}: {exc}"]}
    return found | {"job": job, "kind": kind, "seconds": round(time.monotonic() - began, 1)}


def _in_folder(run: Callable[[Path], Any]) -> Any:
    with tempfile.TemporaryDirectory(prefix="billing-kills-") as folder:
        return run(Path(folder))


def corpus() -> list[str]:
    """Jobs that failed once and must never again."""
    return [line for line in CORPUS.read_text().splitlines() if line and not line.startswith("#")]


def join_corpus(job: str) -> None:
    """Keep a failing job for ever."""
    if job not in corpus():
        with CORPUS.open("a") as file:
            file.write(f"{job}\n")
