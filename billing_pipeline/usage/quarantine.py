"""What waits in quarantine and what it is worth: the reading side of `billing-pipeline quarantine`.

Validation fills and mends quarantine (`contract.py`); `quarantine_decisions.py` is what a person does to it.
Whether a row waits, is mended or is dismissed follows from its times alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal, localcontext
from enum import StrEnum
from typing import Any

from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.database.source import Source
from billing_pipeline.domain.contract_rules import Part, rules_of
from billing_pipeline.domain.prices import UnitPrice
from billing_pipeline.errors import UserError

DIGITS_MAX = 1000
"""Of an amount: a quantity with too many digits for Stripe is in quarantine for just that, and is not rounded here."""


class Status(StrEnum):
    """What a row's times say of it."""

    WAITING = "waiting"
    MENDED = "mended"
    DISMISSED = "dismissed"


@dataclass(frozen=True, slots=True)
class WaitingUnits:
    """Stripe units of one reason that a meter would count; `meter` is None for rows that none counts in their hour."""

    reason: str
    meter: str | None
    event_name: str | None
    rows: int
    unreadable: int
    """Rows whose quantity is no exact number of 0 or more: they add nothing to `units`."""
    units: Decimal


@dataclass(frozen=True, slots=True)
class WaitingRows:
    """What waits for one reason, the oldest ids first."""

    reason: str
    rows: int
    organizations: int
    oldest_at: datetime
    event_ids: tuple[str, ...]
    units: tuple[WaitingUnits, ...] = ()


@dataclass(frozen=True, slots=True)
class QuarantinedEvent:
    """A row as it was found when it was last seen to break the contract."""

    event_id: str
    reason: str
    contract_version: str
    organization_id: str | None
    event_type: str | None
    quantity: str | None
    occurred_at: datetime | None
    first_seen_at: datetime
    last_seen_at: datetime
    mended_at: datetime | None
    dismissed_at: datetime | None
    dismissed_by: str | None
    dismissed_reason: str | None

    @property
    def status(self) -> Status:
        """Mended is stronger than dismissed: what is right counts, whatever a person decided before."""
        if self.mended_at is not None:
            return Status.MENDED
        return Status.WAITING if self.dismissed_at is None else Status.DISMISSED


@dataclass(frozen=True, slots=True)
class SourceEvent:
    """The row as the source has it now, with the meters that count its type in its hour."""

    organization_id: str | None
    event_type: str | None
    quantity: str | None
    occurred_at: str | None
    recorded_at: str | None
    meters: list[str]


def waiting_rows(
    connection: Connection[Any],
    *,
    now: datetime,
    limit: int,
    reason: str | None = None,
    organization: str | None = None,
) -> list[WaitingRows]:
    """What waits, by reason, the most rows first; at most `limit` ids of each.  Raises `UserError`."""
    reasons = [rule.reason for rule in rules_of(Part.ROW)]
    if reason is not None and reason not in reasons:
        raise UserError(f"{reason} is no reason code; there are {', '.join(reasons)}.")
    params = {"reason": reason, "organization_id": organization, "limit": limit, "now": now}
    units = defaultdict(list)
    for found in queries.fetch(connection, "waiting_units", WaitingUnits, params):
        units[found.reason].append(found)
    return [
        WaitingRows(**row | {"event_ids": tuple(row["event_ids"]), "units": tuple(units[row["reason"]])})
        for row in queries.fetch_dicts(connection, "waiting_by_reason", params)
    ]


def dismissed_rows(connection: Connection[Any]) -> int:
    """How many rows a person has set aside for good."""
    return int(queries.fetch_dicts(connection, "dismissed_events")[0]["rows"])


def quarantined_event(connection: Connection[Any], event_id: str) -> QuarantinedEvent:
    """The row of that id.  Raises `UserError` for one that never was in quarantine."""
    found = queries.fetch(connection, "quarantined_event", QuarantinedEvent, {"event_id": event_id})
    if not found:
        raise unknown([event_id])
    return found[0]


def source_event(connection: Connection[Any], source: Source, event_id: str) -> SourceEvent | None:
    """The row as it is now, or None where it was taken out of the source."""
    found = queries.fetch(connection, "source_event", SourceEvent, {"event_id": event_id}, parts=source.parts)
    return found[0] if found else None


def unknown(event_ids: Iterable[str]) -> UserError:
    """The error for ids that quarantine has never seen."""
    return UserError(
        f"Never in quarantine: {', '.join(event_ids)}. Nothing was changed. "
        "`billing-pipeline quarantine list` shows what waits."
    )


def worth(units: Iterable[WaitingUnits], prices: Mapping[str, UnitPrice | None]) -> dict[str, Decimal] | None:
    """Minor units of each currency that these units cost; None where a row has no meter or a meter no one price."""
    total: dict[str, Decimal] = defaultdict(Decimal)
    with localcontext(prec=DIGITS_MAX):
        for found in units:
            price = prices.get(found.event_name or "")
            if price is None:
                return None
            total[price.currency] += found.units * price.minor_units
    return dict(total)
