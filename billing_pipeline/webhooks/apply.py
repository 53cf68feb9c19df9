"""Writes what events and answers show of Stripe's objects, and what follows from it for organizations.

Runs inside the transaction of whoever calls: the dispatcher's, with the events' completion, or the refetch's.
What events alone cannot decide (ties, lists cut short) becomes a question to Stripe, asked after the commit.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.database.projections import Row, keep_greatest, lock_objects, ties
from billing_pipeline.domain.projections.projected import ObjectKind, Projected
from billing_pipeline.webhooks import entitle
from billing_pipeline.webhooks.handlers import HANDLERS, Question


@dataclass(frozen=True, slots=True)
class Seen:
    """An object as Stripe showed it at its second `at`, in an event or, where `source` says so, when asked."""

    projected: Projected
    at: datetime
    source: str


@dataclass(frozen=True, slots=True)
class Applied:
    """How many rows changed, which organizations may have, and customers that belong to none."""

    changed: int
    organizations: tuple[str, ...]
    customers_of_nobody: frozenset[str]


def apply(
    connection: Connection[Any], seen: Sequence[Seen], questions: Iterable[tuple[Question, datetime]], *, now: datetime
) -> Applied:
    """Keep the greatest version of each object, decide entitlements anew, and note what to ask Stripe."""
    lock_objects(connection, [one.projected.object_id for one in seen])
    # Invoices, which are most of what comes, decide nothing; their organizations are told, because a paid one renews.
    deciding = [one.projected for one in seen if one.projected.kind is not ObjectKind.INVOICE]
    before = entitle.customers_of(connection, [one.object_id for one in deciding])
    asked = [(question, "thin", at) for question, at in questions]
    changed = sum(_keep(connection, kind, of_kind, asked) for kind, of_kind in _by_kind(seen).items())
    _request(connection, asked, now)
    customers = {one.customer_id for one in deciding if one.customer_id}
    decided = entitle.decide_for_customers(connection, sorted(before | customers), now=now)
    billed = {one.projected.customer_id for one in seen if one.projected.customer_id} - customers
    told = entitle.organizations_of(connection, sorted(billed))
    nobody = entitle.without_organization(connection, sorted(customers))
    return Applied(changed, tuple(sorted({*decided, *told})), nobody)


def rows_by_table(seen: Iterable[Seen]) -> dict[str, list[Row]]:
    """The rows, with their versions, of the table that each object is kept in."""
    return {HANDLERS[kind].table: _rows(of_kind) for kind, of_kind in _by_kind(seen).items()}


def _by_kind(seen: Iterable[Seen]) -> dict[ObjectKind, list[Seen]]:
    # In one order for every writer, so that two of them cannot wait for each other.
    found: dict[ObjectKind, list[Seen]] = {kind: [] for kind in ObjectKind}
    for one in seen:
        found[one.projected.kind].append(one)
    return {kind: of_kind for kind, of_kind in found.items() if of_kind}


def _rows(seen: Iterable[Seen]) -> list[Row]:
    return [one.projected.row(at=one.at, source=one.source) for one in seen]


def _keep(
    connection: Connection[Any], kind: ObjectKind, seen: Sequence[Seen], asked: list[tuple[Question, str, datetime]]
) -> int:
    table = HANDLERS[kind].table
    rows = _rows(seen)
    asked += [(Question(kind, tie.object_id), "tie", tie.version_at) for tie in ties(connection, table, rows)]
    changed = keep_greatest(connection, table, rows)
    asked += [
        (Question(kind, one.projected.object_id), "incomplete", one.at)
        for one in seen
        if not one.projected.complete and one.projected.object_id in changed
    ]
    return len(changed)


def _request(connection: Connection[Any], asked: Sequence[tuple[Question, str, datetime]], now: datetime) -> None:
    if asked:
        queries.execute(
            connection,
            "request_refetches",
            {
                "ids": [question.object_id for question, _, _ in asked],
                "kinds": [question.kind.value for question, _, _ in asked],
                "reasons": [reason for _, reason, _ in asked],
                "moments": [at for _, _, at in asked],
                "now": now,
            },
        )
