"""A checkout session: which organization bought, and as which customer and subscription of Stripe's."""

from __future__ import annotations

from billing_pipeline.domain.envelope import organization_hint
from billing_pipeline.domain.projections.projected import ObjectKind, Projected
from billing_pipeline.domain.projections.reading import Object, id_of, instant, required, text

PAID = frozenset({"paid", "no_payment_required"})


def project_checkout_session(session: Object) -> Projected:
    """The row of `checkout_sessions`.  Raises `EventUnreadable`."""
    session_id, customer_id = required(session, "id"), id_of(session, "customer")
    status, payment = text(session, "status"), text(session, "payment_status")
    # A payment that takes days completes the session first and is paid later.
    paid = status == "complete" and payment in PAID
    return Projected(
        ObjectKind.CHECKOUT_SESSION,
        session_id,
        customer_id,
        {
            "stripe_session_id": session_id,
            "stripe_customer_id": customer_id,
            "stripe_subscription_id": id_of(session, "subscription"),
            "organization_hint": organization_hint(session),
            "mode": required(session, "mode"),
            "status": status,
            "payment_status": payment,
            "created_at": instant(session, "created"),
        },
        terminal=paid or status == "expired",
        rank=1 if status == "complete" else 0,
    )
