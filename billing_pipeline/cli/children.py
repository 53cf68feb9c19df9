"""Child processes of a command: started in a group of their own, watched, and stopped with everything they started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from billing_pipeline.errors import BillingError

STOP_SECONDS = 5
"""Idle services end within 2 seconds; a Dagster run in flight would keep its code server up until it ends."""


@dataclass(frozen=True)
class Child:
    """A running child and where its output goes."""

    name: str
    log: Path
    process: subprocess.Popen[bytes]

    def require_alive(self) -> None:
        """Raises `BillingError` with the child's last words when it has ended."""
        if self.process.poll() is not None:
            lines = self.log.read_text(encoding="utf-8", errors="replace").split("\n")
            said = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
            raise BillingError(
                f"{self.name} ended with exit code {self.process.returncode}: {said} (its log is {self.log})."
            )


@contextmanager
def child(name: str, module: Sequence[str], *, log: Path, environment: Mapping[str, str]) -> Iterator[Child]:
    """Run `python -m module...` for as long as the block does, with `environment` on top of ours."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *module],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | environment,
            # Ctrl-C reaches us alone, and we stop the children in order.
            start_new_session=True,
        )
    try:
        yield Child(name, log, process)
    finally:
        _stop(process)


def wait_until_ready(started: Child, url: str, *, seconds: int) -> None:
    """Wait until `url` answers 200; raises `BillingError` when the child ends or stays silent."""
    deadline = time.monotonic() + seconds
    while not answers(url):
        started.require_alive()
        if time.monotonic() > deadline:
            raise BillingError(f"{started.name} did not answer within {seconds} seconds (its log is {started.log}).")
        time.sleep(0.1)


def answers(url: str) -> bool:
    """Whether a GET on this machine answers 200."""
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return bool(response.status == 200)
    except (OSError, urllib.error.URLError):
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    # The leader first, so that it ends its own children in order; then what is left of its group, which gets the
    # time to say so: a Dagster run that is killed silently would count as running for another 45 minutes.
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(STOP_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
        deadline = time.monotonic() + STOP_SECONDS
        while time.monotonic() < deadline:
            process.poll()  # a dead leader that nobody asked after still counts as alive
            os.killpg(process.pid, 0)
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
