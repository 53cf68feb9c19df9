"""Probes about the source: whether it can be counted, has its indexes, and holds usage.

They ask what the contract and the flow ask, with the same functions; no row is judged here.
"""

from __future__ import annotations

from billing_pipeline.database import queries
from billing_pipeline.database.clock import DatabaseClock
from billing_pipeline.database.source import read_source
from billing_pipeline.domain.contract_rules import RULES
from billing_pipeline.domain.probes import Finding, fails, passes, warns
from billing_pipeline.domain.reach import reach_end
from billing_pipeline.usage.preflight.site import Site
from billing_pipeline.usage.source_contract import source_faults
from billing_pipeline.usage.source_layout import missing_indexes
from billing_pipeline.usage.table_contract import table_faults

DETAILS_SHOWN = 3


def source(site: Site) -> Finding:
    """What blocks is a failure; a change that forbids nothing is told."""
    with site.reading() as connection:
        found = read_source(connection, site.settings)
        faults = source_faults(connection, found, site.catalogue)
    if not faults:
        return passes(f"{found.relation}, a {found.shape.kind if found.shape else 'relation'}")
    told = "; ".join(f"{fault.reason}: {', '.join(fault.details[:DETAILS_SHOWN])}" for fault in faults)
    remedy = RULES[faults[0].reason].remedy
    return fails(told, remedy) if any(fault.blocks for fault in faults) else warns(told, remedy)


def source_indexes(site: Site) -> Finding:
    """The planner is asked; it reads no row."""
    with site.reading() as connection:
        since = DatabaseClock(connection)() - site.lookback
        missing = missing_indexes(connection, read_source(connection, site.settings), since=since)
    if not missing:
        return passes("recorded_at, occurred_at and event_id have theirs")
    statements = [statement for index in missing for statement in index.statements]
    return warns(
        f"a flush reads the whole source for want of one on {', '.join(dict.fromkeys(one.column for one in missing))}",
        f"Run: {'; '.join(statements)}" if statements else "; ".join(index.otherwise for index in missing),
    )


def lookback(site: Site) -> Finding:
    """An empty lookback stops a flush only where the contract fails closed; otherwise it is told."""
    settings = site.settings
    with site.reading() as connection:
        found, now = read_source(connection, settings), DatabaseClock(connection)()
        span = {"since": now - site.lookback, "until": reach_end(now)}
        latest = queries.fetch_dicts(connection, "latest_use", span, parts=found.parts)[0]["occurred_at"]
        faults = [
            fault
            for fault in table_faults(
                connection,
                found,
                required_event_types=settings.required_event_types,
                lookback_start=span["since"],
                now=now,
            )
            # `customers_mapped` tells of those.
            if fault.reason != "organization_unmapped"
        ]
    days = f"the last {settings.stripe_billing_contract_lookback_days} days"
    if not faults:
        return passes(f"usage in {days}, the latest of {latest:%Y-%m-%d %H:%M} UTC")
    told = "; ".join(f"{fault.reason} in {days}: {', '.join(fault.samples) or 'no row'}" for fault in faults)
    stops = settings.stripe_billing_validate_contract_before_flush and settings.stripe_billing_contract_fail_closed
    remedy = RULES[faults[0].reason].remedy
    return fails(told, remedy) if stops else warns(told, remedy)
