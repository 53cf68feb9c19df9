"""Customers at Stripe for organizations that have none: for test accounts and the simulator only.

In production the product creates its customers; here `create-customers` and the demo do.
"""

from __future__ import annotations

from collections.abc import Sequence

import stripe

from billing_pipeline.errors import StripeRefused
from billing_pipeline.settings import Settings
from billing_pipeline.stripe_api.client import translated_errors


def create_customers(
    client: stripe.StripeClient, settings: Settings, organization_ids: Sequence[str]
) -> dict[str, str]:
    """Make one customer per organization: organization id -> customer id.  Raises `StripeRefused` with a live key."""
    if settings.livemode:
        raise StripeRefused("Customers are not made with a live key; map the ones your product has created.")
    with translated_errors(settings):
        return {
            organization_id: client.v1.customers.create(
                {"name": organization_id, "metadata": {"organization_id": organization_id}},
                {"idempotency_key": f"customer-of-{organization_id}"},
            ).id
            for organization_id in organization_ids
        }
