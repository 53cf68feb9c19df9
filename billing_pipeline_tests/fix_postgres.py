"""A real PostgreSQL for every test that asks for one: migrated once, cloned per test, dropped after it.

The server is the one of DATABASE_URL, or an embedded one that all workers of a run share.
Nothing here skips: a test that needs the database fails where there is none.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import pytest
from psycopg import Connection
from psycopg.errors import InsufficientPrivilege
from psycopg.sql import SQL, Identifier

from billing_pipeline.database import embedded
from billing_pipeline.database.connection import connect
from billing_pipeline.database.migrate import migrate
from billing_pipeline.settings import Settings

SETTING_PREFIXES = ("BILLING_", "DAGSTER_", "ENABLE_", "REDIS_", "SIMULATOR_", "STRIPE_")

DROP_SECONDS_MAX = 30

FAST = ("fsync", "synchronous_commit", "full_page_writes")
"""Off for tests only: a crash of the machine may lose a test database."""

_run_folder = pytest.StashKey[Path]()
_server_url = pytest.StashKey[str | None]()
_clone_number = count()
_run_name = ""


def forget_settings() -> str | None:
    """Take every setting out of the environment, and .env files out of reach: a person's shell, or a real key in
    it, must not colour results.  Returns what DATABASE_URL was."""
    server_url = os.environ.pop("DATABASE_URL", None)
    for name in [name for name in os.environ if name.startswith(SETTING_PREFIXES)]:
        del os.environ[name]
    Settings.model_config["env_file"] = None
    return server_url or None


_remembered_url = forget_settings()


def pytest_configure(config: pytest.Config) -> None:
    # xdist's workers share the folder of the process that began the run; it alone cleans up.
    given = getattr(config, "workerinput", None)
    folder = given["billing_folder"] if given else tempfile.mkdtemp(prefix="billing-tests-")
    config.stash[_run_folder] = Path(folder)
    global _run_name
    _run_name = Path(folder).name.rpartition("-")[2].lower()
    config.stash[_server_url] = given["billing_server"] if given else _remembered_url


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["billing_folder"] = str(node.config.stash[_run_folder])
    node.workerinput["billing_server"] = node.config.stash[_server_url]


def pytest_unconfigure(config: pytest.Config) -> None:
    if hasattr(config, "workerinput"):
        return
    folder, given = config.stash[_run_folder], config.stash[_server_url]
    if given and (folder / "server").exists():
        _drop_databases_of(given, folder)
    embedded.stop(folder)
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def server_url(request: pytest.FixtureRequest) -> str:
    """A superuser's URL of the server; its database `template_name` holds the migrated schema."""
    folder, given = request.config.stash[_run_folder], request.config.stash[_server_url]
    with (folder / "lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Every worker counts itself as a user, so that the server outlives the first one to finish.
        url = given or embedded.ensure_running(folder).url("postgres")
        if not (folder / "server").exists():
            if not given:
                make_fast(url)
            migrate(create_database(url, template_name(folder)), create_source=True)
            (folder / "server").touch()
    return url


@pytest.fixture(scope="session")
def own_server_url(request: pytest.FixtureRequest) -> str:
    """A superuser's URL of the embedded server whatever DATABASE_URL says: for what a login may not do elsewhere."""
    return embedded.ensure_running(request.config.stash[_run_folder]).url("postgres")


@pytest.fixture(scope="session")
def template(request: pytest.FixtureRequest, server_url: str) -> str:
    """Name of the migrated database to clone."""
    return template_name(request.config.stash[_run_folder])


@pytest.fixture
def database_url(server_url: str, template: str) -> Iterator[str]:
    """A database of this test's own: migrated, with an empty `public.billable_events`."""
    with fresh_database(server_url, template) as url:
        yield url


@pytest.fixture
def empty_database_url(server_url: str) -> Iterator[str]:
    """A database of this test's own, without our schema."""
    with fresh_database(server_url, "template0") as url:
        yield url


@pytest.fixture
def connection(database_url: str) -> Iterator[Connection[tuple[Any, ...]]]:
    """An autocommit connection to `database_url`, opened the way the package does it."""
    with connect(database_url) as opened:
        yield opened


@contextmanager
def fresh_database(server_url: str, template: str) -> Iterator[str]:
    """A clone of `template` for as long as the block runs."""
    name = f"billing_{_run_name}_{os.getpid()}_{next(_clone_number)}"
    url = create_database(server_url, name, template)
    try:
        yield url
    finally:
        drop_database(server_url, name)


def create_database(server_url: str, name: str, template: str = "template0") -> str:
    """Create a database on the server and return its URL."""
    with connect(server_url) as opened:
        opened.execute(SQL("CREATE DATABASE {} TEMPLATE {}").format(Identifier(name), Identifier(template)))
    return urlunsplit(urlsplit(server_url)._replace(path=f"/{name}"))


def drop_database(server_url: str, name: str) -> None:
    """Drop a database whoever is connected to it."""
    statement = SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(Identifier(name))
    deadline = time.monotonic() + DROP_SECONDS_MAX
    with connect(server_url) as opened:
        while True:
            try:
                opened.execute(statement)
                return
            except InsufficientPrivilege:
                # Autovacuum is at work in it, and a login that is no superuser may not end that; it ends soon.
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.1)


def template_name(folder: Path) -> str:
    """One template per run, so that runs on one server do not meet."""
    return f"billing_{folder.name.rpartition('-')[2].lower()}_template"


def _drop_databases_of(server_url: str, folder: Path) -> None:
    """Every database of this run, also those that a failed test or a stopped command left."""
    prefix = template_name(folder).removesuffix("template")
    with connect(server_url) as opened:
        found = opened.execute("SELECT datname FROM pg_database WHERE starts_with(datname, %s)", (prefix,)).fetchall()
    for (name,) in found:
        drop_database(server_url, name)


def make_fast(server_url: str) -> None:
    """Let a server of tests forget what it committed when it crashes."""
    with connect(server_url) as opened:
        for setting in FAST:
            opened.execute(SQL("ALTER SYSTEM SET {} = off").format(Identifier(setting)))
        opened.execute("SELECT pg_reload_conf()")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whatever needs the server is not part of the fast run, which starts no database."""
    for item in items:
        if "server_url" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


def require_superuser(connection: Connection[tuple[Any, ...]]) -> None:
    """Skip where `DATABASE_URL` names a server on which this login may not make logins of its own."""
    if connection.execute("SELECT usesuper FROM pg_user WHERE usename = current_user").fetchone() != (True,):
        pytest.skip("the login of DATABASE_URL may not create roles: give it SUPERUSER, or leave DATABASE_URL unset")
