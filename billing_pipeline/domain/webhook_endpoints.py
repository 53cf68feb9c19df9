"""What Stripe must have registered so that this intake hears of everything: the rule behind the preflight's probe.

Stripe sends an endpoint only the types it was given, and switches off one that has failed for days; both are silent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from billing_pipeline.domain.envelope import PayloadStyle

EVERY_TYPE = "*"

NEEDED_TYPES = (
    "customer.created",
    "customer.updated",
    "customer.deleted",
    "customer.subscription.created",
    "customer.subscription.updated",
    "customer.subscription.deleted",
    "customer.subscription.paused",
    "customer.subscription.resumed",
    "invoice.created",
    "invoice.updated",
    "invoice.deleted",
    "invoice.finalized",
    "invoice.paid",
    "invoice.payment_failed",
    "invoice.voided",
    "invoice.marked_uncollectible",
    "checkout.session.completed",
    "checkout.session.async_payment_succeeded",
    "checkout.session.async_payment_failed",
    "checkout.session.expired",
    "entitlements.active_entitlement_summary.updated",
)
"""Without one of these a change at Stripe is first seen when the objects are read again."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address that Stripe sends events to; `event_types` as they were registered, or `*`."""

    endpoint_id: str
    url: str
    style: PayloadStyle
    enabled: bool
    livemode: bool
    event_types: tuple[str, ...]


def endpoint_faults(
    endpoints: Sequence[Endpoint], url: str, *, livemode: bool, thin_types: Sequence[str]
) -> tuple[str, ...]:
    """What keeps events from `url`; empty where every type comes there, and the thin ones in the thin form."""
    ours = [endpoint for endpoint in endpoints if endpoint.url == url and endpoint.livemode is livemode]
    if not ours:
        mode = "live" if livemode else "test"
        return (f"Stripe sends nothing to {url} in {mode} mode; endpoints it has elsewhere: {len(endpoints)}",)
    off = [f"{endpoint.endpoint_id} is disabled" for endpoint in ours if not endpoint.enabled]
    wanted = ((PayloadStyle.SNAPSHOT, NEEDED_TYPES, ""), (PayloadStyle.THIN, thin_types, " as thin events"))
    unsent = [
        f"no enabled endpoint there is sent {', '.join(missing)}{how}"
        for style, types, how in wanted
        if (missing := _missing(ours, style, types))
    ]
    return (*off, *unsent)


def _missing(endpoints: Sequence[Endpoint], style: PayloadStyle, types: Sequence[str]) -> list[str]:
    sent = {
        name for endpoint in endpoints if endpoint.enabled and endpoint.style is style for name in endpoint.event_types
    }
    return [] if EVERY_TYPE in sent else [name for name in types if name not in sent]
