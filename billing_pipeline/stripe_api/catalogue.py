"""The catalogue's objects at Stripe: meters by event name, and what a fresh account needs to be billed at all.

`active_meters` is read at the start of every flush; `set_up_catalogue` is what a person, or the demo, runs once.
Everything is looked up before it is made, so a second run makes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass

import stripe

from billing_pipeline.domain.catalogue import Aggregation, Catalogue, Meter
from billing_pipeline.errors import StripeRefused
from billing_pipeline.settings import Settings
from billing_pipeline.stripe_api.client import translated_errors


@dataclass(frozen=True, slots=True)
class SetUpReport:
    """Event names whose meter was made, and those that were there."""

    created: tuple[str, ...]
    existing: tuple[str, ...]


def active_meters(client: stripe.StripeClient, settings: Settings) -> dict[str, str]:
    """Stripe's active meters: event name -> meter id."""
    with translated_errors(settings):
        meters = client.v1.billing.meters.list({"status": "active", "limit": 100})
        return {meter.event_name: meter.id for meter in meters.auto_paging_iter()}


def require_meters(catalogue: Catalogue, meters_at_stripe: dict[str, str]) -> None:
    """Raises `StripeRefused` naming every meter of the catalogue that Stripe does not have."""
    absent = [meter.event_name for meter in catalogue.meters if meter.event_name not in meters_at_stripe]
    if absent:
        raise StripeRefused(
            f"Stripe has no active meter for {', '.join(absent)}. "
            "Run `billing-pipeline stripe-setup`, or mend the catalogue."
        )


def set_up_catalogue(client: stripe.StripeClient, settings: Settings, catalogue: Catalogue) -> SetUpReport:
    """Make the meters of the catalogue that Stripe does not have yet."""
    existing = active_meters(client, settings)
    missing = [meter for meter in catalogue.meters if meter.event_name not in existing]
    with translated_errors(settings):
        for meter in missing:
            client.v1.billing.meters.create(_meter_params(meter))
    return SetUpReport(
        created=tuple(meter.event_name for meter in missing),
        existing=tuple(meter.event_name for meter in catalogue.meters if meter.event_name in existing),
    )


def _meter_params(meter: Meter) -> stripe.params.billing.MeterCreateParams:
    # Every aggregation reaches Stripe as deltas of one sum, so that late usage and corrections need no other verb.
    assert meter.aggregation in Aggregation
    return {
        "display_name": meter.name.replace("_", " ").capitalize(),
        "event_name": meter.event_name,
        "default_aggregation": {"formula": "sum"},
        "customer_mapping": {"type": "by_id", "event_payload_key": "stripe_customer_id"},
        "value_settings": {"event_payload_key": "value"},
    }
