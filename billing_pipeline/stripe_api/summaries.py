"""Reads back what Stripe counted: meter event summaries, by day, by hour or for one minute.

Called by the confirmer and by recovery.  Summaries are eventually consistent, so an absent value means "not yet" until
the protocol's deadlines say otherwise.  Stripe sends floats; they are read as exact decimals and must be whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Literal

import stripe

from billing_pipeline.errors import StripeRefused
from billing_pipeline.settings import Settings
from billing_pipeline.stripe_api.client import translated_errors

PAGE_SIZE = 100  # Stripe's maximum; the default of 10 would cut a day short
EXACT_MAX = 2**53
"""From here on a float no longer tells neighbouring whole numbers apart."""
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


class StripeSummaries:
    """The summaries of one account, asked by event name and customer."""

    def __init__(self, client: stripe.StripeClient, settings: Settings, meters: Mapping[str, str]) -> None:
        self._client = client
        self._settings = settings
        self._meters = meters

    def days(self, event_name: str, customer: str, start: datetime, end: datetime) -> dict[datetime, int]:
        """Units per UTC day in [start, end), both at midnight; days without usage are absent."""
        return self._spans(event_name, customer, start, end, "day", DAY)

    def hours(self, event_name: str, customer: str, start: datetime, end: datetime) -> dict[datetime, int]:
        """Units per UTC hour in [start, end), both on the hour; hours without usage are absent."""
        return self._spans(event_name, customer, start, end, "hour", HOUR)

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
            return sum(self._units(summary) for summary in page.data)

    def _spans(
        self,
        event_name: str,
        customer: str,
        start: datetime,
        end: datetime,
        grouping: Literal["day", "hour"],
        length: timedelta,
    ) -> dict[datetime, int]:
        found: dict[datetime, int] = {}
        with translated_errors(self._settings):
            page = self._client.v1.billing.meters.event_summaries.list(
                self._meter(event_name),
                {
                    "customer": customer,
                    "start_time": int(start.timestamp()),
                    "end_time": int(end.timestamp()),
                    "value_grouping_window": grouping,
                    "limit": PAGE_SIZE,
                },
            )
            for summary in page.auto_paging_iter():
                span = datetime.fromtimestamp(summary.start_time, UTC)
                # Each span once: pages that overlap, or bounds read otherwise than meant, must not become evidence.
                if span in found or not start <= span < end or (span - start) % length:
                    raise StripeRefused(
                        f"Stripe's summaries of {event_name} for {customer} from {start:%Y-%m-%d %H:%M} to "
                        f"{end:%Y-%m-%d %H:%M} UTC list {span:%Y-%m-%d %H:%M} twice or out of place; "
                        "nothing is concluded from them."
                    )
                found[span] = self._units(summary)
        return found

    def _meter(self, event_name: str) -> str:
        if event_name not in self._meters:
            raise StripeRefused(f"Stripe has no meter for {event_name}, so what it counted cannot be read.")
        return self._meters[event_name]

    def _units(self, summary: stripe.billing.MeterEventSummary) -> int:
        if summary.livemode != self._settings.livemode:
            raise StripeRefused(
                f"A summary is of {'live' if summary.livemode else 'test'} mode, and the key is not: "
                "something stands between this pipeline and Stripe. Nothing is concluded from it."
            )
        return whole_units(summary.aggregated_value)


def whole_units(value: float | int | str) -> int:
    """Stripe's float as the integer it stands for.

    Raises `StripeRefused` when it is not whole, or so large that a float would stand for several integers.
    """
    exact = Decimal(str(value))
    if not exact.is_finite() or exact != exact.to_integral_value():
        raise StripeRefused(
            f"Stripe shows {value} units where only whole units were sent; someone else writes this meter."
        )
    if abs(exact) >= EXACT_MAX:
        raise StripeRefused(f"Stripe shows {value} units, more than its floats hold exactly (2^53); nothing is proved.")
    return int(exact)
