"""How a subscription ends: canceled, with an invoice for the usage of its last period, or expired unpaid.

Asked by the subscription and customer endpoints and by `life`.
"""

from __future__ import annotations

from billing_pipeline.stripe_simulator.billing_periods import with_periods
from billing_pipeline.stripe_simulator.calls import created, updated
from billing_pipeline.stripe_simulator.collection import voided
from billing_pipeline.stripe_simulator.journal import Record
from billing_pipeline.stripe_simulator.state import State
from billing_pipeline.stripe_simulator.subscription_invoices import period_invoice
from billing_pipeline.stripe_simulator.wire import Body

ENDED = ("canceled", "incomplete_expired")


def canceled_records(
    state: State, subscription: Body, epoch: int, *, reason: str = "cancellation_requested"
) -> list[Record]:
    """The last invoice, if there is usage to bill, and the subscription canceled at `epoch`; that one comes last."""
    ended = with_periods(subscription, epoch) | {
        "status": "canceled",
        "canceled_at": subscription["canceled_at"] or epoch,
        "ended_at": epoch,
        "cancellation_details": {"comment": None, "feedback": None, "reason": reason},
    }
    invoice = period_invoice(state, subscription, None, epoch, "subscription_cycle")
    records = [] if invoice is None else [created("invoice", invoice)]
    if invoice is not None:
        ended["latest_invoice"] = invoice["id"]
    return [*records, updated("subscription", ended, "customer.subscription.deleted")]


def trial_notice(subscription: Body) -> Record:
    """What is told once of a trial that is about to end."""
    told = {**subscription, "_trial_told": subscription["trial_end"]}
    return updated("subscription", told, "customer.subscription.trial_will_end")


def expired_records(state: State, subscription: Body, epoch: int) -> list[Record]:
    """A subscription whose first payment never came, and its invoice, which is void then."""
    expired = {**subscription, "status": "incomplete_expired", "ended_at": epoch}
    invoice = state.find("invoice", subscription["latest_invoice"])
    records = [updated("subscription", expired)]
    if invoice is not None and invoice["status"] == "open":
        records.insert(0, updated("invoice", voided(invoice, epoch), "invoice.updated", "invoice.voided"))
    return records
