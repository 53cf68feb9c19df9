"""Where a usage window stands, in one sentence: stated and shown, or owed, why, and what a person can do.

The explanation of an hour ends with it.  What a window is owed follows from the ledger alone; the sentence names the
first thing that keeps it from being settled.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from billing_pipeline.domain.amounts import amount, units_of
from billing_pipeline.domain.entries import HoldReason
from billing_pipeline.domain.holds import HOLDS
from billing_pipeline.domain.protocol import ProtocolTimes

RELEASABLE = frozenset(
    {HoldReason.REJECTED, HoldReason.LAST_SLOTS, *(reason for reason, rule in HOLDS.items() if rule.is_brake)}
)
"""Reasons that end when a person looks and releases the window; the others need an adjustment of the invoice."""


@dataclass(frozen=True, slots=True)
class OpenEntry:
    """An entry whose outcome is not known for good, or that Stripe refused."""

    entry_id: int
    value: Decimal
    state: str
    first_attempt_at: datetime | None = None
    last_attempt_at: datetime | None = None
    retry_at: datetime | None = None
    words: str | None = None
    """What Stripe last said of it."""


@dataclass(frozen=True, slots=True)
class Ledger:
    """What holds for every window: whether anything is sent at all, and by which clock."""

    now: datetime
    closed_before: datetime
    times: ProtocolTimes
    level: str
    frozen_at: datetime | None = None
    frozen_reason: str | None = None


@dataclass(frozen=True, slots=True)
class Standing:
    """A window in Stripe units: `target` is its worth when last counted, `stated` the sum of its entries that are
    neither rejected nor replaced, `proved` of those that Stripe shows."""

    window_id: int | None
    target: Decimal
    stated: Decimal
    proved: Decimal
    ends_at: datetime
    is_mapped: bool = True
    open_entry: OpenEntry | None = None
    accepted: tuple[OpenEntry, ...] = ()
    refused: OpenEntry | None = None
    hold_reason: str | None = None
    cut_after: datetime | None = None
    sealed_at: datetime | None = None
    adjusted: Decimal = Decimal(0)
    """Units that were billed, or not, by adjustments of later invoices."""
    adjusted_by: str | None = None
    """Which, in words."""
    shown: Decimal | None = None
    """What Stripe showed for the clock hour, where that is another sum than all entries there."""
    all_entries: Decimal | None = None
    """The other sum."""
    source_says: str | None = None
    """A sentence, where the source has changed since the window was counted."""
    is_beyond_reach: bool = False
    """So old that it is never counted again: rows that are taken out of the source by then change nothing."""

    @property
    def is_outdated(self) -> bool:
        """Whether a flush will count something else."""
        return self.source_says is not None and not self.is_beyond_reach


@dataclass(frozen=True, slots=True)
class Verdict:
    """The sentence, the command that helps where something waits for a person, and whether nothing is left to do."""

    text: str
    command: str | None = None
    is_settled: bool = False


def verdict(standing: Standing, ledger: Ledger) -> Verdict:
    """What a person should take away of a window."""
    found = _owed(standing, ledger) or _shown_otherwise(standing) or _settled(standing)
    text, command = found.text, found.command
    if ledger.frozen_at is not None and not found.is_settled:
        since = f"{ledger.frozen_at:%Y-%m-%d %H:%M} UTC"
        text += f" The ledger is frozen since {since}, so nothing is sent: {(ledger.frozen_reason or '').rstrip('.')}."
        command = "billing-pipeline ledger status"
    if standing.source_says:
        text += f" {standing.source_says}"
    return Verdict(text, command, found.is_settled and not standing.is_outdated)


def _owed(standing: Standing, ledger: Ledger) -> Verdict | None:
    """Why it is not settled; None when it is."""
    owed = standing.target - standing.stated - standing.adjusted
    if not standing.is_mapped:
        return _unmapped(standing) if standing.target else None
    if (entry := standing.refused) is not None:
        because = f"Stripe refused entry {entry.entry_id}{f' ({entry.words})' if entry.words else ''}"
        return Verdict(f"{_owes(owed)}: {because}, and it waits for a person.", _release(standing))
    if standing.hold_reason is not None:
        return _held(standing, owed)
    if (entry := standing.open_entry) is not None:
        return _ambiguous(entry, standing, ledger) if entry.state == "ambiguous" else _pending(entry, standing, ledger)
    if owed == 0:
        return _accepted(standing, ledger) if standing.accepted else None
    if standing.sealed_at is not None:
        to_do = "the next draft is adjusted for them" if owed > 0 else "the next draft gives them back"
        return Verdict(
            f"{_owes(owed)}: they came after the seal of {standing.sealed_at:%Y-%m-%d %H:%M} UTC and are never sent; "
            f"{to_do}.",
            "billing-pipeline ledger status",
        )
    return _to_be_cut(standing, owed, ledger)


def _unmapped(standing: Standing) -> Verdict:
    return Verdict(
        f"{_owes(standing.target)}: the organization had no Stripe customer then, so nothing was stated. "
        "Insert its customer into customer_mappings; in test mode the command below makes one.",
        "billing-pipeline create-customers",
    )


def _held(standing: Standing, owed: Decimal) -> Verdict:
    reason = str(standing.hold_reason)
    because = f"{_owes(owed)}: the window is on hold, {reason.replace('_', ' ')}"
    if reason in RELEASABLE:
        return Verdict(f"{because}, and waits for a person.", _release(standing))
    return Verdict(f"{because}; the invoice needs an adjustment.", "billing-pipeline ledger status")


def _ambiguous(entry: OpenEntry, standing: Standing, ledger: Ledger) -> Verdict:
    text = f"{_owes(standing.target - standing.proved)}: entry {entry.entry_id} is ambiguous"
    if entry.first_attempt_at is not None:
        # Sent again at most until safe_send; absence of what was sent last counts so much later.
        latest = entry.first_attempt_at + ledger.times.safe_send + ledger.times.absence_after
        text += (
            f" since {entry.first_attempt_at:%Y-%m-%d %H:%M} UTC, decided at the latest {latest:%Y-%m-%d %H:%M} UTC "
            "by what Stripe shows then"
        )
    return Verdict(f"{text}.")


def _pending(entry: OpenEntry, standing: Standing, ledger: Ledger) -> Verdict:
    text = f"{_owes(standing.target - standing.proved)}: entry {entry.entry_id} is cut and not sent yet"
    if ledger.level != "live":
        return Verdict(f"{text}, because billing is {'off' if ledger.level == 'off' else 'in shadow mode'}.")
    if entry.retry_at is not None and entry.retry_at > ledger.now:
        return Verdict(f"{text}; the first flush after {entry.retry_at:%Y-%m-%d %H:%M} UTC sends it.")
    return Verdict(f"{text}; the next flush sends it.")


def _accepted(standing: Standing, ledger: Ledger) -> Verdict:
    waiting = sum((entry.value for entry in standing.accepted), Decimal(0))
    last = [entry.last_attempt_at for entry in standing.accepted if entry.last_attempt_at is not None]
    by = f", expected by {max(last) + ledger.times.absence_after:%Y-%m-%d %H:%M} UTC" if last else ""
    numbers = ", ".join(str(entry.entry_id) for entry in standing.accepted)
    return Verdict(
        f"Stated {units_of(standing.stated)}; Stripe took {amount(waiting)} of them and has not shown them yet{by} "
        f"(entr{'y' if len(standing.accepted) == 1 else 'ies'} {numbers}); nothing else is owed."
    )


def _to_be_cut(standing: Standing, owed: Decimal, ledger: Ledger) -> Verdict:
    if ledger.level == "off":
        return Verdict(f"{_owes(owed)}: billing is off, so nothing is stated.")
    if standing.ends_at > ledger.closed_before:
        from_at = standing.ends_at + (ledger.now - ledger.closed_before)
        return Verdict(f"{_owes(owed)}: the hour is stated by the first flush after {from_at:%Y-%m-%d %H:%M} UTC.")
    if standing.cut_after is not None and standing.cut_after > ledger.now:
        return Verdict(
            f"{_owes(owed)}: the hour was corrected so often that it waits until {standing.cut_after:%Y-%m-%d %H:%M} "
            "UTC, and then states all that came since."
        )
    return Verdict(f"{_owes(owed)}: the next flush states the difference.")


def _shown_otherwise(standing: Standing) -> Verdict | None:
    if standing.shown is None or standing.all_entries is None:
        return None
    return Verdict(
        f"Stated {units_of(standing.stated)}, but Stripe shows {amount(standing.shown)} for the clock hour and the "
        f"ledger's entries there add up to {amount(standing.all_entries)}.",
        "billing-pipeline reconcile",
    )


def _settled(standing: Standing) -> Verdict:
    # What the source has changed since is owed, or soon will be.
    end = "." if standing.is_outdated else "; nothing is owed."
    if standing.adjusted:
        end = f"; {amount(standing.adjusted)} more after the seal: {standing.adjusted_by}{end}"
    if standing.target == 0 and standing.stated == 0:
        return Verdict(f"Worth 0 units when last counted, and nothing was stated{end}", is_settled=True)
    return Verdict(
        f"Stated {units_of(standing.stated)}; Stripe shows {amount(standing.proved)}{end}",
        is_settled=True,
    )


def _owes(units: Decimal) -> str:
    return f"{units_of(units)} owed" if units >= 0 else f"{units_of(-units)} to be taken back"


def _release(standing: Standing) -> str:
    return f"billing-pipeline holds release {standing.window_id} --by NAME --reason TEXT"
