"""Runs the benchmarks and prints `bench NAME VALUE UNIT ratio R goal G ok|short`, one line each."""

from __future__ import annotations

import argparse
import sys

from billing_pipeline_tests.bench import explain, handling, imports, intake, rebuild, submission, usage
from billing_pipeline_tests.bench.line import Line

BENCHMARKS = (
    imports.BENCHMARKS
    | usage.BENCHMARKS
    | submission.BENCHMARKS
    | explain.BENCHMARKS
    | intake.BENCHMARKS
    | handling.BENCHMARKS
    | rebuild.BENCHMARKS
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench")
    parser.add_argument("--only", choices=sorted(BENCHMARKS))
    only = parser.parse_args().only
    lines: list[Line] = []
    for name, run in BENCHMARKS.items():
        if only in (None, name):
            lines.append(run())
            print(lines[-1], flush=True)  # noqa: T201
    return 0 if all(line.ok for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())
