"""The probe about Stripe's webhooks: whether Stripe sends to the intake all that it must hear of.

GET only, and no delivery: that one arrives is seen in `stripe_events`.
"""

from __future__ import annotations

from billing_pipeline.domain.probes import Finding, fails, passes, warns
from billing_pipeline.domain.webhook_endpoints import endpoint_faults
from billing_pipeline.stripe_api.error_reports import REPORT_TYPES
from billing_pipeline.stripe_api.webhook_endpoints import registered
from billing_pipeline.usage.preflight.site import Site


def webhook_endpoint(site: Site) -> Finding:
    """No flush needs webhooks, so without an address there is nothing to ask; who goes live is told of that."""
    settings = site.settings
    url = settings.billing_webhook_url
    if url is None:
        told = "not asked, because BILLING_WEBHOOK_URL is not set"
        return warns(told) if site.require_enabled else passes(told)
    if not settings.webhook_secrets:
        return fails("BILLING_WEBHOOK_URL is set and STRIPE_WEBHOOK_SECRET is not, so nothing would be taken there")
    endpoints = registered(site.stripe, settings)
    if faults := endpoint_faults(endpoints, url, livemode=settings.livemode, thin_types=REPORT_TYPES):
        return fails("; ".join(faults))
    return passes(f"Stripe sends to {url}")
