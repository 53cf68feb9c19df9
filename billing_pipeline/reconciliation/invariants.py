"""Runs the ledger's invariants and names the offenders.

The statements are in `database/sql/invariants.sql`.  Asset checks run them hourly, fault tests after every step; a row
means that money may be lost or doubled, whatever the code that wrote it believed.
V14 (invoice tie-out) and V15 (webhook inbox) come with the tables they speak of.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.reconciliation.completeness import account_for_rows
from billing_pipeline.settings import Settings

LEDGER_INVARIANTS = (
    "v01_conservation",
    "v02_write_ahead",
    "v03_never_sent_late",
    "v04_accepted_has_a_reason",
    "v05_replaced_on_evidence",
    "v06_confirmed_is_shown",
    "v07_stripe_knows_no_more_than_we_sent",
    "v08_rejected_only_when_certain",
    "v09_mark_not_ahead",
    "v10_nothing_open_under_a_seal",
    "v11_slot_near_its_window",
    "v12_ambiguity_ends",
    "v13_completeness",
    "v16_customers_share_an_organization",
    "v17_no_window_below_zero",
    "v18_open_entries_are_listed",
    "v19_periods_keep_their_usage",
    "v20_period_levels_add_up",
)


@dataclass(frozen=True, slots=True)
class Violation:
    """One row of an invariant's query."""

    invariant: str
    offender: str
    detail: str


@dataclass(frozen=True, slots=True)
class Offender:
    """What an invariant's statement returns."""

    offender: str
    detail: str


def violations(
    connection: Connection[Any],
    *,
    settings: Settings,
    mark: int,
    now: datetime,
    invariants: tuple[str, ...] = LEDGER_INVARIANTS,
) -> list[Violation]:
    """Every offender of every invariant.  `mark` is the high-water mark's attempt, 0 where there is none."""
    times = settings.protocol_times
    params = {"now": now, "mark": mark, "safe_send": times.safe_send, "absence_after": times.absence_after}
    found = []
    for invariant in invariants:
        if invariant == "v13_completeness":
            account = account_for_rows(connection, settings=settings, now=now)
            found += [Violation(invariant, row.offender, f"{row.place}: {row.detail}") for row in account.faults]
        else:
            rows = queries.fetch(connection, invariant, Offender, params)
            found += [Violation(invariant, row.offender, row.detail) for row in rows]
    return found
