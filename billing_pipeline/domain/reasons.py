"""Why a row is in quarantine, in words for a person who knows the customer and not the code.

The codes are those of the row contract, in `usage/row_contract.py`; a test holds the two lists equal.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Reason:
    """What is wrong with the row, and what to ask of whoever writes the source."""

    broken: str
    remedy: str


MEND = "Correct the row in the source and set its recorded_at to now()"

REASONS = {
    "event_id_missing": Reason(
        "The row has no event_id, so it cannot be told from another.",
        "Give the row an event_id of its own in the source.",
    ),
    "organization_id_missing": Reason(
        "The row does not say which organization used this.", f"{MEND}: it needs an organization_id."
    ),
    "event_type_missing": Reason("The row does not say what was used.", f"{MEND}: it needs an event_type."),
    "quantity_missing": Reason(
        "The row does not say how much was used, and a meter sums up this event type.",
        f"{MEND}: it needs a quantity; 0 is one.",
    ),
    "quantity_not_finite": Reason(
        "The quantity is not a number (NaN) or is infinite.", f"{MEND}: it needs a real quantity."
    ),
    "quantity_negative": Reason(
        "The quantity is below zero; usage is taken back by correcting its row, not by a negative one.",
        f"{MEND}, or correct the row that counted too much and delete this one.",
    ),
    "quantity_too_many_digits": Reason(
        "The quantity has more than 15 digits before the point or 12 after it, more than Stripe takes exactly.",
        f"{MEND}: round it to 12 decimal places, or split it over several rows.",
    ),
    "occurred_at_missing": Reason(
        "The row does not say when this was used, so it belongs to no hour.", f"{MEND}: it needs an occurred_at."
    ),
    "recorded_at_missing": Reason(
        "The row does not say when it was written, so nobody can tell how late it is.",
        "Set the row's recorded_at to now() in the source.",
    ),
    "time_out_of_range": Reason(
        "One of the row's times lies outside the years 1 to 9999.", f"{MEND}: it needs a real occurred_at."
    ),
    "occurred_at_in_future": Reason(
        "The row says that this was used more than 5 minutes after it was recorded.",
        f"{MEND}; look at the clock of the machine that wrote it.",
    ),
    "occurred_at_too_old": Reason(
        "The row was recorded more than 35 days after this was used, later than Stripe takes usage.",
        "Add it to an invoice by hand at Stripe, then dismiss it here with that invoice as the reason.",
    ),
    "event_type_unknown": Reason(
        "The meter catalogue neither counts this event type nor ignores it.",
        "Correct the event type, or add it to the catalogue; a meter that is added counts from the next full hour on, "
        "and rows of the hours before it stay uncounted.",
    ),
}
"""By reason code."""
