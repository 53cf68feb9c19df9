"""What units that wait are worth, for the commands that list them.

Asks Stripe for prices, briefly: without them a list still has the units to tell.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from billing_pipeline.domain.prices import UnitPrice
    from billing_pipeline.usage.flush import UsageFlow

PRICE_SECONDS_MAX = 5
"""How long a list waits for Stripe."""


def prices_of(flow: UsageFlow, event_names: Collection[str]) -> tuple[Mapping[str, UnitPrice | None], str]:
    """By event name what a unit costs, and, where Stripe did not say, why not."""
    from billing_pipeline.errors import BillingError
    from billing_pipeline.stripe_api.catalogue import read_meters
    from billing_pipeline.stripe_api.client import make_client
    from billing_pipeline.stripe_api.prices import unit_prices

    if not event_names:
        return {}, ""
    settings = flow.settings.model_copy(
        update={"stripe_timeout_seconds": min(PRICE_SECONDS_MAX, flow.settings.stripe_timeout_seconds)}
    )
    try:
        client = make_client(settings)
        meters = read_meters(client, settings)
        asked = {name: meters[name].meter_id for name in sorted(event_names) if name in meters}
        return unit_prices(client, settings, asked), ""
    except BillingError as exc:
        return {}, str(exc)
