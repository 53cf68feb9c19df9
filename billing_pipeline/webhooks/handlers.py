"""Which events change what: from a stored event to the object it shows, or to the question it leaves.

A handler belongs to a kind of object and is the only writer of its table.  Events whose type is not here are stored and
ignored; so are charges, which nothing here is kept of.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from billing_pipeline.domain.envelope import THIN_OBJECT
from billing_pipeline.domain.projections.checkout import project_checkout_session
from billing_pipeline.domain.projections.customers import project_customer
from billing_pipeline.domain.projections.features import project_feature_summary
from billing_pipeline.domain.projections.invoices import project_invoice
from billing_pipeline.domain.projections.projected import ObjectKind, Projected
from billing_pipeline.domain.projections.reading import Object, part
from billing_pipeline.domain.projections.subscriptions import project_subscription


@dataclass(frozen=True, slots=True)
class Handler:
    """How events of one kind of object are read, and the table that keeps it.

    `types` are event types, or beginnings of them where they end with a dot.
    """

    kind: ObjectKind
    table: str
    types: tuple[str, ...]
    project: Callable[[Object], Projected]

    def takes(self, event_type: str) -> bool:
        """Whether an event of this type is one of ours."""
        return any(event_type == name or (name.endswith(".") and event_type.startswith(name)) for name in self.types)


HANDLERS = {
    handler.kind: handler
    for handler in (
        Handler(
            ObjectKind.CUSTOMER,
            "stripe_customers",
            ("customer.created", "customer.updated", "customer.deleted"),
            project_customer,
        ),
        Handler(ObjectKind.SUBSCRIPTION, "subscriptions", ("customer.subscription.",), project_subscription),
        Handler(ObjectKind.INVOICE, "invoices", ("invoice.",), project_invoice),
        Handler(ObjectKind.CHECKOUT_SESSION, "checkout_sessions", ("checkout.session.",), project_checkout_session),
        Handler(
            ObjectKind.FEATURE_SUMMARY,
            "feature_summaries",
            ("entitlements.active_entitlement_summary.updated",),
            project_feature_summary,
        ),
    )
}

TYPE_PATTERNS = tuple(
    f"{name}%" if name.endswith(".") else name for handler in HANDLERS.values() for name in handler.types
)
"""The types of all of them, as SQL's LIKE has them."""

NOT_YET_AN_INVOICE = "invoice.upcoming"
"""Shows an invoice that does not exist yet, under no id or one that passes."""

GONE = ("customer.deleted", "invoice.deleted")
"""Events whose object does not itself say that it is gone."""


@dataclass(frozen=True, slots=True)
class Question:
    """An object that an event names without showing it."""

    kind: ObjectKind
    object_id: str


def understood(event_type: str, payload: Mapping[str, Any]) -> Projected | Question | None:
    """What an event shows or asks; None where it is nothing of ours.  Raises `EventUnreadable`."""
    if payload.get("object") == THIN_OBJECT:
        return _question(payload)
    shown = part(payload, "data", "object")
    handler = _handler_of(shown.get("object"))
    if handler is None or not handler.takes(event_type) or event_type == NOT_YET_AN_INVOICE:
        return None
    return handler.project({**shown, "deleted": True} if event_type in GONE else shown)


def _question(notification: Mapping[str, Any]) -> Question | None:
    about = notification.get("related_object") or {}
    handler = _handler_of(about.get("type"))
    object_id = about.get("id")
    return Question(handler.kind, object_id) if handler and isinstance(object_id, str) else None


def _handler_of(kind: object) -> Handler | None:
    return next((handler for handler in HANDLERS.values() if handler.kind == kind), None)
