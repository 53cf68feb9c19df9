"""Puts what sealed periods are owed on the drafts of later invoices, each once.

An adjustment is committed with its usage windows before anything is asked of Stripe, and is looked for there by its
name before every send, so an answer that was lost, or a database that was restored, makes no second item.
`usage/close_periods.py` calls this after a flush.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any, Protocol

from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.database.transactions import in_transaction
from billing_pipeline.domain.adjustments import (
    Adjustment,
    AdjustmentState,
    LateWindow,
    Left,
    Next,
    decide_adjustments,
    decide_next,
    nothing_under_way,
)
from billing_pipeline.domain.catalogue import LateUsage
from billing_pipeline.domain.prices import UnitPrice
from billing_pipeline.domain.protocol import ProtocolTimes
from billing_pipeline.errors import BillingError, Unavailable
from billing_pipeline.stripe_api.invoice_items import Draft, Item, ItemRefused, NewItem

logger = logging.getLogger(__name__)

RETRY_AFTER = timedelta(minutes=5)
"""An answer that was lost is asked about so much later."""


class InvoiceItems(Protocol):
    """What is asked of Stripe: an item by its name, and a new one."""

    def find(self, invoice_id: str, identifier: str) -> Item | None: ...

    def create(self, new: NewItem) -> Item | ItemRefused: ...


@dataclass(frozen=True, slots=True)
class OpenDraft:
    """A draft that nobody has closed yet."""

    stripe_invoice_id: str
    stripe_customer_id: str


@dataclass(frozen=True, slots=True)
class DueAdjustment:
    """An adjustment whose item is not known to be on its invoice, and not known to be refused."""

    adjustment_id: int
    identifier: str
    stripe_invoice_id: str
    stripe_customer_id: str
    organization_id: str
    meter: str
    units: Decimal
    currency: str
    unit_amount: Decimal
    starts_at: datetime
    ends_at: datetime
    attempts: int
    first_attempt_at: datetime | None
    last_attempt_at: datetime | None


@dataclass(frozen=True, slots=True)
class SendReport:
    """How many items are on their invoices now, how many Stripe refused, and how many are still in doubt."""

    applied: int = 0
    refused: int = 0
    in_doubt: int = 0

    def __add__(self, other: SendReport) -> SendReport:
        return SendReport(self.applied + other.applied, self.refused + other.refused, self.in_doubt + other.in_doubt)


@dataclass(frozen=True, slots=True)
class AdjustmentRow:
    """An adjustment as it stands; `unit_amount` in minor units of `currency`, None where it was written off."""

    identifier: str
    stripe_invoice_id: str
    stripe_customer_id: str
    organization_id: str
    meter: str
    units: Decimal
    currency: str | None
    unit_amount: Decimal | None
    starts_at: datetime
    ends_at: datetime
    state: str
    stripe_invoice_item_id: str | None
    last_error: str | None
    created_at: datetime
    settled_at: datetime | None


def latest_adjustments(connection: Connection[Any], *, limit: int) -> list[AdjustmentRow]:
    """The last ones, newest first."""
    return queries.fetch(connection, "latest_adjustments", AdjustmentRow, {"limit": limit})


def adjustments_in_doubt(connection: Connection[Any], *, limit: int) -> list[AdjustmentRow]:
    """Those whose item is not known to be on its invoice, the oldest first."""
    return queries.fetch(connection, "adjustments_in_doubt", AdjustmentRow, {"limit": limit})


def drafts_to_close(connection: Connection[Any], *, created_before: datetime, limit: int) -> list[OpenDraft]:
    """Drafts old enough for the last windows of their period to be closed, the first to become final first."""
    params = {"created_before": created_before, "limit": limit}
    return queries.fetch(connection, "drafts_to_close", OpenDraft, params)


def has_due_adjustments(connection: Connection[Any], *, now: datetime) -> bool:
    """Whether an item is to be asked about by now."""
    return bool(queries.fetch(connection, "due_adjustments", DueAdjustment, {"now": now, "limit": 1}))


def write_adjustments(
    connection: Connection[Any],
    draft: OpenDraft,
    shown: Draft,
    policies: Mapping[str, LateUsage],
    *,
    now: datetime,
) -> tuple[list[Adjustment], list[Left]]:
    """Commit what this draft is to bill of its customer's sealed windows, and that it was closed; send nothing.

    An invoice that is final by now is closed without any.
    """

    def write() -> tuple[list[Adjustment], list[Left]]:
        windows = _locked(connection, draft.stripe_customer_id) if shown.is_draft else []
        wanted, left = decide_adjustments(windows, policies, shown.prices, billing_reason=shown.billing_reason)
        written = [one for one in wanted if _insert(connection, draft, one, now)]
        queries.execute(connection, "close_invoice", {"stripe_invoice_id": draft.stripe_invoice_id, "now": now})
        return written, left

    return in_transaction(connection, write, name="Closing a period")


def send_adjustments(
    connection: Connection[Any],
    items: InvoiceItems,
    times: ProtocolTimes,
    clock: Callable[[], datetime],
    *,
    limit: int,
) -> SendReport:
    """Bring what is committed onto its invoices, at most so many.  Raises `StripeUnavailable` and `StripeRefused`.

    What was sent and not answered by then stays in doubt, and is looked for before it is sent again.
    """
    counts = dict.fromkeys(("applied", "refused", "in_doubt"), 0)
    for due in queries.fetch(connection, "due_adjustments", DueAdjustment, {"now": clock(), "limit": limit}):
        counts[_bring(connection, items, due, times, clock)] += 1
    return SendReport(**counts)


def _bring(
    connection: Connection[Any],
    items: InvoiceItems,
    due: DueAdjustment,
    times: ProtocolTimes,
    clock: Callable[[], datetime],
) -> str:
    if (found := items.find(due.stripe_invoice_id, due.identifier)) is not None:
        return _found(connection, due, found, clock(), times)
    now = clock()
    wanted = decide_next(
        first_attempt_at=due.first_attempt_at, last_attempt_at=due.last_attempt_at, now=now, times=times
    )
    if wanted is Next.WAIT or not _attempt(connection, due, now):
        return "in_doubt"
    try:
        answer = items.create(_item_of(due))
    except Unavailable as exc:
        _postpone(connection, due, str(exc), now + RETRY_AFTER, attempts=due.attempts + 1)
        raise
    except BillingError as exc:
        _postpone(connection, due, str(exc), now + times.lateness, attempts=due.attempts + 1)
        raise
    if isinstance(answer, Item):
        _settle(connection, due, AdjustmentState.APPLIED, clock(), item_id=answer.item_id, attempts=due.attempts + 1)
        return "applied"
    if nothing_under_way(due.last_attempt_at, now, times):
        _settle(connection, due, AdjustmentState.REFUSED, clock(), error=answer.words, attempts=due.attempts + 1)
        logger.warning("Stripe refused an invoice item", extra=_about(due))
        return "refused"
    # An earlier request may still bring the item: only its absence after that says no.
    _postpone(connection, due, answer.words, now + times.lateness, attempts=due.attempts + 1)
    return "in_doubt"


def _found(connection: Connection[Any], due: DueAdjustment, found: Item, now: datetime, times: ProtocolTimes) -> str:
    if found.units == due.units:
        _settle(connection, due, AdjustmentState.APPLIED, now, item_id=found.item_id, attempts=due.attempts)
        return "applied"
    # Only a ledger that forgot what it had written comes here; which of the two is right, a person must say.
    words = f"Stripe's item {found.item_id} bills {found.units:f} units under this name, the ledger {due.units:f}."
    _postpone(connection, due, words, now + times.lateness, attempts=due.attempts)
    logger.error("An invoice item bills something else than the ledger says", extra=_about(due))
    return "in_doubt"


def _locked(connection: Connection[Any], customer: str) -> list[LateWindow]:
    locked = queries.fetch_dicts(connection, "lock_late_windows", {"stripe_customer_id": customer})
    return queries.fetch(connection, "late_windows", LateWindow, {"window_ids": [row["window_id"] for row in locked]})


def _insert(connection: Connection[Any], draft: OpenDraft, one: Adjustment, now: datetime) -> bool:
    params = {
        "identifier": identifier_of(draft.stripe_invoice_id, one.organization_id, one.meter, one.event_name),
        "stripe_invoice_id": draft.stripe_invoice_id,
        "stripe_customer_id": draft.stripe_customer_id,
        "organization_id": one.organization_id,
        "meter": one.meter,
        "event_name": one.event_name,
        "units": one.units,
        "currency": one.price.currency if one.price else None,
        "unit_amount": one.price.minor_units if one.price else None,
        "starts_at": one.starts_at,
        "ends_at": one.ends_at,
        "now": now,
    }
    if not (made := queries.fetch_dicts(connection, "insert_adjustment", params)):
        return False
    windows = {
        "adjustment_id": made[0]["adjustment_id"],
        "window_ids": [window.window_id for window in one.windows],
        "units_owed": [window.owed for window in one.windows],
    }
    queries.execute(connection, "insert_adjusted_windows", windows)
    return True


def identifier_of(invoice_id: str, *what: str) -> str:
    """The item's name, the same whoever makes it up and whenever."""
    digest = hashlib.sha256("\x1f".join((invoice_id, *what)).encode()).hexdigest()[:32]
    return f"adjustment-{invoice_id}-{digest}"


