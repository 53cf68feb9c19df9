"""A Stripe customer: whose it says it is, and whether it is still there.  Names and addresses are not kept."""

from __future__ import annotations

from billing_pipeline.domain.envelope import organization_hint
from billing_pipeline.domain.projections.projected import ObjectKind, Projected
from billing_pipeline.domain.projections.reading import Object, boolean, instant, required, text


def project_customer(customer: Object) -> Projected:
    """The row of `stripe_customers`.  Raises `EventUnreadable`."""
    customer_id = required(customer, "id")
    deleted = boolean(customer, "deleted") or False
    return Projected(
        ObjectKind.CUSTOMER,
        customer_id,
        customer_id,
        {
            "stripe_customer_id": customer_id,
            "organization_hint": organization_hint(customer),
            "currency": text(customer, "currency"),
            "delinquent": boolean(customer, "delinquent"),
            "deleted": deleted,
            "created_at": instant(customer, "created"),
        },
        terminal=deleted,
        rank=0,
    )
