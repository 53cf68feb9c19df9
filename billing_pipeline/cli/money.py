"""What units cost, for commands that show amounts: Stripe's prices where they are one number, else why not.

Money is an extra here: whoever asks has amounts to tell without it, so a Stripe that does not answer is waited for
briefly and never an error.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING

from billing_pipeline.cli.hints import amount

if TYPE_CHECKING:
    from billing_pipeline.domain.prices import UnitPrice
    from billing_pipeline.settings import Settings

PRICE_SECONDS_MAX = 5
"""How long to wait for each of Stripe's answers."""


def prices_of(settings: Settings, event_names: Collection[str]) -> tuple[Mapping[str, UnitPrice | None], str]:
    """By event name what a unit costs, and, where Stripe did not say, why not."""
    from billing_pipeline.errors import BillingError
    from billing_pipeline.stripe_api.catalogue import read_meters
    from billing_pipeline.stripe_api.client import make_client
    from billing_pipeline.stripe_api.prices import unit_prices

    if not event_names:
        return {}, ""
    briefly = {"stripe_timeout_seconds": min(PRICE_SECONDS_MAX, settings.stripe_timeout_seconds)}
    settings = settings.model_copy(update=briefly)
    try:
        client = make_client(settings)
        meters = read_meters(client, settings)
        asked = {name: meters[name].meter_id for name in sorted(event_names) if name in meters}
        return unit_prices(client, settings, asked), ""
    except BillingError as exc:
        return {}, str(exc)


def cost(units: Decimal, price: UnitPrice | None) -> str:
    """What units cost, in the currency's minor unit."""
    return f"{amount(units * price.minor_units)} minor units of {price.currency}" if price else "price unknown"
