"""Reads back what Stripe counted: meter event summaries, by hour or for one minute.

Called by the confirmer.  Summaries are eventually consistent, so an absent value means "not yet" until the protocol's
deadlines say otherwise.  Stripe sends floats; they are read as exact decimals and must be whole.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import stripe

from billing_pipeline.errors import StripeRefused
from billing_pipeline.settings import Settings
from billing_pipeline.stripe_api.client import translated_errors

PAGE_SIZE = 100  # Stripe's maximum; the default of 10 would cut a day short


def hour_summaries(
    client: stripe.StripeClient, settings: Settings, *, meter_id: str, customer: str, start: datetime, end: datetime
) -> dict[datetime, int]:
    """Units per UTC hour in [start, end), both on the hour; hours without usage are absent."""
    with translated_errors(settings):
        page = client.v1.billing.meters.event_summaries.list(
            meter_id,
            {
                "customer": customer,
                "start_time": int(start.timestamp()),
                "end_time": int(end.timestamp()),
                "value_grouping_window": "hour",
                "limit": PAGE_SIZE,
            },
        )
        return {
            datetime.fromtimestamp(summary.start_time, UTC): whole_units(summary.aggregated_value)
            for summary in page.auto_paging_iter()
        }


def minute_summary(
    client: stripe.StripeClient, settings: Settings, *, meter_id: str, customer: str, minute: datetime
) -> int:
    """Units in the one minute that starts at `minute`; 0 when Stripe shows none."""
    with translated_errors(settings):
        page = client.v1.billing.meters.event_summaries.list(
            meter_id,
            {
                "customer": customer,
                "start_time": int(minute.timestamp()),
                "end_time": int((minute + timedelta(minutes=1)).timestamp()),
            },
        )
        return sum(whole_units(summary.aggregated_value) for summary in page.data)


def whole_units(value: float | int | str) -> int:
    """Stripe's float as the integer it stands for.  Raises `StripeRefused` when it is not whole."""
    exact = Decimal(str(value))
    if exact != exact.to_integral_value():
        raise StripeRefused(
            f"Stripe shows {value} units where only whole units were sent; someone else writes this meter."
        )
    return int(exact)
