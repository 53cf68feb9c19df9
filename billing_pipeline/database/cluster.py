"""The files and programs of one embedded PostgreSQL cluster; `embedded.py` calls this, with its lock held.

`wheel.py` gives the programs and, for root, the system user PostgreSQL insists on.
Starting and stopping is ours: the wheel keeps its lock and sockets in one place for all users of the machine,
takes any process with a remembered number for its server (and kills it), and never forgets a killed user.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from billing_pipeline.database.wheel import let_others_pass, programs, server_user
from billing_pipeline.errors import DatabaseUnavailable

PORT = 5432
"""No port is opened; the number is part of the socket's file name."""

START_SECONDS = 60
"""Crash recovery replays at most `max_wal_size` of log, which takes seconds."""

SOCKET_PATH_BYTES = 100
"""macOS allows 103 for a socket's path, Linux 107."""

SETTINGS = f"""\
# Written by billing_pipeline at every start.
port = {PORT}
listen_addresses = ''
unix_socket_permissions = 0700
max_connections = 300           # Dagster pools nothing and opens hundreds of connections a minute
shared_buffers = 256MB
max_wal_size = 2GB
fsync = on
synchronous_commit = on         # an attempt is durable before its request leaves
timezone = 'UTC'
log_timezone = 'UTC'
"""


@dataclass(frozen=True)
class Cluster:
    """One cluster in `state_dir`, running or not, existing or not."""

    state_dir: Path

    @property
    def data_dir(self) -> Path:
        return self.state_dir / "postgres"

    @property
    def log(self) -> Path:
        return self.data_dir / "server.log"

    @cached_property
    def socket_dir(self) -> Path:
        """The data directory, or a short path of its own where that one is too long for a socket."""
        if len(os.fsencode(self.data_dir / f".s.PGSQL.{PORT}")) <= SOCKET_PATH_BYTES:
            return self.data_dir
        # Not TMPDIR: every process must find the same folder.
        return Path("/tmp") / f"billing_pipeline-{sha256(os.fsencode(self.data_dir)).hexdigest()[:16]}"

    def answers(self) -> bool:
        """Whether the server takes connections; a pid file alone proves nothing."""
        if not self.data_dir.exists():
            return False
        return not self._run("pg_isready", "-q", "-t", "3", "-h", str(self.socket_dir), "-p", str(PORT)).returncode

    def create(self) -> None:
        """Make the cluster beside its place and rename it: a killed initdb leaves nothing half made."""
        if self.data_dir.exists():
            return
        fresh = Path(tempfile.mkdtemp(prefix="postgres.new-", dir=self.state_dir))
        try:
            if self.server_ids:
                os.chown(fresh, *self.server_ids)
                for folder in (fresh, programs()):
                    let_others_pass(folder)
            # The locale is fixed: initdb refuses a LANG that the machine lacks, as in many slim images.
            locale = (
                "--locale-provider=builtin",
                "--builtin-locale=C.UTF-8",
                "--locale=C",
                "--encoding=UTF8",
            )
            made = self._run("initdb", "--auth=trust", "--username=postgres", *locale, f"--pgdata={fresh}")
            if made.returncode:
                raise DatabaseUnavailable(f"The embedded PostgreSQL cannot be created: {_last_line(made.stderr)}.")
            with (fresh / "postgresql.conf").open("a", encoding="utf-8") as conf:
                conf.write("include 'billing_pipeline.conf'\n")
            fresh.rename(self.data_dir)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)

    def start(self) -> None:
        """Start the server and wait until it answers, through crash recovery where there was a crash."""
        sockets = f"unix_socket_directories = '{str(self.socket_dir).replace(chr(39), chr(39) * 2)}'\n"
        (self.data_dir / "billing_pipeline.conf").write_text(SETTINGS + sockets, encoding="utf-8")
        self._make_socket_dir()
        deadline = time.monotonic() + START_SECONDS
        while not self._try_to_start():
            # After a kill, backends of the old server hold its memory until they notice it.
            if time.monotonic() > deadline or not any(self._processes()):
                raise DatabaseUnavailable(
                    f"The embedded PostgreSQL does not start: {self._last_words()}. Its log is {self.log}."
                )
            time.sleep(0.3)

    def stop(self) -> bool:
        """Stop the server and wait for its end; tells whether it was running."""
        if not self.answers():
            return False
        stopped = self._run("pg_ctl", "stop", "-s", "-w", "-t", "30", "-m", "fast", "-D", str(self.data_dir))
        if stopped.returncode:
            raise DatabaseUnavailable(f"The embedded PostgreSQL does not stop. Its log is {self.log}.")
        return True

    @cached_property
    def server_ids(self) -> tuple[int, int] | None:
        """User and group to run as: PostgreSQL refuses root, who takes the data's owner or the wheel's user."""
        if os.geteuid() != 0:
            return None
        if self.data_dir.exists():
            owner = self.data_dir.stat()
            return owner.st_uid, owner.st_gid
        return server_user()

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        # A file and not a pipe: the server would hold a pipe open.  An empty environment, so that the server
        # neither follows PG* variables of a person's shell nor keeps our secrets for as long as it lives.
        user, group = self.server_ids or (None, None)
        with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
            done = subprocess.run(
                [str(programs() / program), *arguments],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                cwd=self.state_dir,
                env={"PATH": "/usr/bin:/bin", "LC_ALL": "C"},
                check=False,
                user=user,
                group=group,
                extra_groups=None if user is None else [],
            )
            output.seek(0)
            return subprocess.CompletedProcess(done.args, done.returncode, "", output.read())

    def _try_to_start(self) -> bool:
        self._forget_reused_pid()
        wait = ("-s", "-w", "-t", str(START_SECONDS))
        return (
            not self._run("pg_ctl", "start", *wait, "-D", str(self.data_dir), "-l", str(self.log)).returncode
            and self.answers()
        )

    def _make_socket_dir(self) -> None:
        if self.socket_dir == self.data_dir:
            return
        self.socket_dir.mkdir(mode=0o700, exist_ok=True)
        if self.server_ids:
            os.chown(self.socket_dir, *self.server_ids, follow_symlinks=False)
        found = self.socket_dir.lstat()
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != (self.server_ids or (os.geteuid(),))[0]:
            raise DatabaseUnavailable(f"{self.socket_dir} belongs to another user; set BILLING_STATE_DIR shorter.")

    def _forget_reused_pid(self) -> None:
        # PostgreSQL clears what a killed server left itself, but not once its number is a stranger's, or still that of
        # the dead one, whom nobody has buried yet.
        left = (self.data_dir / "postmaster.pid", self.socket_dir / f".s.PGSQL.{PORT}.lock")
        if not any(file.exists() for file in left) or any(self._processes()):
            return
        for file in left:
            pid = file.read_text(encoding="utf-8").partition("\n")[0] if file.exists() else ""
            if pid.isdigit() and psutil.pid_exists(int(pid)):
                file.unlink()

    def _processes(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter(["name", "cwd"]):
            if process.info["name"] == "postgres" and process.info["cwd"] == str(self.data_dir):
                yield process

    def _last_words(self) -> str:
        log = self.log.read_text(encoding="utf-8", errors="replace") if self.log.exists() else ""
        # What follows the fatal line only says that the server is down.
        fatal = [line.partition("FATAL:")[2] for line in log.splitlines() if "FATAL:" in line]
        return _last_line("\n".join(fatal) or log)


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else "it says nothing"
