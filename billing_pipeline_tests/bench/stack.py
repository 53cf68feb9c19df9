"""What the benchmarks run on: a durable PostgreSQL and the simulator, each a process of its own on this machine."""

from __future__ import annotations

import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from psycopg.sql import SQL, Identifier

from billing_pipeline.cli.local_stack import running_simulator
from billing_pipeline.database import embedded
from billing_pipeline.database.connection import connect
from billing_pipeline.database.migrate import migrate
from billing_pipeline.settings import Settings, load_settings


@dataclass(frozen=True)
class BenchStack:
    """Live settings against the simulator, and where the database is."""

    settings: Settings
    database_url: str


@contextmanager
def bench_stack(**overrides: object) -> Iterator[BenchStack]:
    """A fresh database with `synchronous_commit` and `fsync` on, and a fresh simulator, until the block ends."""
    folder = Path(tempfile.mkdtemp(prefix="billing-bench-"))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    try:
        url = embedded.ensure_running(folder).url()
        migrate(url, create_source=True)
        settings = load_settings(
            database_url=url,
            billing_state_dir=folder,
            simulator_port=port,
            stripe_billing_validate_contract_before_flush=False,
            stripe_secret_key=None,
            stripe_api_base=None,
            **overrides,
        )
        with connect(url) as connection:
            for name in ("fsync", "synchronous_commit"):
                assert connection.execute(SQL("SHOW {}").format(Identifier(name))).fetchone() == ("on",), name
        with running_simulator(settings):
            yield BenchStack(settings, url)
    finally:
        embedded.stop(folder)
        shutil.rmtree(folder, ignore_errors=True)
