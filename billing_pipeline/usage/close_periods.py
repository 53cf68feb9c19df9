"""Closes periods when Stripe has made the draft of their invoice: flush first, then put late usage on the draft.

A draft stays one for an hour, so this follows `invoice.created` within minutes: what can still be stated by a meter
event is stated, and what sealed periods are owed becomes an invoice item (`usage/adjust.py`).
The command, Dagster's asset and the tests run it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta

from billing_pipeline.domain.adjustments import Adjustment, Left
from billing_pipeline.settings import Level
from billing_pipeline.stripe_api.invoice_items import StripeInvoiceItems, read_draft
from billing_pipeline.usage.adjust import (
    OpenDraft,
    SendReport,
    drafts_to_close,
    has_due_adjustments,
    send_adjustments,
    write_adjustments,
)
from billing_pipeline.usage.flow import UsageFlow
from billing_pipeline.usage.flush import flush

milestones = logging.getLogger("billing_pipeline.milestones")

DRAFTS_MAX = 500
ITEMS_MAX = 1_000
"""At once; more waits for the next time."""
SETTLING = timedelta(minutes=1)
"""So long after its windows' grace a draft is closed."""


@dataclass(frozen=True, slots=True)
class ClosedInvoice:
    """What one draft was given; `is_late`: it was final already."""

    stripe_invoice_id: str
    stripe_customer_id: str
    is_late: bool
    adjustments: tuple[Adjustment, ...]
    left: tuple[Left, ...]


@dataclass(frozen=True, slots=True)
class CloseReport:
    """Every draft that was closed, and what became of the items."""

    closed: tuple[ClosedInvoice, ...] = ()
    sent: SendReport = field(default_factory=SendReport)


def waits_to_be_closed(flow: UsageFlow) -> list[OpenDraft]:
    """The drafts that are old enough: the last usage windows of their period have had their grace."""
    return drafts_to_close(flow.connection, created_before=flow.closed_before() - SETTLING, limit=DRAFTS_MAX)


def close_periods(flow: UsageFlow, on_progress: Callable[[int], None] = lambda sent: None) -> CloseReport:
    """Close what waits; nothing unless billing is live.  `on_progress` is told how many meter events were sent.

    Raises `LeaseHeld` when a flush is under way, and what a flush raises.
    """
    if flow.settings.level is not Level.LIVE:
        return CloseReport()
    drafts = waits_to_be_closed(flow)
    if drafts:
        flush(flow, on_progress=on_progress)
    elif not has_due_adjustments(flow.connection, now=flow.clock()):
        return CloseReport()
    try:
        flow.take_lease()
        flow.pass_gate()
        # First what an earlier run has left in doubt.
        sent, closed = _send(flow), []
        for draft in drafts:
            closed.append(_close(flow, draft))
            sent += _send(flow)
            _tell(closed[-1])
    finally:
        flow.give_lease_back()
    return CloseReport(tuple(closed), sent)


def _send(flow: UsageFlow) -> SendReport:
    items = StripeInvoiceItems(flow.stripe, flow.settings)
    return send_adjustments(flow.connection, items, flow.settings.protocol_times, flow.clock, limit=ITEMS_MAX)


def _close(flow: UsageFlow, draft: OpenDraft) -> ClosedInvoice:
    event_names = {meter.meter_id: name for name, meter in flow.meters_at_stripe.items()}
    shown = read_draft(flow.stripe, flow.settings, draft.stripe_invoice_id, event_names)
    policies = {meter.name: meter.late_usage for meter in flow.catalogue.meters}
    written, left = write_adjustments(flow.connection, draft, shown, policies, now=flow.clock())
    return ClosedInvoice(
        draft.stripe_invoice_id, draft.stripe_customer_id, not shown.is_draft, tuple(written), tuple(left)
    )


def _tell(invoice: ClosedInvoice) -> None:
    milestones.info(
        "Stripe invoice.created billing adjustments applied",
        extra={
            "stripe_invoice_id": invoice.stripe_invoice_id,
            "stripe_customer_id": invoice.stripe_customer_id,
            "organization_id": ",".join(sorted({one.organization_id for one in invoice.adjustments})) or None,
            "adjustments": len(invoice.adjustments),
            "left": len(invoice.left),
            "too_late": invoice.is_late,
        },
    )
