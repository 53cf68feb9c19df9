"""What an explanation is made of: the facts behind one organization's hour, as `explain.py` finds them.

Amounts are `Decimal`, so that a program that reads them as text gets every digit.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal

from billing_pipeline.domain.prices import UnitPrice
from billing_pipeline.domain.standing import Verdict


@dataclass(frozen=True, slots=True)
class Definition:
    """How a meter counted the hour: one of its versions."""

    meter: str
    version: str
    event_types: list[str]
    aggregation: str
    event_name: str
    unit_scale: Decimal
    is_filtered: bool
    property: str | None
    valid_from: datetime
    valid_until: datetime | None


@dataclass(frozen=True, slots=True)
class CountedRows:
    """What a meter takes of the source now, summed on its own; `window_id` is None for rows that no window holds yet.

    `events_since` were recorded after the last aggregation, `events_filtered` are left out by the meter's filter.
    `is_touched`: some row is so new that the next flush counts the whole hour anew.
    """

    meter: str
    window_id: int | None
    events: int
    quantity: Decimal
    events_since: int
    events_filtered: int
    is_touched: bool
    event_ids: list[str]


@dataclass(frozen=True, slots=True)
class RowsNotCounted:
    """Rows of the hour that no meter counts, by place and, where the contract says so, by reason."""

    place: str
    reason: str | None
    event_type: str | None
    dismissed_by: str | None
    dismissed_reason: str | None
    events: int
    quantity: Decimal
    event_ids: list[str]
    groups: int
    """How many such groups there are in all."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One send of an entry, and what it came to."""

    entry_id: int
    attempt_id: int
    attempts_of_entry: int
    channel: str
    started_at: datetime
    finished_at: datetime | None
    outcome: str | None
    http_status: int | None
    error_code: str | None
    error_message: str | None
    request_id: str | None


@dataclass(frozen=True, slots=True)
class Evidence:
    """What Stripe later showed about an entry."""

    entry_id: int
    kind: str
    observed: Decimal | None
    granularity: str
    observed_at: datetime


@dataclass(frozen=True, slots=True)
class EntryRow:
    """A ledger entry as it is."""

    entry_id: int
    window_id: int
    sequence: int
    value: Decimal
    state: str
    slot_at: datetime
    identifier: str
    epoch: int
    hold_reason: str | None
    created_at: datetime
    first_attempt_at: datetime | None
    last_attempt_at: datetime | None
    retry_at: datetime | None


@dataclass(frozen=True, slots=True)
class ExplainedEntry:
    """A ledger entry with its latest attempts and its evidence."""

    row: EntryRow
    attempts: tuple[Attempt, ...]
    evidence: tuple[Evidence, ...]


@dataclass(frozen=True, slots=True)
class ShownHour:
    """What Stripe last showed for a clock hour, None where it was never asked, beside all entries stated in it."""

    stripe_customer_id: str
    event_name: str
    hour_at: datetime
    observed: Decimal | None
    observed_at: datetime | None
    proved: Decimal
    unproved: Decimal

    @property
    def differs(self) -> bool:
        """Whether Stripe shows another sum than the entries that are all proved."""
        return self.observed is not None and self.unproved == 0 and self.observed != self.proved


@dataclass(frozen=True, slots=True)
class Period:
    """A billing period at Stripe; `ends_at` is None where it has no end yet."""

    stripe_customer_id: str
    event_name: str
    starts_at: datetime
    ends_at: datetime | None
    subscription_item_id: str


@dataclass(frozen=True, slots=True)
class Seal:
    """Who closed the period, when and why; `event_name` None: for every meter."""

    stripe_customer_id: str
    event_name: str | None
    starts_at: datetime
    ends_at: datetime
    sealed_at: datetime
    actor: str
    reason: str


@dataclass(frozen=True, slots=True)
class Operation:
    """A person's decision that touched the hour."""

    action: str
    actor: str
    reason: str
    done_at: datetime
    meter: str | None
    difference: str | None


@dataclass(frozen=True, slots=True)
class LevelBefore:
    """Where a period level goes on from: the window before in the same period, if there is one."""

    window_id: int
    began_at: datetime
    before_at: datetime | None
    level_before: Decimal | None


@dataclass(frozen=True, slots=True)
class WindowRow:
    """A usage window as it was last counted; a part of an hour at a period's edge is one of its own."""

    window_id: int
    stripe_customer_id: str | None
    meter: str
    meter_version: str
    event_name: str
    starts_at: datetime
    ends_at: datetime
    target: Decimal
    carried: Decimal
    units: Decimal
    quantity: Decimal
    period_level: Decimal | None
    event_count: int
    contract_version: str
    cutoff_at: datetime
    cut_after: datetime | None
    hold_reason: str | None
    sealed_at: datetime | None
    adjusted: Decimal
    """Units that adjustments of later invoices stand for."""
    adjusted_by: str | None


@dataclass(frozen=True, slots=True)
class ExplainedWindow:
    """A usage window and everything behind it; `row` is None for rows that the next flush puts into one."""

    row: WindowRow | None
    definition: Definition | None
    counted: CountedRows | None
    """None: the source cannot be read."""
    level: LevelBefore | None
    entries: tuple[ExplainedEntry, ...]
    shown: tuple[ShownHour, ...]
    periods: tuple[Period, ...]
    seals: tuple[Seal, ...]
    price: UnitPrice | None
    no_price_because: str | None
    verdict: Verdict

    @property
    def meter(self) -> str:
        """Whose window it is."""
        known = self.row or self.definition
        return known.meter if known else ""


@dataclass(frozen=True, slots=True)
class Explanation:
    """Why an organization was billed what it was in one clock hour."""

    organization_id: str
    hour_at: datetime
    meter: str | None
    asked_at: datetime
    counted_at: datetime | None
    """The cutoff of the last aggregation."""
    frozen_at: datetime | None
    frozen_reason: str | None
    windows: tuple[ExplainedWindow, ...]
    not_counted: tuple[RowsNotCounted, ...]
    no_source_because: str | None
    operations: tuple[Operation, ...]
    verdict: Verdict
