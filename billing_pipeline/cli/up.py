"""Keeps the whole stack of one machine running: PostgreSQL, the Stripe simulator, the webhook intake, Dagster.

One `up` per state folder; `state_lock.py` sees to that, and to what a killed one left running.
"""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from billing_pipeline.cli.children import Child, child, wait_until_ready
from billing_pipeline.cli.intake import running_intake, serves_webhooks
from billing_pipeline.cli.local_stack import listens, local_stack, needs_simulator
from billing_pipeline.cli.state_lock import make_folder, only_one
from billing_pipeline.database.location import resolve_dagster_url
from billing_pipeline.errors import UserError
from billing_pipeline.settings import Settings

DAGSTER_START_SECONDS = 120
PROJECT_FILES = ("dagster.yaml", "workspace.yaml")


def run_until_stopped(settings: Settings) -> None:
    """Start everything, say where it is, and stop it all on Ctrl-C or SIGTERM.

    Raises `UserError` when a port is taken or another `up` runs, before anything was started, and `BillingError`
    when a part ends by itself, after the rest was stopped.
    """
    project = project_folder()
    with only_one(settings.billing_state_dir) as leftovers:
        if leftovers:
            print(f"Stopped {leftovers} processes that a killed run had left behind.", flush=True)  # noqa: T201
        _require_free_ports(settings)
        with (
            local_stack(settings) as stack,
            running_intake(settings) as intake,
            running_dagster(settings, project) as dagster,
        ):
            print(_addresses(settings), flush=True)  # noqa: T201
            parts = [part for part in (stack.simulator, intake, dagster) if part]
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


def _require_free_ports(settings: Settings) -> None:
    wanted = {"DAGSTER_PORT": settings.dagster_port}
    if needs_simulator(settings):
        wanted["SIMULATOR_PORT"] = settings.simulator_port
    if serves_webhooks(settings):
        wanted["BILLING_INTAKE_PORT"] = settings.billing_intake_port
    for setting, port in wanted.items():
        if listens(port):
            raise UserError(f"Port {port} is in use. Stop the program that uses it, or set {setting} to a free port.")


def prepare_dagster(settings: Settings, project: Path) -> dict[str, str]:
    """Dagster's home and database, made ready; returns what names them to Dagster's processes."""
    home = (settings.billing_state_dir / "dagster").resolve()
    make_folder(home)
    shutil.copyfile(project / "dagster.yaml", home / "dagster.yaml")
    # For the environment and not for the arguments, which every user of the machine can read.
    return {"DAGSTER_HOME": str(home), "DAGSTER_POSTGRES_URL": resolve_dagster_url(settings)}


@contextmanager
def running_dagster(settings: Settings, project: Path, environment: Mapping[str, str] | None = None) -> Iterator[Child]:
    """Dagster's UI, daemon and code server; `environment` tells them settings that are not in ours."""
    own = prepare_dagster(settings, project)
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
    if serves_webhooks(settings):
        lines.append(f"Webhook intake    http://127.0.0.1:{settings.billing_intake_port}/webhooks/stripe")
    else:
        lines.append("Webhook intake    not running: STRIPE_WEBHOOK_SECRET is not set")
    lines.append(f"Logs              {settings.billing_state_dir / 'logs'}")
    return "\n".join([*lines, "Ctrl-C stops all of it."])
