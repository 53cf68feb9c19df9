"""C12: a database that is full, read-only or out of connections stops a flush before anything is sent."""

from __future__ import annotations

import os
import subprocess
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from psycopg.conninfo import conninfo_to_dict
from psycopg.sql import SQL, Identifier

from billing_pipeline.errors import DatabaseUnavailable
from billing_pipeline.usage.flow import open_flow
from billing_pipeline.usage.flush import flush
from billing_pipeline_tests.builders import insert_events
from billing_pipeline_tests.faults.conftest import usage
from billing_pipeline_tests.fix_flow import counted_by_stripe
from billing_pipeline_tests.fix_postgres import require_superuser


def require_nothing_was_sent(world):
    assert counted_by_stripe(world.simulator) == {}
    assert world.flow.connection.execute("SELECT count(*) FROM attempts").fetchone() == (0,)


def test_c12_a_read_only_database_sends_nothing_and_says_what_to_do(world):
    name = Identifier(conninfo_to_dict(world.database_url)["dbname"])
    world.flow.connection.execute(SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(name))

    worker = world.worker()
    _, err = worker.communicate(timeout=60)

    assert worker.returncode == 1
    assert "takes no writes: default_transaction_read_only is on" in err
    assert "Traceback" not in err
    require_nothing_was_sent(world)
    world.flow.connection.execute(SQL("ALTER DATABASE {} RESET default_transaction_read_only").format(name))
    world.flush()
    world.require_truth()


@pytest.mark.parametrize("connections", [0, 1])
def test_c12_a_database_without_a_free_connection_sends_nothing_and_says_so(world, connections):
    role = f"billing_limited_{os.getpid()}"
    admin, name = world.flow.connection, Identifier(role)
    require_superuser(admin)
    limited = SQL("CREATE ROLE {} LOGIN PASSWORD 'limited' CONNECTION LIMIT {}").format(name, connections)
    admin.execute(limited)
    admin.execute(SQL("GRANT ALL ON SCHEMA billing_pipeline, public TO {}").format(name))
    for schema in ("billing_pipeline", "public"):
        for kind in ("TABLES", "SEQUENCES"):
            admin.execute(SQL("GRANT ALL ON ALL {} IN SCHEMA {} TO {}").format(SQL(kind), Identifier(schema), name))
    try:
        user = conninfo_to_dict(world.database_url)["user"]
        url = world.database_url.replace(f"//{user}", f"//{role}:limited", 1)
        worker = world.worker(DATABASE_URL=url)
        _, err = worker.communicate(timeout=60)

        assert worker.returncode == 1
        assert f'too many connections for role "{role}"' in err
        assert "Traceback" not in err
        require_nothing_was_sent(world)
    finally:
        world.wait_for_backends_to_end()
        admin.execute(SQL("DROP OWNED BY {}").format(name))
        admin.execute(SQL("DROP ROLE {}").format(name))
    world.outlive_leases()
    world.flush()
    world.require_truth()


@contextmanager
def small_disk(owner):
    """A disk of one megabyte; skips where this user may not mount one."""
    with tempfile.TemporaryDirectory(prefix="billing-small-disk-") as folder:
        Path(folder).chmod(0o711)
        place = Path(folder) / "disk"
        place.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(place)]
        mounted = subprocess.run(mount, capture_output=True, check=False, text=True)
        if mounted.returncode:
            pytest.skip(f"no small disk ({mounted.stderr.strip()}): run as root, or in a container with CAP_SYS_ADMIN")
        try:
            os.chown(place, *owner)
            place.chmod(0o700)
            yield place
        finally:
            subprocess.run(["umount", "--lazy", str(place)], check=True)


def fill(path):
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(b"x" * 512)


@pytest.mark.slow
def test_c12_a_full_disk_sends_nothing_and_the_flush_after_it_is_exact(drill):
    customers = drill.set_up("acme")
    events = usage(["acme"])
    insert_events(drill.connection, *events)
    data = (drill.state_dir / "postgres").stat()
    with small_disk((data.st_uid, data.st_gid)) as disk:
        drill.connection.execute(SQL("CREATE TABLESPACE small LOCATION {}").format(str(disk)))
        drill.connection.execute("ALTER TABLE attempts SET TABLESPACE small")
        filler = disk / "filler"
        with pytest.raises(OSError, match="No space left"):
            fill(filler)

        with (
            pytest.raises(DatabaseUnavailable, match=r"PostgreSQL failed during the work.*No space left on device"),
            open_flow(drill.settings, drill.url, holder="drill") as flow,
        ):
            flush(flow)
        assert counted_by_stripe(drill.simulator) == {}
        assert drill.connection.execute("SELECT DISTINCT state::text FROM ledger_entries").fetchall() == [("pending",)]

        filler.unlink()
        flush(drill.flow)
        counted = counted_by_stripe(drill.simulator)
        assert sum(counted.values()) == sum(int(event["quantity"]) for event in events)
        assert len(counted) == 3
        assert {customer for customer, _, _ in counted} == {customers["acme"]}
        drill.connection.execute("ALTER TABLE attempts SET TABLESPACE pg_default")
        drill.connection.execute("DROP TABLESPACE small")