def _attempt(connection: Connection[Any], due: DueAdjustment, now: datetime) -> bool:
    params = {
        "adjustment_id": due.adjustment_id,
        "attempts": due.attempts,
        "now": now,
        "retry_at": now + RETRY_AFTER,
    }
    return bool(queries.fetch_dicts(connection, "attempt_adjustment", params))


def _settle(
    connection: Connection[Any],
    due: DueAdjustment,
    state: AdjustmentState,
    now: datetime,
    *,
    attempts: int,
    item_id: str | None = None,
    error: str | None = None,
) -> None:
    params = {
        "adjustment_id": due.adjustment_id,
        "attempts": attempts,
        "state": state.value,
        "stripe_invoice_item_id": item_id,
        "last_error": error,
        "now": now,
    }
    queries.execute(connection, "settle_adjustment", params)


def _postpone(
    connection: Connection[Any], due: DueAdjustment, error: str, retry_at: datetime, *, attempts: int
) -> None:
    params = {
        "adjustment_id": due.adjustment_id,
        "attempts": attempts,
        "last_error": error,
        "retry_at": retry_at,
    }
    queries.execute(connection, "postpone_adjustment", params)


def _item_of(due: DueAdjustment) -> NewItem:
    return NewItem(
        identifier=due.identifier,
        invoice_id=due.stripe_invoice_id,
        stripe_customer_id=due.stripe_customer_id,
        organization_id=due.organization_id,
        meter=due.meter,
        units=due.units,
        price=UnitPrice(due.currency, due.unit_amount),
        starts_at=due.starts_at,
        ends_at=due.ends_at,
    )


def _about(due: DueAdjustment) -> dict[str, object]:
    return {
        "stripe_invoice_id": due.stripe_invoice_id,
        "organization_id": due.organization_id,
        "meter": due.meter,
        "units": str(due.units),
    }
