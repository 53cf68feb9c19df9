"""Reads back what Stripe counted: meter event summaries, by hour or for one minute.

Called by the confirmer.  Summaries are eventually consistent, so an absent value means "not yet" until the protocol's
deadlines say otherwise.  Stripe sends floats; they are read as exact decimals and must be whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import stripe

from billing_pipeline.errors import StripeRefused
from billing_pipeline.settings import Settings
from billing_pipeline.stripe_api.client import translated_errors

PAGE_SIZE = 100  # Stripe's maximum; the default of 10 would cut a day short


class StripeSummaries:
    """The summaries of one account, asked by event name and customer."""

    def __init__(self, client: stripe.StripeClient, settings: Settings, meters: Mapping[str, str]) -> None:
        self._client = client
        self._settings = settings
        self._meters = meters

    def hours(self, event_name: str, customer: str, start: datetime, end: datetime) -> dict[datetime, int]:
        """Units per UTC hour in [start, end), both on the hour; hours without usage are absent."""
        with translated_errors(self._settings):
            page = self._client.v1.billing.meters.event_summaries.list(
                self._meter(event_name),
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

    def _meter(self, event_name: str) -> str:
        if event_name not in self._meters:
            raise StripeRefused(f"Stripe has no meter for {event_name}, so what it counted cannot be read.")
        return self._meters[event_name]

    def minute(self, event_name: str, customer: str, minute: datetime) -> int:
        """Units in the one minute that starts at `minute`; 0 when Stripe shows none."""
        with translated_errors(self._settings):
            page = self._client.v1.billing.meters.event_summaries.list(
                self._meter(event_name),
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
