"""Which addresses Stripe sends webhooks to, and registering one: an endpoint for snapshots, one for thin events.

Only `up` registers, with the simulator; at the real Stripe the Dashboard does, where a person sees the secrets once.
"""

from __future__ import annotations

import stripe

from billing_pipeline.domain.envelope import PayloadStyle
from billing_pipeline.domain.webhook_endpoints import Endpoint
from billing_pipeline.errors import StripeRefused
from billing_pipeline.settings import Settings
from billing_pipeline.stripe_api.client import translated_errors
from billing_pipeline.stripe_api.error_reports import REPORT_TYPES

SECRET_INCLUDED = "webhook_endpoint.signing_secret"
URL_INCLUDED = "webhook_endpoint.url"
ENABLED = "enabled"


def is_registered(client: stripe.StripeClient, settings: Settings, url: str) -> bool:
    """Whether Stripe sends its snapshots to this address."""
    with translated_errors(settings):
        return any(endpoint.url == url for endpoint in client.v1.webhook_endpoints.list().auto_paging_iter())


def registered(client: stripe.StripeClient, settings: Settings) -> list[Endpoint]:
    """Every address that Stripe sends events to, of the key's account and mode.

    Endpoints of API v1 are listed apart from the event destinations of v2; only those may be thin.
    Raises `StripeUnavailable` or `StripeRefused`.
    """
    with translated_errors(settings):
        endpoints = [
            Endpoint(
                found.id,
                found.url,
                PayloadStyle.SNAPSHOT,
                found.status == ENABLED,
                found.livemode,
                tuple(found.enabled_events),
            )
            for found in client.v1.webhook_endpoints.list({"limit": 100}).auto_paging_iter()
        ]
        destinations = [
            Endpoint(
                found.id,
                found.webhook_endpoint.url or "",
                PayloadStyle(found.event_payload),
                found.status == ENABLED,
                found.livemode,
                tuple(found.enabled_events),
            )
            for found in client.v2.core.event_destinations.list({"include": [URL_INCLUDED]}).auto_paging_iter()
            if found.webhook_endpoint
        ]
    return endpoints + destinations


def register(client: stripe.StripeClient, settings: Settings, url: str) -> tuple[str, ...]:
    """Have every event sent to `url`; return the secrets that sign them, which Stripe never shows again.

    Raises `StripeRefused` with a live key: what a live account sends is for a person to decide.
    """
    if settings.livemode:
        raise StripeRefused("Webhook endpoints are not made with a live key; make them in Stripe's Dashboard.")
    with translated_errors(settings):
        snapshots = client.v1.webhook_endpoints.create({"url": url, "enabled_events": ["*"]})
        thin = client.v2.core.event_destinations.create(
            {
                "name": "Meter error reports",
                "type": "webhook_endpoint",
                "event_payload": "thin",
                "enabled_events": list(REPORT_TYPES),
                "webhook_endpoint": {"url": url},
                "include": [SECRET_INCLUDED],
            }
        )
    secrets = (snapshots.secret, thin.webhook_endpoint.signing_secret if thin.webhook_endpoint else None)
    if not all(secrets):
        raise StripeRefused("Stripe did not show the secret of a webhook endpoint that it made.")
    return tuple(str(secret) for secret in secrets)
