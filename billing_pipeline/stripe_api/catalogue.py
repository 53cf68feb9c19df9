"""The catalogue's objects at Stripe: meters by event name, and what a fresh account needs to be billed at all.

`read_meters` is asked at the start of every flush; `set_up_catalogue` is what a person, or the demo, runs once.
Everything is looked up before it is made, so a second run makes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import stripe

from billing_pipeline.domain.catalogue import Catalogue, Meter
from billing_pipeline.errors import StripeRefused
from billing_pipeline.settings import Settings
from billing_pipeline.stripe_api.client import translated_errors

CANARY_EMAIL = "canary@billing-pipeline.invalid"


@dataclass(frozen=True, slots=True)
class SetUpReport:
    """Event names whose meter was made, and those that were there."""

    created: tuple[str, ...]
    existing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class StripeMeter:
    """A meter as Stripe has it."""

    meter_id: str
    event_name: str
    active: bool
    formula: str
    event_time_window: str | None
    customer_key: str
    value_key: str


def read_meters(client: stripe.StripeClient, settings: Settings) -> dict[str, StripeMeter]:
    """Stripe's meters by event name; an active one hides archived ones of the same name."""
    return by_event_name(list_meters(client, settings))


def list_meters(client: stripe.StripeClient, settings: Settings) -> list[StripeMeter]:
    """All meters of the account, archived ones too.  Raises `StripeUnavailable` or `StripeRefused`."""
    with translated_errors(settings):
        return [_stripe_meter(meter) for meter in client.v1.billing.meters.list({"limit": 100}).auto_paging_iter()]


def by_event_name(meters: Iterable[StripeMeter]) -> dict[str, StripeMeter]:
    """The one that counts for each event name: an active one hides archived ones."""
    return {meter.event_name: meter for meter in sorted(meters, key=lambda meter: meter.active)}


def require_meters(catalogue: Catalogue, meters: dict[str, StripeMeter]) -> None:
    """Raises `StripeRefused` naming every meter of the catalogue that Stripe lacks, or counts in another way.

    A wrong formula or window would not show before the money is wrong: Stripe takes the events all the same.
    """
    if faults := meter_faults(catalogue, meters):
        raise StripeRefused(
            f"{'; '.join(faults)}. Nothing is sent. Run `billing-pipeline stripe-setup`, or mend the catalogue."
        )


def meter_faults(catalogue: Catalogue, meters: Mapping[str, StripeMeter]) -> list[str]:
    """What Stripe lacks of the catalogue, or counts in another way, a sentence per meter; empty when all agrees."""
    return [fault for meter in catalogue.meters if (fault := _fault(meter, meters.get(meter.event_name))) is not None]


def _fault(meter: Meter, found: StripeMeter | None) -> str | None:
    if found is None or not found.active:
        return f"Stripe has no active meter for {meter.event_name}"
    expected = _meter_params(meter)
    wanted = (
        expected["default_aggregation"]["formula"],
        None,
        expected["customer_mapping"]["event_payload_key"],
        expected["value_settings"]["event_payload_key"],
    )
    has = (found.formula, found.event_time_window, found.customer_key, found.value_key)
    if has != wanted:
        return (
            f"Stripe's meter for {meter.event_name} has (formula, window, customer key, value key) {has}, not {wanted}"
        )
    return None


def _stripe_meter(meter: stripe.billing.Meter) -> StripeMeter:
    return StripeMeter(
        meter_id=meter.id,
        event_name=meter.event_name,
        active=meter.status == "active",
        formula=meter.default_aggregation.formula,
        event_time_window=meter.event_time_window,
        customer_key=meter.customer_mapping.event_payload_key,
        value_key=meter.value_settings.event_payload_key,
    )


def canary_customer(client: stripe.StripeClient, settings: Settings) -> str | None:
    """The customer that canaries are sent for, or None before setup."""
    with translated_errors(settings):
        found = client.v1.customers.list({"email": CANARY_EMAIL, "limit": 1}).data
    return found[0].id if found else None


def set_up_catalogue(client: stripe.StripeClient, settings: Settings, catalogue: Catalogue) -> SetUpReport:
    """Make the meters of the catalogue that Stripe does not have yet, and the canary's customer.

    The canary's customer gets no subscription, so that no invoice ever shows a canary.
    """
    if canary_customer(client, settings) is None:
        with translated_errors(settings):
            client.v1.customers.create({"name": "billing_pipeline canary (never invoiced)", "email": CANARY_EMAIL})
    existing = {name for name, meter in read_meters(client, settings).items() if meter.active}
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
    return {
        "display_name": meter.name.replace("_", " ").capitalize(),
        "event_name": meter.event_name,
        "default_aggregation": {"formula": "sum"},
        "customer_mapping": {"type": "by_id", "event_payload_key": "stripe_customer_id"},
        "value_settings": {"event_payload_key": "value"},
    }
