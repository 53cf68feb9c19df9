"""The worker that is killed: one flush in a process of its own, with the product's connection, HTTP and exit codes.

Workers are forked from one warm process without threads or connections, which has done the imports; a worker is
there within milliseconds, and SIGKILL ends it like any other.  It lives by the clock of `kill_clock`.
"""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from billing_pipeline.database.clock import DatabaseClock
from billing_pipeline.errors import BillingError
from billing_pipeline.settings import load_settings
from billing_pipeline.usage import submit
from billing_pipeline.usage.flow import open_flow
from billing_pipeline.usage.flush import flush
from billing_pipeline.usage.send import boot_nanoseconds
from billing_pipeline_tests.fix_postgres import forget_settings
from billing_pipeline_tests.prove.kill_clock import MovedClock

UNEXPECTED = 70
"""The exit code for whatever is no error of ours: a person would see a traceback."""
WORKER_SECONDS_MAX = 300
WARM = (
    __name__,
    # Imported by these libraries at their first use only; one that is gone is imported by whoever needs it.
    "pandera.backends.pandas.builtin_checks",
    "pandera.backends.pandas.register",
    "pandera.backends.pandas.container",
    "stripe._account_service",
    "stripe._billing_service",
    "stripe._customer_service",
    "stripe._object_classes",
    "stripe._subscription_service",
    "stripe.billing._meter_event_service",
    "stripe.billing._meter_event_summary_service",
    "stripe.billing._meter_service",
    "stripe.v2.core._event_service",
)
"""What the warm process has imported before the first worker is forked from it."""


def nothing() -> None:
    """What a worker does before its flush when it is whole."""


@dataclass(frozen=True)
class Job:
    """All that a worker has to know; it goes to another process."""

    database_url: str
    settings: dict[str, Any]
    clock: Path
    log: Path
    before: Callable[[], None] = nothing
    """A function of a module, for breaking the product on purpose."""
    batch_size: int | None = None
    """None: the product's own."""


class Worker:
    """One running flush."""

    def __init__(self, job: Job) -> None:
        context = multiprocessing.get_context("forkserver")
        # Only the first call matters; the warm process stays for as long as this one.
        context.set_forkserver_preload(list(WARM))
        self._process: ForkServerProcess = context.Process(target=work, args=(job,), daemon=True)
        self._process.start()
        self._started = time.monotonic()

    @property
    def pid(self) -> int:
        """Whom to signal."""
        assert self._process.pid is not None
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.exitcode is None

    def lives_for(self, seconds: float) -> bool:
        """Wait until so many seconds after its start; tells whether it still runs then."""
        self._process.join(max(0.0, self._started + seconds - time.monotonic()))
        return self.alive

    def send(self, number: signal.Signals) -> None:
        """A signal, which it cannot handle."""
        if self.alive:
            os.kill(self.pid, number)

    def wait(self, seconds_max: float = WORKER_SECONDS_MAX) -> int:
        """Its exit code, negative for a signal.  Raises `TimeoutError` for one that hangs, and ends it."""
        self._process.join(seconds_max)
        code = self._process.exitcode
        if code is None:
            self.kill()
            raise TimeoutError(f"a worker did not end within {seconds_max} s")
        return code

    def kill(self) -> bool:
        """SIGKILL; tells whether it came in time."""
        self._process.kill()
        self._process.join()
        return self._process.exitcode == -signal.SIGKILL


def work(job: Job) -> None:
    """One flush, as `billing-pipeline flush-now` does it; ends this process."""
    log = os.open(job.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.dup2(log, 1)
    os.dup2(log, 2)
    logging.disable(logging.WARNING)
    forget_settings()
    try:
        _flush_once(job)
    except BillingError as exc:
        os.write(2, f"{type(exc).__name__}: {exc}\n".encode())
        code = exc.exit_code
    except BaseException:
        os.write(2, traceback.format_exc().encode())
        code = UNEXPECTED
    else:
        code = 0
    os._exit(code)


def _flush_once(job: Job) -> None:
    clock = MovedClock(job.clock)
    # The clock that nobody can set has to go on with the other one, or a stopped worker would not notice the time.
    _move_boot_clock(clock)
    if job.batch_size is not None:
        submit.BATCH_SIZE_MAX = job.batch_size
    job.before()
    settings = load_settings(**job.settings)
    with open_flow(settings, job.database_url, holder=f"worker {os.getpid()}") as flow:
        of_database = DatabaseClock(flow.connection)
        flow.clock = lambda: of_database() + clock.shift
        flush(flow)


def _move_boot_clock(clock: MovedClock) -> None:
    from billing_pipeline.usage import send

    def moved() -> int:
        return boot_nanoseconds() + int(clock.shift.total_seconds() * 1_000_000_000)

    submit.boot_nanoseconds = moved
    send.boot_nanoseconds = moved
