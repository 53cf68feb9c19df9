"""One `up` or demo per state folder, and an end to what a killed one left behind.

The lock file holds the process id for as long as its holder runs.  Everything the holder starts inherits a mark in
its environment: a process that carries the mark while nobody holds the lock is a leftover.  No list of process ids
is kept, so a number that the system gave to a stranger is never taken for ours.
"""

from __future__ import annotations

import fcntl
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from billing_pipeline.cli.children import STOP_SECONDS
from billing_pipeline.errors import BillingError, UserError

MARK = "BILLING_STARTED_FOR"
"""Names the state folder to everything that `up` or the demo starts, and to what those start."""

WAIT_SECONDS = 30


def make_folder(folder: Path) -> None:
    """Make a folder of the state.  Raises `UserError` where that cannot be."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise _unusable(folder, exc) from None


@contextmanager
def only_one(state_dir: Path) -> Iterator[int]:
    """Hold the folder for the time of the block; yields how many leftovers of a killed holder were stopped first.

    Raises `UserError` when another holds it, or when it cannot be written.
    """
    make_folder(state_dir)
    try:
        lock = (state_dir / "up.lock").open("a+")
    except OSError as exc:
        raise _unusable(state_dir, exc) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"`make up` or a demo is already running for {state_dir}; `make dev-down` stops it."
            ) from None
        stopped = _stop_leftovers(state_dir)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        os.environ[MARK] = _mark(state_dir)
        try:
            yield stopped
        finally:
            del os.environ[MARK]


def is_held(state_dir: Path) -> bool:
    """Whether an `up` or a demo holds this state folder."""
    return _holder(state_dir) is not None


def stop_holder(state_dir: Path) -> bool:
    """Ask the holder to stop and wait for it, and stop what a killed one left; tells whether there was anything."""
    holder = _holder(state_dir)
    if holder is None:
        if not (state_dir / "up.lock").exists():
            return False
        with only_one(state_dir) as stopped:
            return stopped > 0
    with suppress(ProcessLookupError):
        os.kill(holder, signal.SIGTERM)
    deadline = time.monotonic() + WAIT_SECONDS
    while is_held(state_dir):
        if time.monotonic() > deadline:
            raise BillingError(f"Process {holder} runs for {state_dir} and does not stop; kill it and run this again.")
        time.sleep(0.1)
    return True


def _holder(state_dir: Path) -> int | None:
    path = state_dir / "up.lock"
    if not path.exists():
        return None
    try:
        lock = path.open("r+")
    except OSError as exc:
        raise _unusable(state_dir, exc) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(lock.read() or 0) or None
    return None


def _stop_leftovers(state_dir: Path) -> int:
    """Stop every marked process, with the lock held: none of them has a holder any more."""
    leftovers = list(_marked(_mark(state_dir)))
    # The polite signal first: a Dagster run that is killed silently counts as running for another 45 minutes.
    alive = leftovers
    for stop in (psutil.Process.terminate, psutil.Process.kill):
        for process in alive:
            with suppress(psutil.NoSuchProcess):
                stop(process)  # psutil compares the start time, so a reused number is left alone
        _, alive = psutil.wait_procs(alive, timeout=STOP_SECONDS)
    return len(leftovers)


def _marked(mark: str) -> Iterator[psutil.Process]:
    for process in psutil.process_iter():
        # Other people's processes cannot be read, and cannot be ours.
        with suppress(psutil.Error, OSError):
            if process.pid != os.getpid() and process.environ().get(MARK) == mark:
                yield process


def _mark(state_dir: Path) -> str:
    return str(state_dir.resolve())


def _unusable(folder: Path, exc: OSError) -> UserError:
    return UserError(
        f"The state folder {folder} cannot be used: {exc.strerror}. Set BILLING_STATE_DIR to one that can be written."
    )
