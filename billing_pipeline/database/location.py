"""Where the databases are: the configured server, or the embedded one where nothing is configured.

Ours is spoken to through psycopg 3 and libpq's URLs, Dagster's through psycopg 2 and SQLAlchemy's.
"""

from __future__ import annotations

import re
from urllib.parse import quote, urlencode

import psycopg
from psycopg.conninfo import conninfo_to_dict
from psycopg.sql import SQL, Identifier
from pydantic import SecretStr
from sqlalchemy import URL

from billing_pipeline.database import embedded
from billing_pipeline.database.connection import connect, require_well_formed
from billing_pipeline.errors import SettingsError, UserError
from billing_pipeline.settings import Settings

_SCHEME = re.compile(r"^(postgres|postgresql)(\+\w+)?://")


def resolve_database_url(settings: Settings) -> str:
    """The billing database as a libpq URL; starts the embedded server when DATABASE_URL is unset.

    Raises `SettingsError` for a URL that cannot be one, `DatabaseUnavailable` where the embedded server fails.
    """
    if settings.database_url:
        return _libpq_url("DATABASE_URL", settings.database_url)
    return embedded.ensure_running(settings.billing_state_dir).url()


def find_database_url(settings: Settings) -> str:
    """The same for whoever only looks: an embedded server is started where there is one, and never made.

    Raises `UserError` where there is none yet.
    """
    if settings.database_url is None and not embedded.exists(settings.billing_state_dir):
        raise UserError(
            f"There is no database yet: DATABASE_URL is not set, and {settings.billing_state_dir} holds none. "
            "`billing-pipeline up` makes one."
        )
    return resolve_database_url(settings)


def resolve_dagster_url(settings: Settings) -> str:
    """Dagster's own database as SQLAlchemy takes it, created beside the billing database unless it is configured.

    Raises `UserError` where the database is missing and the login may not create it.
    """
    if settings.dagster_database_url:
        return _sqlalchemy_url(_libpq_url("DAGSTER_DATABASE_URL", settings.dagster_database_url))
    billing = resolve_database_url(settings)
    name = sibling(billing, "dagster", setting="DAGSTER_DATABASE_URL")
    return _sqlalchemy_url(billing, database=name)


def sibling(libpq_url: str, suffix: str, *, setting: str) -> str:
    """The name of the database `<database>_<suffix>` on the same server, created where it is missing.

    Raises `UserError`, naming the `setting` that points elsewhere, where the login may not create it.
    """
    name = f"{_options(libpq_url)['dbname']}_{suffix}"
    _ensure_database(libpq_url, name, setting)
    return name


def with_database(libpq_url: str, name: str) -> str:
    """The same URL for another database of the server."""
    # Every option as libpq reads it: a bare # in the password would end the address for any other parser.
    return f"postgresql:///?{urlencode(_options(libpq_url) | {'dbname': name}, quote_via=quote)}"


def _libpq_url(setting: str, value: SecretStr) -> str:
    url = value.get_secret_value().strip()
    if not _SCHEME.match(url):
        raise SettingsError(f"{setting} must begin with postgresql://; see .env.example.")
    url = _SCHEME.sub("postgresql://", url)
    require_well_formed(url, name=setting)
    return url


def _options(libpq_url: str) -> dict[str, str]:
    options = {name: str(value) for name, value in conninfo_to_dict(libpq_url).items()}
    # libpq takes the user's name for a missing database; so do we, before a name is derived from it.
    options.setdefault("dbname", options.get("user", "postgres"))
    return options


def _sqlalchemy_url(libpq_url: str, *, database: str | None = None) -> str:
    options = _options(libpq_url)
    name, user, password = options.pop("dbname"), options.pop("user", None), options.pop("password", None)
    # The driver is named: SQLAlchemy 2.1 reads a bare postgresql:// as psycopg 3, on which Dagster's storage fails.
    # Everything else stays libpq's: sockets and lists of hosts have no other place in the URL.
    url = URL.create("postgresql+psycopg2", user, password, database=database or name, query=options)
    return url.render_as_string(hide_password=False)


def _ensure_database(libpq_url: str, name: str, setting: str) -> None:
    with connect(libpq_url) as connection:
        if connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (name,)).fetchone():
            return
        try:
            connection.execute(SQL("CREATE DATABASE {}").format(Identifier(name)))
        except psycopg.errors.DuplicateDatabase:
            pass  # another process was faster
        except psycopg.errors.InsufficientPrivilege:
            raise UserError(
                f"A database of its own is needed, and this login may not create {name}. "
                f"Create it (CREATE DATABASE {name}), or set {setting}."
            ) from None
