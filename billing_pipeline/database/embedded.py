"""A PostgreSQL of our own, for a machine where none is configured.

It lives in `<state_dir>/postgres`, listens on a Unix socket only, and stops when the last process using it ends.
`cluster.py` knows the files and programs; here is who starts it, who uses it and who stops it.
"""

from __future__ import annotations

import atexit
import fcntl
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO
from urllib.parse import quote

from psycopg.sql import SQL, Identifier

from billing_pipeline.database.cluster import PORT, Cluster
from billing_pipeline.database.connection import connect
from billing_pipeline.errors import DatabaseUnavailable

BILLING_DATABASE = "billing_pipeline"
DAGSTER_DATABASE = "billing_pipeline_dagster"

_users: dict[Path, IO[bytes]] = {}
_between_threads = threading.RLock()


@dataclass(frozen=True)
class EmbeddedServer:
    """A running server; it stays up as long as this process lives, unless someone calls `stop`."""

    socket_dir: Path

    def url(self, database: str = BILLING_DATABASE) -> str:
        """A libpq URL: Unix socket, user `postgres`, no password."""
        # The port names the socket's file; without it, PGPORT of a person's shell would.
        host = quote(str(self.socket_dir), safe="")
        return f"postgresql://postgres@/{quote(database, safe='')}?host={host}&port={PORT}"


def ensure_running(state_dir: Path) -> EmbeddedServer:
    """Start the server of `state_dir` unless it runs, and keep it up while this process lives.

    Creates the folder, the cluster and both databases on first use; safe to call from many processes at once.
    Raises `DatabaseUnavailable` when the folder cannot be used or the server does not start.
    """
    cluster = Cluster(state_dir.resolve())
    with _alone(cluster):
        if not cluster.answers():
            cluster.create()
            cluster.start()
        _count_us_in(cluster)
        server = EmbeddedServer(cluster.socket_dir)
        _create_databases(server)
    return server


def exists(state_dir: Path) -> bool:
    """Whether `state_dir` has a cluster, running or not."""
    return Cluster(state_dir.resolve()).data_dir.exists()


def stop(state_dir: Path) -> bool:
    """Stop the server of `state_dir` whoever still uses it; tells whether it was running."""
    cluster = Cluster(state_dir.resolve())
    if not cluster.data_dir.exists():
        return False
    with _alone(cluster):
        if cluster.state_dir in _users:
            _users.pop(cluster.state_dir).close()
        return cluster.stop()


@contextmanager
def _alone(cluster: Cluster) -> Iterator[None]:
    """One process and one thread at a time may start, stop or count."""
    try:
        with _between_threads:
            cluster.state_dir.mkdir(parents=True, exist_ok=True)
            with (cluster.state_dir / "postgres.lock").open("ab") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
    except OSError as exc:
        raise DatabaseUnavailable(
            f"The embedded PostgreSQL cannot use {exc.filename or cluster.state_dir}: {exc.strerror or exc}. "
            "Set BILLING_STATE_DIR to a folder that can be written, or DATABASE_URL to a server."
        ) from exc


def _count_us_in(cluster: Cluster) -> None:
    # A shared lock and not a list of process ids: the kernel takes it back however a process ends.
    if cluster.state_dir in _users:
        return
    users = (cluster.state_dir / "postgres.users").open("ab")
    fcntl.flock(users, fcntl.LOCK_SH)
    _users[cluster.state_dir] = users
    atexit.register(_leave, cluster, os.getpid())


def _leave(cluster: Cluster, pid: int) -> None:
    # A forked child runs its parent's exit handlers too, and `stop` may have been called before.
    if os.getpid() != pid or cluster.state_dir not in _users or not cluster.state_dir.exists():
        return
    with _alone(cluster), _users.pop(cluster.state_dir) as users:
        try:
            fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return  # another process still uses it
        cluster.stop()


def _create_databases(server: EmbeddedServer) -> None:
    with connect(server.url("postgres")) as connection:
        existing = {name for (name,) in connection.execute("SELECT datname FROM pg_database")}
        for name in (BILLING_DATABASE, DAGSTER_DATABASE):
            if name not in existing:
                connection.execute(SQL("CREATE DATABASE {}").format(Identifier(name)))
