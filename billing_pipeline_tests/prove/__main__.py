"""`make prove` and `make prove-long`: every layer of the proof, in two processes, with one report.

The long one keeps what is done in a folder, and goes on from there when it is started again.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

from billing_pipeline.database import embedded
from billing_pipeline.database.migrate import migrate
from billing_pipeline_tests.fix_postgres import create_database, make_fast
from billing_pipeline_tests.prove.jobs import Result, controls, corpus, join_corpus, outcomes, run_job
from billing_pipeline_tests.prove.report import Report
from billing_pipeline_tests.prove.world import Place

PROCESSES = 2
JOBS_A_PROCESS = 25
"""Then it is replaced, so that a run of days does not grow."""
WORLDS, WORLD_HOURS = 12, 100
LIVES, LIFE_HOURS, LIVES_A_JOB = 100, 100, 100
CONTROL_HOURS = 150
FIRST_SEED, LONG_FIRST_SEED = 1_000, 100_000


def jobs_of(*, long: bool) -> list[str]:
    """The jobs of a proof, the longest part last."""
    worlds, world_hours = (4 * WORLDS, 2 * WORLD_HOURS) if long else (WORLDS, WORLD_HOURS)
    machines = [f"machine 500 60 {seed}" for seed in range(1, 11 if long else 2)]
    kills = [f"sigkills {seed} 50" for seed in range(1, 21 if long else 3)]
    kills += [f"kills {seed} 40" for seed in range(1, 11 if long else 2)]
    kills += [f"restores {seed} 5" for seed in range(1, 11 if long else 2)]
    kills += ["together 100000 8 1" if long else "together 1000 8 1"]
    storms = [f"storm {seed} 10000" for seed in range(1, 11)]
    every_crash = [f"sweep {name} 1" for name in outcomes()]
    every_control = [f"control {name} {CONTROL_HOURS}" for name in controls()]
    first = LONG_FIRST_SEED if long else FIRST_SEED
    lives = [
        f"lives {first + number} {LIVES_A_JOB} {LIFE_HOURS}"
        for number in range(0, LIVES * (100 if long else 1), LIVES_A_JOB)
    ]
    of_worlds = [f"world {first + number} {world_hours}" for number in range(worlds)]
    return ["decisions", *corpus(), *every_crash, *every_control, *kills, *storms, *lives, *of_worlds, *machines]


def main() -> int:
    """Prove, and say so; 1 when anything is wrong."""
    parser = argparse.ArgumentParser(prog="make prove")
    parser.add_argument("--long", action="store_true", help="a hundred times as much")
    parser.add_argument("--job", help="run this one job, as a failing run printed it")
    parser.add_argument("--folder", type=Path, help="keep results here, and go on from what is there")
    parser.add_argument("--minutes", type=int, help="begin nothing new after so long")
    given = parser.parse_args()
    jobs = [given.job] if given.job else jobs_of(long=given.long)
    began = time.monotonic()
    with _results(given.folder) as kept:
        done = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
        left = [job for job in jobs if job not in {found["job"] for found in done}]
        deadline = None if given.minutes is None else began + given.minutes * 60
        with kept.open("a") as file:
            for found in _run(left, deadline):
                file.write(json.dumps(found) + "\n")
                file.flush()
                done.append(found)
                _tell(found, len(done), len(jobs), time.monotonic() - began)
    report = Report(_commit(), done, sum(found["seconds"] for found in done) / 60)
    print("\n".join(report.lines()))  # noqa: T201
    for found in done:
        for again in found.get("again", [found["job"]] if found["kind"] == "world" else ()):
            if found["wrong"]:
                join_corpus(again)
    return 1 if report.wrong else 0


def _run(jobs: list[str], deadline: float | None) -> Iterator[Result]:
    with (
        _place() as place,
        ProcessPoolExecutor(
            PROCESSES, multiprocessing.get_context("spawn"), max_tasks_per_child=JOBS_A_PROCESS
        ) as pool,
    ):
        waiting = iter(jobs)
        under_way = {pool.submit(run_job, place, job) for _, job in zip(range(PROCESSES), waiting, strict=False)}
        while under_way:
            finished = next(as_completed(under_way))
            under_way.remove(finished)
            yield finished.result()
            if deadline is None or time.monotonic() < deadline:
                under_way |= {pool.submit(run_job, place, job) for _, job in zip(range(1), waiting, strict=False)}


@contextmanager
def _place() -> Iterator[Place]:
    folder = Path(tempfile.mkdtemp(prefix="billing-prove-"))
    try:
        url = embedded.ensure_running(folder).url("postgres")
        make_fast(url)
        migrate(create_database(url, "prove"), create_source=True)
        yield Place(url, "prove")
    finally:
        embedded.stop(folder)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _results(folder: Path | None) -> Iterator[Path]:
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder / "results.jsonl"
        return
    with tempfile.TemporaryDirectory(prefix="billing-prove-") as passing:
        yield Path(passing) / "results.jsonl"


def _tell(found: Result, done: int, jobs: int, seconds: float) -> None:
    what = f"WRONG, {found['wrong'][0]}" if found["wrong"] else "right"
    print(f"[{done}/{jobs}, {seconds / 60:.0f} min] {found['job']}: {what}", file=sys.stderr, flush=True)  # noqa: T201


def _commit() -> str:
    told = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False)
    return told.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
