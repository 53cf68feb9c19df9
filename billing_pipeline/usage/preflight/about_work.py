"""Probes about the hourly work: the last validation, the flush lease, and who has no customer yet."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

from billing_pipeline.database import queries
from billing_pipeline.database.clock import DatabaseClock
from billing_pipeline.database.source import read_source
from billing_pipeline.domain.contract_rules import Severity
from billing_pipeline.domain.probes import Finding, fails, passes, warns
from billing_pipeline.domain.reach import reach_end
from billing_pipeline.domain.windows import HOUR
from billing_pipeline.usage.contract import latest_report
from billing_pipeline.usage.lease import current_lease
from billing_pipeline.usage.preflight.site import Site

AGE_MAX = 2 * HOUR
"""A flush validates every hour; one that was missed is no news, two are."""


def contract(site: Site) -> Finding:
    """The verdict that the gate goes by, and how old it is; nothing is validated here."""
    settings = site.settings
    if not settings.stripe_billing_validate_contract_before_flush:
        return warns(
            "a flush does not validate",
            "Set STRIPE_BILLING_VALIDATE_CONTRACT_BEFORE_FLUSH=true, unless bad rows shall be found otherwise.",
        )
    with site.reading() as connection:
        latest, now = latest_report(connection), DatabaseClock(connection)()
    if latest is None:
        return warns("never validated; the first flush does")
    at = f"validated {latest.cutoff_at:%Y-%m-%d %H:%M} UTC"
    if not latest.passed:
        reasons = ", ".join(fault.reason for fault in latest.faults if fault.severity is Severity.TABLE)
        told = f"{at}: {reasons}"
        return fails(told) if settings.stripe_billing_contract_fail_closed else warns(told)
    if now - latest.cutoff_at > AGE_MAX:
        return warns(f"{at} and passed, {(now - latest.cutoff_at) // HOUR} hours ago; no flush since")
    return passes(f"{at} and passed; {latest.rows_read:,} rows read")


def lease(site: Site) -> Finding:
    """A lease that outlasts the hour to the next flush makes that one skip."""
    settings = site.settings
    ttl = timedelta(seconds=settings.stripe_usage_flush_lock_ttl_seconds)
    with site.reading() as connection:
        now = DatabaseClock(connection)()
        held = current_lease(connection, lock_key=settings.stripe_usage_flush_lock_key, now=now)
    who = f"held by {held.holder} until {held.expires_at:%H:%M:%S} UTC" if held else "free"
    told = f"{who}; lasts {ttl // timedelta(seconds=1):,} s"
    if ttl >= HOUR:
        return warns(f"{told}, and a flush is due every {HOUR // timedelta(seconds=1):,} s")
    return passes(told)


def customers_mapped(site: Site) -> Finding:
    """What is owed because nobody can be billed for it; before the first aggregation, who would be owed."""
    with site.reading() as connection:
        if queries.fetch_dicts(connection, "has_aggregated")[0]["found"]:
            found = queries.fetch_dicts(connection, "usage_without_customer")[0]
            owed = f", {_amount(found['units'])} units owed"
        else:
            now = DatabaseClock(connection)()
            span = {"since": now - site.lookback, "until": reach_end(now)}
            parts = read_source(connection, site.settings).parts
            found = queries.fetch_dicts(connection, "rows_without_customer", span, parts=parts)[0]
            owed = ", nothing counted yet"
    if not found["organizations"]:
        return passes("no organization with usage is without one")
    more = ", ..." if found["organizations"] > len(found["names"]) else ""
    noun = "organization" if found["organizations"] == 1 else "organizations"
    return warns(f"{found['organizations']:,} {noun} without one: {', '.join(found['names'])}{more}{owed}")


def _amount(units: Decimal) -> str:
    text = f"{units:,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
