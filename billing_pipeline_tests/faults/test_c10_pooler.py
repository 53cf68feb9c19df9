"""C10: PgBouncer in transaction mode gives every transaction another session, and nothing rests on sessions."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import socket
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg.sql import SQL, Identifier

import billing_pipeline
from billing_pipeline.database import queries
from billing_pipeline.database.connection import connect
from billing_pipeline.errors import UserError
from billing_pipeline_tests.faults.conftest import wait_until
from billing_pipeline_tests.fix_postgres import require_superuser

PACKAGE = Path(billing_pipeline.__file__).parent
PGBOUNCER = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
needs_pgbouncer = pytest.mark.skipif(PGBOUNCER is None, reason="pgbouncer is not installed: apt-get install pgbouncer")
SMALL_BATCHES = "from billing_pipeline.usage import cut, submit\ncut.BATCH_SIZE = submit.BATCH_SIZE_MAX = 1\n"


@pytest.fixture
def pooled_role(world):
    """A login that finds our tables by its own setting, as docs/getting-started.md says for a pooler."""
    role = Identifier(f"billing_pooled_{os.getpid()}")
    connection = world.flow.connection
    require_superuser(connection)
    connection.execute(SQL("CREATE ROLE {} LOGIN SUPERUSER PASSWORD 'pooled'").format(role))
    connection.execute(SQL("ALTER ROLE {} SET search_path = billing_pipeline, public").format(role))
    connection.execute(SQL("ALTER ROLE {} SET TimeZone = 'UTC'").format(role))
    yield f"billing_pooled_{os.getpid()}"
    connection.execute(SQL("DROP ROLE {}").format(role))


@contextmanager
def pgbouncer(pg_proxy, role, *lines):
    """PgBouncer in transaction mode, with two server sessions for all its clients; yields the database's URL there."""
    target = conninfo_to_dict(pg_proxy.url)
    server = f"host=127.0.0.1 port={target['port']} dbname={target['dbname']} user={role} password=pooled"
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # It refuses to run as root, and another user cannot look into a test's own folder.
    user = pwd.getpwnam("nobody") if os.geteuid() == 0 else pwd.getpwuid(os.geteuid())
    folder = Path(tempfile.mkdtemp(prefix="billing-pgbouncer-"))
    ini = folder / "pgbouncer.ini"
    ini.write_text(
        "\n".join(
            [
                f"[databases]\nbilling = {server}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}",
                "unix_socket_dir =\nauth_type = any\npool_mode = transaction\ndefault_pool_size = 2",
                "server_reset_query =",
                *lines,
            ]
        ),
        encoding="utf-8",
    )
    for path in (folder, ini):
        os.chown(path, user.pw_uid, user.pw_gid)
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([PGBOUNCER, ini], user=user.pw_uid, group=user.pw_gid, extra_groups=[], stderr=log)
    try:
        wait_until(lambda: process.poll() is not None or listens(port), seconds_max=10)
        assert process.poll() is None, (folder / "log").read_text()
        yield f"postgresql://{role}@127.0.0.1:{port}/billing?sslmode=disable"
    finally:
        process.kill()
        process.wait()
        shutil.rmtree(folder)


def listens(port):
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


@needs_pgbouncer
def test_c10_flushes_through_a_pooler_in_transaction_mode_bill_exactly_once(world, pg_proxy, pooled_role):
    with pgbouncer(pg_proxy, pooled_role, "ignore_startup_parameters = options") as url:
        # Three for two sessions, an entry a batch: each statement runs often, now in the one session, now in the other.
        flushes = [
            world.worker(before=SMALL_BATCHES, DATABASE_URL=url, STRIPE_USAGE_FLUSH_LOCK_KEY=f"flush-{number}")
            for number in range(3)
        ]
        outputs = [flush.communicate(timeout=120) for flush in flushes]

    assert [(flush.returncode, err) for flush, (_, err) in zip(flushes, outputs, strict=True)] == [(0, "")] * 3
    world.require_truth()


@needs_pgbouncer
def test_c10_a_pooler_that_takes_no_options_is_named_with_what_to_do(world, pg_proxy, pooled_role):
    with (
        pgbouncer(pg_proxy, pooled_role) as url,
        pytest.raises(UserError, match=r"unsupported startup parameter.*pooler.*docs/getting-started\.md"),
        connect(url),
    ):
        pass


@needs_pgbouncer
@pytest.mark.parametrize(("zone", "refused"), [("Europe/Berlin", True), ("Etc/UTC", False)])
def test_c10_a_pooler_whose_sessions_are_not_in_utc_is_named_with_what_to_do(
    world, pg_proxy, pooled_role, zone, refused
):
    """Python's difference of two times in one zone is the wall clock's: an hour wrong where the clock changes."""
    alter = SQL("ALTER ROLE {} SET TimeZone = {}").format(Identifier(pooled_role), zone)
    world.flow.connection.execute(alter)

    with pgbouncer(pg_proxy, pooled_role, "ignore_startup_parameters = options") as url:
        if not refused:
            with connect(url) as connection:
                assert connection.execute("SELECT 1").fetchone() == (1,)
            return
        with pytest.raises(UserError, match=r"sessions in Europe/Berlin.*ALTER ROLE .* SET TimeZone"), connect(url):
            pass


def test_c10_no_statement_of_ours_needs_the_session_of_the_one_before():
    """Session locks, settings, listeners and lasting temporary tables do not survive a pooler."""
    sources = [*PACKAGE.joinpath("database", "sql").glob("*.sql"), *PACKAGE.rglob("*.py")]
    session_state = re.compile(
        r"pg_(try_)?advisory_lock|\bSET (?!LOCAL\b|TRANSACTION\b)(SESSION\b|[a-z_]+ (=|TO) '?\w+'?;)"
        r"|\bLISTEN \w|\bPREPARE \w|CURSOR WITH HOLD"
    )
    found = [path.name for path in sources if session_state.search(path.read_text(encoding="utf-8"))]
    assert found == []
    temporary = [text for text in queries.statements().values() if "CREATE TEMP" in text]
    assert temporary
    assert all("ON COMMIT DROP" in text for text in temporary)


def test_c10_no_statement_is_prepared_in_a_session(connection):
    for _ in range(20):
        connection.execute("SELECT %s::int", (1,))

    assert connection.execute("SELECT count(*) FROM pg_prepared_statements").fetchone() == (0,)
