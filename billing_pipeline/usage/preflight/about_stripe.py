"""Probes about Stripe: the key and what it may read, the clock, meters, prices and the canary's customer.

GET only.  Whether a key may write cannot be asked without writing, and the result says so.
"""

from __future__ import annotations

from billing_pipeline.database.clock import DatabaseClock
from billing_pipeline.domain.probes import Finding, fails, passes, warns
from billing_pipeline.domain.redaction import mask
from billing_pipeline.domain.windows import HOUR, minute_of
from billing_pipeline.stripe_api import catalogue as at_stripe
from billing_pipeline.stripe_api.client import read_account
from billing_pipeline.stripe_api.prices import meter_prices
from billing_pipeline.stripe_api.scopes import READS, refused_reads, summaries_refused
from billing_pipeline.usage.gate import account_name, require_clock
from billing_pipeline.usage.preflight.site import Site

NOT_ASKED = "whether it may write meter events cannot be asked without writing"


def stripe_key(site: Site) -> Finding:
    """Whose key it is."""
    settings = site.settings
    key = "the simulator's" if settings.uses_simulator else mask(settings.stripe_key)
    return passes(f"{account_name(site.account.account_id, settings.livemode)}, key {key}")


def stripe_scopes(site: Site) -> Finding:
    """Everything the pipeline reads, asked one by one, so that all that is missing is told at once."""
    refused = refused_reads(site.stripe, site.settings)
    asked = list(READS)
    if not refused.keys() & {"meters", "customers"}:
        refusal = _of_summaries(site)
        asked += [] if refusal is None else ["summaries"]
        refused |= {"summaries": refusal} if refusal else {}
    if refused:
        return fails(f"may not read {', '.join(refused)}: {next(iter(refused.values()))}")
    unasked = "" if "summaries" in asked else "; summaries were not asked, there is no meter or canary customer yet"
    return passes(f"reads {', '.join(asked)}; {NOT_ASKED}{unasked}")


def _of_summaries(site: Site) -> str | None:
    """Stripe's refusal, nothing where it answers, or None where there is no meter or customer to ask of."""
    customer = at_stripe.canary_customer(site.stripe, site.settings)
    meter = next(iter(site.meters.values()), None)
    stripe_time = site.account.stripe_time
    if customer is None or meter is None or stripe_time is None:
        return None
    minute = minute_of(stripe_time - HOUR)
    words = summaries_refused(site.stripe, site.settings, meter_id=meter.meter_id, customer=customer, minute=minute)
    return words or ""


def clock(site: Site) -> Finding:
    """Both times are asked one after the other, because Stripe's of a while ago would be wrong by that while."""
    stripe_time = read_account(site.stripe, site.settings).stripe_time
    with site.reading() as connection:
        now = DatabaseClock(connection)()
    require_clock(now, stripe_time)
    if stripe_time is None:
        return warns("Stripe's answer had no time in it", "Look at what stands between this machine and Stripe.")
    return passes(f"{abs(now - stripe_time).seconds} s apart")


def meters(site: Site) -> Finding:
    """As the flush compares them before it sends."""
    if faults := at_stripe.meter_faults(site.catalogue, site.meters):
        return fails("; ".join(faults))
    return passes(", ".join(meter.event_name for meter in site.catalogue.meters))


def prices(site: Site) -> Finding:
    """Without a price, usage counts and nothing is invoiced: that may be meant, so it is told and no failure."""
    found = [_price(site, meter.event_name) for meter in site.catalogue.meters if meter.event_name in site.meters]
    told = "; ".join(text for text, _ in found) or "no meter of the catalogue is at Stripe yet"
    return passes(told) if found and all(has_one for _, has_one in found) else warns(told)


def _price(site: Site, event_name: str) -> tuple[str, bool]:
    """What hangs on a meter, and whether that invoices it."""
    counting = site.meters[event_name]
    found = meter_prices(site.stripe, site.settings, counting.meter_id)
    elsewhere = [
        price
        for meter in site.all_meters
        if meter.event_name == event_name and meter.meter_id != counting.meter_id
        for price in meter_prices(site.stripe, site.settings, meter.meter_id).active
    ]
    notes = [
        *([f"{len(found.archived)} archived"] if found.archived else []),
        *([f"{', '.join(elsewhere)} on an archived meter of that name"] if elsewhere else []),
    ]
    aside = f" ({', '.join(notes)})" if notes else ""
    return f"{event_name}: {len(found.active) or 'no'} active price{aside}", bool(found.active) and not elsewhere


def canary_customer(site: Site) -> Finding:
    """Found by its address, as the flush finds it."""
    customer = at_stripe.canary_customer(site.stripe, site.settings)
    return fails("there is none") if customer is None else passes(customer)
