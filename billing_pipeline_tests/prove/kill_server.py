"""A durable PostgreSQL of its own for the kills, and everything that happens to a database server.

Each disaster is undone by `start` or by leaving its block.  The ledger is one database of the server; a backup of it is
another one, made and put back by `CREATE DATABASE … TEMPLATE`.
"""

from __future__ import annotations

import errno
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from random import Random
from typing import Any

import psutil
import psycopg
from psycopg import Connection
from psycopg.sql import SQL, Identifier

from billing_pipeline.database import embedded
from billing_pipeline.database.cluster import Cluster
from billing_pipeline.database.migrate import migrate
from billing_pipeline_tests.fix_postgres import create_database, drop_database

LEDGER = "ledger_of_the_kills"
BACKUP = "backup_of_the_kills"
SERVER_SECONDS_MAX = 60
SMALL_DISK_MEGABYTES = 64


class KillServer:
    """One cluster in `state_dir`, with fsync on, whose server is killed and started again."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir.resolve()
        self._cluster = Cluster(self._state_dir)
        self.start()
        for name in ("fsync", "synchronous_commit", "full_page_writes"):
            assert self._ask(SQL("SHOW {}").format(Identifier(name))) == [("on",)], name
        self.url = create_database(self._server_url, LEDGER)
        migrate(self.url, create_source=True)

    def start(self) -> None:
        """Start the server unless it runs, through crash recovery, and wait until it takes connections."""
        self._server_url = embedded.ensure_running(self._state_dir).url("postgres")

    def close(self) -> None:
        """Stop the server."""
        embedded.stop(self._state_dir)

    def stop_immediately(self) -> None:
        """`pg_ctl stop -m immediate`: no checkpoint, no goodbye."""
        done = self._cluster._run("pg_ctl", "stop", "-s", "-w", "-m", "immediate", "-D", str(self._cluster.data_dir))
        assert not done.returncode, done.stderr

    def kill_postmaster(self) -> None:
        """SIGKILL the server's first process; its children live on for a moment and still serve their clients."""
        first_line = (self._cluster.data_dir / "postmaster.pid").read_text().partition("\n")[0]
        _kill_postgres(int(first_line))

    def kill_backend(self, chance: Random) -> bool:
        """SIGKILL one backend of the ledger, on which the server restarts all of them; tells whether there was one."""
        pids = self._backends()
        if not pids:
            return False
        _kill_postgres(chance.choice(pids))
        self._wait_until_it_answers()
        return True

    def terminate_backend(self, chance: Random) -> bool:
        """`pg_terminate_backend` for one backend of the ledger; tells whether there was one."""
        pids = self._backends()
        return bool(pids) and self._ask("SELECT pg_terminate_backend(%s)", chance.choice(pids)) == [(True,)]

    def end_all_backends(self) -> None:
        """Until nobody is connected to the ledger: what a dead client had open is rolled back or committed by now."""
        deadline = time.monotonic() + SERVER_SECONDS_MAX
        while pids := self._backends():
            assert time.monotonic() < deadline, f"backends {pids} do not end"
            self._ask("SELECT pg_terminate_backend(pid, 1000) FROM unnest(%s::int[]) pid", pids)

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Every session from now on is read-only, and those that are open end."""
        name = Identifier(LEDGER)
        self._do(SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(name))
        try:
            self.end_all_backends()
            yield
        finally:
            self._do(SQL("ALTER DATABASE {} RESET default_transaction_read_only").format(name))

    @contextmanager
    def full_disk(self) -> Iterator[None]:
        """The attempts are on a small disk without a free byte.  Only where `small_disk_fault` is None."""
        owner = self._cluster.data_dir.stat()
        with tempfile.TemporaryDirectory(prefix="billing-small-disk-") as folder:
            Path(folder).chmod(0o711)
            place = Path(folder) / "disk"
            place.mkdir()
            _mount(place)
            try:
                os.chown(place, owner.st_uid, owner.st_gid)
                place.chmod(0o700)
                self._do(SQL("CREATE TABLESPACE small LOCATION {}").format(str(place)))
                self._do_in_ledger("ALTER TABLE billing_pipeline.attempts SET TABLESPACE small")
                _fill(place / "filler")
                try:
                    yield
                finally:
                    (place / "filler").unlink()
                    self._do_in_ledger("ALTER TABLE billing_pipeline.attempts SET TABLESPACE pg_default")
                    # What the move left behind is deleted by the next checkpoint.
                    self._do("CHECKPOINT")
                    self._do("DROP TABLESPACE small")
            finally:
                subprocess.run(["umount", "--lazy", str(place)], check=True)

    def back_up(self) -> None:
        """Copy the ledger as it is; nobody may be at work in it."""
        drop_database(self._server_url, BACKUP)
        self.end_all_backends()
        create_database(self._server_url, BACKUP, LEDGER)

    def restore(self) -> None:
        """Put the copy back in the ledger's place."""
        drop_database(self._server_url, LEDGER)
        create_database(self._server_url, LEDGER, BACKUP)

    def _backends(self) -> list[int]:
        question = (
            "SELECT pid FROM pg_stat_activity WHERE datname = %s AND backend_type = 'client backend' ORDER BY pid"
        )
        return [pid for (pid,) in self._ask(question, LEDGER)]

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + SERVER_SECONDS_MAX
        while not self._cluster.answers():
            assert time.monotonic() < deadline, "the server does not come back"
            time.sleep(0.05)

    def _ask(self, question: Any, *params: object) -> list[tuple[Any, ...]]:
        with self._connect(self._server_url) as connection:
            return connection.execute(question, params).fetchall()

    def _do(self, statement: Any) -> None:
        with self._connect(self._server_url) as connection:
            connection.execute(statement)

    def _do_in_ledger(self, statement: Any) -> None:
        with self._connect(self.url) as connection:
            connection.execute(statement)

    @contextmanager
    def _connect(self, url: str) -> Iterator[Connection[Any]]:
        # For a moment after a backend was killed the server takes nobody.
        deadline = time.monotonic() + SERVER_SECONDS_MAX
        while True:
            try:
                connection = psycopg.connect(url, autocommit=True)
                break
            except psycopg.OperationalError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        with connection:
            yield connection


def small_disk_fault() -> str | None:
    """Why this machine does not let us mount a small disk, or None."""
    with tempfile.TemporaryDirectory(prefix="billing-small-disk-") as folder:
        try:
            _mount(Path(folder))
        except OSError as exc:
            return str(exc)
        subprocess.run(["umount", folder], check=True)
    return None


def _mount(place: Path) -> None:
    size = f"size={SMALL_DISK_MEGABYTES}m"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(place)], capture_output=True, check=False, text=True
    )
    if mounted.returncode:
        raise OSError(mounted.stderr.strip() or "mount failed")


def _fill(path: Path) -> None:
    try:
        with path.open("wb", buffering=0) as file:
            for size in (1 << 20, 512):
                while file.write(b"x" * size) == size:
                    pass
    except OSError as exc:
        if exc.errno != errno.ENOSPC:
            raise


def _kill_postgres(pid: int) -> None:
    process = psutil.Process(pid)
    assert process.name() == "postgres", f"process {pid} is {process.name()}"
    process.kill()
