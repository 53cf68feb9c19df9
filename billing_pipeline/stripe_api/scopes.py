"""Which of the things that the pipeline reads at Stripe a key may read, asked one by one, with GET only.

Asked by the preflight, because a restricted key that lacks one permission fails in the middle of a flush.  Whether a
key may write cannot be asked without writing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from functools import partial
from typing import Any

import stripe

from billing_pipeline.settings import Settings
from billing_pipeline.stripe_api.client import AUTH_ERRORS, stripe_words, translated_errors
from billing_pipeline.stripe_api.error_reports import REPORT_TYPES

READS: Mapping[str, Callable[[stripe.StripeClient], Any]] = {
    "meters": lambda client: client.v1.billing.meters.list({"limit": 1}),
    "prices": lambda client: client.v1.prices.list({"limit": 1}),
    "customers": lambda client: client.v1.customers.list({"limit": 1}),
    "invoices": lambda client: client.v1.invoices.list({"limit": 1}),
    "subscriptions": lambda client: client.v1.subscriptions.list({"limit": 1}),
    "events": lambda client: client.v2.core.events.list({"limit": 1, "types": list(REPORT_TYPES)}),
}
"""What the pipeline reads; a meter's summaries are asked beside them, because they need a meter and a customer."""


def refused_reads(client: stripe.StripeClient, settings: Settings) -> dict[str, str]:
    """What the key may not read, with Stripe's words; empty when it may read everything.

    Raises `StripeUnavailable`, and `StripeRefused` for a refusal of another kind.
    """
    asked = {name: _refusal(settings, partial(read, client)) for name, read in READS.items()}
    return {name: words for name, words in asked.items() if words is not None}


def summaries_refused(
    client: stripe.StripeClient, settings: Settings, *, meter_id: str, customer: str, minute: datetime
) -> str | None:
    """Stripe's words where the key may not read the summaries of one meter and customer, here of one minute."""

    def read() -> Any:
        start = int(minute.timestamp())
        return client.v1.billing.meters.event_summaries.list(
            meter_id, {"customer": customer, "start_time": start, "end_time": start + 60}
        )

    return _refusal(settings, read)


def _refusal(settings: Settings, read: Callable[[], Any]) -> str | None:
    with translated_errors(settings):
        try:
            read()
        except AUTH_ERRORS as exc:
            return stripe_words(exc)
    return None
