"""Probes about what a team sets up first: settings, the level of billing, the database, the meter catalogue."""

from __future__ import annotations

from psycopg.errors import UndefinedTable

from billing_pipeline.database import queries
from billing_pipeline.database.connection import describe
from billing_pipeline.database.primary import require_primary
from billing_pipeline.database.schema_version import known_revisions, missing_revisions
from billing_pipeline.domain.probes import Finding, fails, passes, warns
from billing_pipeline.domain.redaction import mask
from billing_pipeline.errors import DatabaseUnavailable
from billing_pipeline.settings import Level
from billing_pipeline.usage.gate import durability_faults
from billing_pipeline.usage.preflight.site import Site
from billing_pipeline.usage.table_contract import require_known_event_types

POSTGRES_MIN = 15
TOLD = {
    Level.OFF: "off: a flush does nothing",
    Level.SHADOW: "shadow: a flush computes and records, and sends nothing",
    Level.LIVE: "live: a flush sends",
}


def settings(site: Site) -> Finding:
    """Reading them reports every fault at once."""
    return passes(f"{len(site.settings.model_fields_set)} set, the others by default")


def level(site: Site) -> Finding:
    """Off and shadow are told, and fail where it must be live; a test key is told with its mode."""
    found = site.settings
    mode = "live" if found.livemode else "test"
    key = "no key, so the simulator" if found.uses_simulator else f"key {mask(found.stripe_key)}, {mode} mode"
    told = f"{TOLD[found.level]}; {key}; {_switches(site)}"
    if found.level is not Level.LIVE:
        return fails(told) if site.require_enabled else warns(told)
    if site.require_enabled and not found.livemode:
        return warns(f"{told}; in test mode nobody is charged")
    return passes(told)


def database(site: Site) -> Finding:
    """A standby is a fault, and can be asked further all the same."""
    url = site.database_url
    with site.reading() as connection:
        version = connection.info.server_version
        try:
            require_primary(connection, url)
        except DatabaseUnavailable as exc:
            return fails(str(exc), "Point DATABASE_URL at the primary, or let it take writes.", blocks=False)
    told = f"PostgreSQL {version // 10_000}.{version % 10_000} at {describe(url)}"
    if version < POSTGRES_MIN * 10_000:
        return fails(f"{told} is older than {POSTGRES_MIN}", f"Use PostgreSQL {POSTGRES_MIN} or newer.")
    return passes(f"{told}, the primary")


def schema(site: Site) -> Finding:
    """This version's schema, with every table writable by the login."""
    with site.reading() as connection:
        try:
            with connection.transaction():
                rows = queries.fetch_dicts(connection, "schema_version")
        except UndefinedTable:
            rows = []
        if missing := missing_revisions(rows[0]["version_num"] if rows else None):
            return fails(f"lacks {', '.join(missing)}" if rows else "there is none of ours yet")
        refused = [row["name"] for row in queries.fetch_dicts(connection, "tables_not_writable")]
    if refused:
        return fails(
            f"the login may not write {', '.join(refused)}",
            "Let the login of DATABASE_URL own the schema billing_pipeline, or grant it SELECT, INSERT and UPDATE.",
        )
    return passes(f"{known_revisions()[-1]}, this version's")


def durability(site: Site) -> Finding:
    """The gate refuses such a server in live mode; full_page_writes is told only."""
    with site.reading() as connection:
        faults = durability_faults(connection)
    if not faults:
        return passes("fsync, synchronous_commit and full_page_writes are on")
    stops = site.settings.livemode and any(not fault.startswith("full_page_writes") for fault in faults)
    told = "; ".join(faults)
    return fails(told) if stops else warns(told)


def catalogue(site: Site) -> Finding:
    """Parsed as a flush parses it."""
    require_known_event_types(site.settings.required_event_types, site.catalogue)
    names = [meter.name for meter in site.catalogue.meters]
    return passes(f"{len(names)} meters: {', '.join(names)}")


def _switches(site: Site) -> str:
    found = site.settings
    enabled = "not set" if found.enable_billing is None else str(found.enable_billing).lower()
    return f"ENABLE_BILLING {enabled}, BILLING_MODE {found.billing_mode or 'not set'}"
