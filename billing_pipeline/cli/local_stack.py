"""What a command needs on a machine where nothing is configured: a migrated database and a Stripe to talk to.

Used by every command that works once and ends; `up.py` keeps the same things running.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from billing_pipeline.cli.children import Child, answers, child, wait_until_ready
from billing_pipeline.cli.state_lock import make_folder
from billing_pipeline.database.connection import describe
from billing_pipeline.database.location import resolve_database_url
from billing_pipeline.database.migrate import migrate, pending_revisions
from billing_pipeline.errors import UserError
from billing_pipeline.settings import Settings

SIMULATOR_START_SECONDS = 30


@dataclass(frozen=True)
class LocalStack:
    """What is ready: a libpq URL of a migrated database, and the simulator when this command started it."""

    settings: Settings
    database_url: str
    simulator: Child | None


@contextmanager
def local_stack(settings: Settings) -> Iterator[LocalStack]:
    """Make ready what is not configured, for the time of the block.

    Raises `UserError` when a configured database lacks migrations or the simulator's port is taken.
    """
    database_url = ready_database(settings)
    with _simulator_if_needed(settings) as simulator:
        yield LocalStack(settings, database_url, simulator)


def ready_database(settings: Settings) -> str:
    """The billing database, migrated: the embedded one by us, a configured one by whoever owns it."""
    url = resolve_database_url(settings)
    if settings.database_url is None:
        migrate(url, create_source=True)
    elif pending := pending_revisions(url):
        raise UserError(
            f"The database {describe(url)} lacks the schema changes {', '.join(pending)}. "
            "Run `billing-pipeline migrate`."
        )
    return url


def needs_simulator(settings: Settings) -> bool:
    """Without a key and without an address of another Stripe, the simulator is the Stripe."""
    return settings.uses_simulator and settings.stripe_api_base is None


def simulator_journal(settings: Settings) -> Path:
    """Where the simulator keeps its account."""
    return settings.billing_state_dir / "stripe_simulator.jsonl"


def simulator_arguments(settings: Settings) -> list[str]:
    """How the simulator is started, after `python -m`."""
    journal = simulator_journal(settings)
    return ["billing_pipeline.stripe_simulator", "--port", str(settings.simulator_port), "--journal", str(journal)]


def listens(port: int) -> bool:
    """Whether any program on this machine takes connections at the port."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def _simulator_if_needed(settings: Settings) -> Iterator[Child | None]:
    if not needs_simulator(settings) or answers(_health(settings)):
        yield None
        return
    if listens(settings.simulator_port):
        raise UserError(
            f"Port {settings.simulator_port} is used by a program that is not the Stripe simulator. "
            "Stop it, or set SIMULATOR_PORT to a free port."
        )
    with running_simulator(settings) as simulator:
        yield simulator


@contextmanager
def running_simulator(settings: Settings) -> Iterator[Child]:
    """The simulator as a child process, answering."""
    make_folder(settings.billing_state_dir)
    log = settings.billing_state_dir / "logs" / "stripe_simulator.log"
    with child("The Stripe simulator", simulator_arguments(settings), log=log, environment={}) as simulator:
        wait_until_ready(simulator, _health(settings), seconds=SIMULATOR_START_SECONDS)
        yield simulator


def _health(settings: Settings) -> str:
    return f"http://127.0.0.1:{settings.simulator_port}/_health"
