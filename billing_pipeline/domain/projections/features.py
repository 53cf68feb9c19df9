"""A customer's active features as Stripe's entitlements have them: the whole list, each time.

Stripe's summary has no id of its own; there is one per customer.
"""

from __future__ import annotations

from billing_pipeline.domain.projections.projected import ObjectKind, Projected
from billing_pipeline.domain.projections.reading import Object, id_of, items_of, required


def project_feature_summary(summary: Object) -> Projected:
    """The row of `feature_summaries`.  Raises `EventUnreadable`."""
    customer_id = id_of(summary, "customer") or required(summary, "customer")
    members, complete = items_of(summary, "entitlements")
    return Projected(
        ObjectKind.FEATURE_SUMMARY,
        customer_id,
        customer_id,
        {
            "stripe_customer_id": customer_id,
            "features": sorted({required(member, "lookup_key") for member in members}),
            "features_complete": complete,
        },
        terminal=False,
        rank=0,
        complete=complete,
    )
