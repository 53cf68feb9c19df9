"""Why a webhook event can fail, and what a person does about it: one row per error class.

The dispatcher names the class, `billing-pipeline events` shows the remedy, and docs/runbook.md lists them all.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Triage:
    """What an error class means, and the next step."""

    cause: str
    remedy: str


TRIAGE = {
    "unknown_account": Triage(
        "Stripe's customer belongs to no organization, so nobody's entitlements follow from the event.",
        "Insert the customer into customer_mappings, then replay the event.",
    ),
    "unreadable": Triage(
        "The object in the event has a shape that this version does not read.",
        "Install a version that reads it, then replay the event; until then the object stays as it was.",
    ),
    "database": Triage(
        "PostgreSQL refused what the event says, mostly because of a constraint.",
        "Find the refused statement in the server's log, mend the constraint or the row, then replay the event.",
    ),
    "stripe_unavailable": Triage(
        "Stripe did not answer when it was asked about the event.",
        "Nothing while it is tried again; replay it if it is parked, once Stripe answers.",
    ),
    "stripe": Triage(
        "Stripe refused to be asked about the event.",
        "Check STRIPE_SECRET_KEY and its scopes with `billing-pipeline preflight`, then replay the event.",
    ),
    "no_payload": Triage(
        "The event's payload is no longer kept, so it cannot be handled again.",
        "Nothing can be replayed; look at the object in Stripe's Dashboard, and annotate the event.",
    ),
    "unexpected": Triage(
        "This program failed at the event in a way that nobody foresaw.",
        "Report the error's name and the event's type; install a version that takes it, then replay the event.",
    ),
    "abandoned": Triage(
        "Every worker that took the event ended before it was done: killed, out of memory, or by the event itself.",
        "Look at how `serve` and the Dagster runs ended, then replay the event alone.",
    ),
}
