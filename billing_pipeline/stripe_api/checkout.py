"""Opens a checkout at Stripe in which an organization buys its subscription.

The session carries the organization, so the webhook that reports its end says whose the subscription is.
"""

from __future__ import annotations

import stripe

from billing_pipeline.errors import StripeRefused
from billing_pipeline.settings import Settings
from billing_pipeline.stripe_api.client import translated_errors


def open_checkout(
    client: stripe.StripeClient,
    settings: Settings,
    *,
    organization_id: str,
    customer_id: str | None,
    price_id: str,
    return_url: str,
) -> str:
    """The address of a new checkout session.  Raises `StripeUnavailable` or `StripeRefused`."""
    params: stripe.params.checkout.SessionCreateParams = {
        "mode": "subscription",
        "client_reference_id": organization_id,
        "line_items": [{"price": price_id, "quantity": 1}],
        "metadata": {"organization_id": organization_id},
        "subscription_data": {"metadata": {"organization_id": organization_id}},
        "success_url": return_url,
        "cancel_url": return_url,
    }
    if customer_id is not None:
        params["customer"] = customer_id
    with translated_errors(settings):
        url = client.v1.checkout.sessions.create(params).url
    if url is None:
        raise StripeRefused("Stripe opened a checkout session without an address.")
    return url
