"""What each hold means and what a person does about it: the words behind the codes of `HoldReason`.

`billing-pipeline holds`, the asset check `nothing_is_on_hold` and `docs/operations.md` say the same, from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from billing_pipeline.domain.entries import HoldReason


@dataclass(frozen=True, slots=True)
class HoldRule:
    """One reason in words."""

    meaning: str
    remedy: str
    is_brake: bool = False
    """Stripe would take it; whether it is right is the question."""


_LATE = "Stripe does not take it any more; adjust the invoice."

HOLDS: Mapping[HoldReason, HoldRule] = {
    HoldReason.OVER_HOUR_MAX: HoldRule(
        "The organization's hour comes to more than the meter's hour_max.",
        "Ask whether the usage is real. Release it if so; correct the source if not, and the hold ends by itself.",
        is_brake=True,
    ),
    HoldReason.OVER_USUAL: HoldRule(
        "The organization's hour is many times its usual one (BILLING_BRAKE_HOUR_FACTOR, or the meter's hour_factor).",
        "Ask whether the usage is real. Release it if so; correct the source if not, and the hold ends by itself.",
        is_brake=True,
    ),
    HoldReason.OVER_FLUSH_MAX: HoldRule(
        "One flush would have added more to the meter than its flush_max, so nothing of it was added.",
        "Look for rows that are there twice. Release all of the meter if they are right.",
        is_brake=True,
    ),
    HoldReason.TAKEN_BACK: HoldRule(
        "One flush would have taken back more than BILLING_BRAKE_TAKEN_BACK_PERCENT of the meter, so nothing was.",
        "Look whether the source is whole. When its rows are back, the hold ends by itself; release it if they are "
        "meant to be gone.",
        is_brake=True,
    ),
    HoldReason.REJECTED: HoldRule(
        "Stripe refused the amount.",
        "The entry's attempt has Stripe's words. Mend what they name, such as an archived meter, and release it.",
    ),
    HoldReason.LAST_SLOTS: HoldRule(
        "The hour was corrected so often that only its last minutes are left.",
        "Stop what corrects it with every flush, then release it.",
    ),
    HoldReason.NO_SLOT: HoldRule("The hour has no minute left for another entry.", _LATE),
    HoldReason.TOO_OLD: HoldRule("The hour is older than the 35 days that Stripe takes.", _LATE),
    HoldReason.TOO_LARGE: HoldRule(
        "The amount has more than the 15 digits that Stripe takes.", "Correct the source, or the meter's unit_scale."
    ),
}
