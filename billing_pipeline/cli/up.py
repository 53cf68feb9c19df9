"""Keeps the whole stack of one machine running: PostgreSQL, the Stripe simulator, Dagster's UI and daemon.

One `up` per state folder: its lock file holds the process id for as long as it runs.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from billing_pipeline.cli.children import Child, child, wait_until_ready
from billing_pipeline.cli.local_stack import listens, local_stack, needs_simulator
from billing_pipeline.database.location import resolve_dagster_url
from billing_pipeline.errors import BillingError, UserError
from billing_pipeline.settings import Settings

DAGSTER_START_SECONDS = 120
STOP_SECONDS = 30
PROJECT_FILES = ("dagster.yaml", "workspace.yaml")


def run_until_stopped(settings: Settings) -> None:
    """Start everything, say where it is, and stop it all on Ctrl-C or SIGTERM.

    Raises `UserError` when a port is taken or another `up` runs, before anything was started, and `BillingError`
    when a part ends by itself, after the rest was stopped.
    """
    project = project_folder()
    with _only_one(settings.billing_state_dir):
        _require_free_ports(settings)
        with local_stack(settings) as stack, running_dagster(settings, project) as dagster:
            print(_addresses(settings), flush=True)  # noqa: T201
            parts = [part for part in (stack.simulator, dagster) if part]
            try:
                while True:
                    for part in parts:
                        part.require_alive()
                    time.sleep(0.5)
            except KeyboardInterrupt:
                print("\nStopping ...", flush=True)  # noqa: T201
            finally:
                # A second, impatient Ctrl-C must not leave children behind.
                signal.signal(signal.SIGINT, signal.SIG_IGN)


def up_is_running(state_dir: Path) -> bool:
    """Whether an `up` holds this state folder."""
    return _holder(state_dir) is not None


def stop_running(state_dir: Path) -> bool:
    """Ask a running `up` to stop and wait for it; tells whether there was one."""
    holder = _holder(state_dir)
    if holder is None:
        return False
    with suppress(ProcessLookupError):
        os.kill(holder, signal.SIGTERM)
    deadline = time.monotonic() + STOP_SECONDS
    while up_is_running(state_dir):
        if time.monotonic() > deadline:
            raise BillingError(f"billing-pipeline up (process {holder}) does not stop; kill it and run this again.")
        time.sleep(0.1)
    return True


def _holder(state_dir: Path) -> int | None:
    path = state_dir / "up.lock"
    if not path.exists():
        return None
    with path.open("r+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return int(lock.read() or 0) or None
    return None


@contextmanager
def _only_one(state_dir: Path) -> Iterator[None]:
    state_dir.mkdir(parents=True, exist_ok=True)
    with (state_dir / "up.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"billing-pipeline up is already running for {state_dir}; billing-pipeline down stops it."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def _require_free_ports(settings: Settings) -> None:
    wanted = {"DAGSTER_PORT": settings.dagster_port}
    if needs_simulator(settings):
        wanted["SIMULATOR_PORT"] = settings.simulator_port
    for setting, port in wanted.items():
        if listens(port):
            raise UserError(f"Port {port} is in use. Stop the program that uses it, or set {setting} to a free port.")


@contextmanager
def running_dagster(settings: Settings, project: Path, environment: Mapping[str, str] | None = None) -> Iterator[Child]:
    """Dagster's UI, daemon and code server; `environment` tells them settings that are not in ours."""
    home = (settings.billing_state_dir / "dagster").resolve()
    home.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(project / "dagster.yaml", home / "dagster.yaml")
    # In the environment and not among the arguments, which every user of the machine can read.
    own = {"DAGSTER_HOME": str(home), "DAGSTER_POSTGRES_URL": resolve_dagster_url(settings)}
    address = ["--host", "127.0.0.1", "--port", str(settings.dagster_port)]
    command = ["dagster", "dev", "--workspace", str(project / "workspace.yaml"), *address]
    log = settings.billing_state_dir / "logs" / "dagster.log"
    with child("Dagster", command, log=log, environment=own | dict(environment or {})) as started:
        ready = f"http://127.0.0.1:{settings.dagster_port}/server_info"
        wait_until_ready(started, ready, seconds=DAGSTER_START_SECONDS)
        yield started


def project_folder() -> Path:
    """Where dagster.yaml and workspace.yaml are.  Raises `UserError` where they are not."""
    # The working directory first, because .env is read from there too.
    for folder in (Path.cwd(), Path(__file__).parents[2]):
        if all((folder / name).is_file() for name in PROJECT_FILES):
            return folder
    raise UserError(f"{' and '.join(PROJECT_FILES)} are not in {Path.cwd()}; run this in the project's folder.")


def _addresses(settings: Settings) -> str:
    lines = [f"Dagster           http://127.0.0.1:{settings.dagster_port}"]
    if needs_simulator(settings):
        lines.append(f"Stripe simulator  http://127.0.0.1:{settings.simulator_port}")
    lines.append(f"Logs              {settings.billing_state_dir / 'logs'}")
    return "\n".join([*lines, "Ctrl-C stops all of it."])
