"""Reads which prices hang on a meter at Stripe, and what a unit costs where that is one number.

Asked to say what waiting usage is worth, and by the preflight whether it is invoiced at all.  A meter with several
active prices, with tiers or with packages has no price of its own: what a unit costs depends on the customer or on the
quantity.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal

import stripe

from billing_pipeline.domain.prices import UnitPrice
from billing_pipeline.errors import BillingError
from billing_pipeline.settings import Settings
from billing_pipeline.stripe_api.catalogue import read_meters
from billing_pipeline.stripe_api.client import make_client, translated_errors

PRICE_SECONDS_MAX = 5
"""How long a person who asks waits for Stripe: without the prices there is still everything else to tell."""


def prices_or_why_not(settings: Settings, event_names: Iterable[str]) -> tuple[Mapping[str, UnitPrice | None], str]:
    """By event name what a unit costs, and, where Stripe did not say, why not."""
    names = sorted(set(event_names))
    if not names:
        return {}, ""
    quick = settings.model_copy(
        update={"stripe_timeout_seconds": min(PRICE_SECONDS_MAX, settings.stripe_timeout_seconds)}
    )
    try:
        client = make_client(quick)
        meters = read_meters(client, quick)
        return unit_prices(client, quick, {name: meters[name].meter_id for name in names if name in meters}), ""
    except BillingError as exc:
        return {}, str(exc)


@dataclass(frozen=True, slots=True)
class MeterPrices:
    """The ids of the prices that hang on one meter."""

    active: tuple[str, ...]
    archived: tuple[str, ...]


def meter_prices(client: stripe.StripeClient, settings: Settings, meter_id: str) -> MeterPrices:
    """Every price of Stripe's meter `meter_id`.  Raises `StripeUnavailable` or `StripeRefused`."""
    with translated_errors(settings):
        found = list(client.v1.prices.list({"recurring": {"meter": meter_id}, "limit": 100}).auto_paging_iter())
    active = {price.id: price.active for price in found}
    return MeterPrices(
        active=tuple(id for id, is_active in active.items() if is_active),
        archived=tuple(id for id, is_active in active.items() if not is_active),
    )


def unit_prices(
    client: stripe.StripeClient, settings: Settings, meter_ids: Mapping[str, str]
) -> dict[str, UnitPrice | None]:
    """By event name, the one active metered price per unit, or None; `meter_ids` are Stripe's, by event name.

    Raises `StripeUnavailable` or `StripeRefused`.
    """
    prices = {}
    with translated_errors(settings):
        for event_name, meter_id in meter_ids.items():
            # Two are enough to know that there is not one.
            found = client.v1.prices.list({"active": True, "recurring": {"meter": meter_id}, "limit": 2}).data
            prices[event_name] = unit_price_of(found[0]) if len(found) == 1 else None
    return prices


def unit_price_of(price: stripe.Price) -> UnitPrice | None:
    """What every unit costs; None for tiers and packages."""
    is_per_unit = price.billing_scheme == "per_unit" and price.transform_quantity is None
    if not is_per_unit or price.unit_amount_decimal is None:
        return None
    return UnitPrice(price.currency, Decimal(price.unit_amount_decimal))
