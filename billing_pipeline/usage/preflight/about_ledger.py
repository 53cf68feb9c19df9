"""Probes about the ledger: whose it is, whether it is frozen, and whether the next flush would freeze it.

They ask with the gate's own functions and write nothing: neither the binding nor the freeze nor the mark.
"""

from __future__ import annotations

from billing_pipeline.database.clock import DatabaseClock
from billing_pipeline.domain.probes import Finding, fails, passes, warns
from billing_pipeline.stripe_api.summaries import StripeSummaries
from billing_pipeline.usage import gate
from billing_pipeline.usage.canary import more_than_sent, sent_canaries
from billing_pipeline.usage.preflight.site import Site

NOT_BOUND = "not bound to an account yet"


def high_water_mark(site: Site) -> Finding:
    """Told by its kind only; whether an object store takes writes cannot be asked without writing."""
    mark = site.mark
    stored = mark.read()
    told = f"kept in: {mark.kind}; {f'attempt {stored.attempt_id:,}' if stored else 'nothing stored yet'}"
    if reason := mark.why_not_writable():
        return fails(f"{told}; {reason}")
    embedded = site.settings.billing_state_dir.joinpath("postgres").resolve()
    if mark.path is not None and site.settings.database_url is None and embedded in mark.path.resolve().parents:
        return fails(f"{told}; it lies in the database's own folder, so a restore takes it back too")
    if mark.path is None:
        return passes(f"{told}; whether it takes writes cannot be asked without writing")
    if site.settings.livemode:
        return warns(
            f"{told}; a file of this machine",
            "Give every process that flushes the same BILLING_MARK_URL, in a place that outlives this machine.",
        )
    return passes(told)


def frozen(site: Site) -> Finding:
    """Whether a detector or a person has stopped all sending."""
    with site.reading() as connection:
        identity = gate.find_identity(connection)
    if identity is None:
        return passes(f"open; {NOT_BOUND}")
    if identity.frozen_at is not None:
        return fails(f"frozen since {identity.frozen_at:%Y-%m-%d %H:%M} UTC: {identity.frozen_reason}")
    return passes(f"open; epoch {identity.epoch}")


def restored(site: Site) -> Finding:
    """The detectors of the gate, without the freeze."""
    with site.reading() as connection:
        identity = gate.find_identity(connection)
        if identity is not None:
            reason = gate.lost_attempts(connection, identity, site.mark)
    if identity is None:
        if (stored := site.mark.read()) is not None:
            return fails(
                f"the high-water mark belongs to ledger {stored.ledger_id}, and this database has no ledger yet",
                "Give this ledger a BILLING_MARK_URL of its own, or DATABASE_URL the database of that ledger.",
            )
        return passes(f"no sign of it; {NOT_BOUND}")
    return fails(reason) if reason else passes("no sign of it: mark, server and timeline are the ledger's")


def ledger_account(site: Site) -> Finding:
    """Compared without binding; only a flush binds."""
    account, livemode = site.account.account_id, site.settings.livemode
    with site.reading() as connection:
        identity = gate.find_identity(connection)
    name = gate.account_name(account, livemode)
    if identity is None:
        return passes(f"{NOT_BOUND}; the first flush that is not off binds it to {name}")
    gate.require_account(identity, stripe_account=account, livemode=livemode)
    return passes(name)


def canaries(site: Site) -> Finding:
    """One more detector of the gate, which asks Stripe."""
    with site.reading() as connection:
        now = DatabaseClock(connection)()
        sent = sent_canaries(connection, now=now)
    meter_ids = {name: meter.meter_id for name, meter in site.meters.items()}
    reason = more_than_sent(sent, StripeSummaries(site.stripe, site.settings, meter_ids), now=now)
    if reason is not None:
        return fails(reason)
    return passes(f"{sum(one.sent for one in sent):,} sent in the last days, and no more shown")
