"""Decides what organizations may use, from Stripe's objects as they are kept and from who maps a customer to whom.

Called with every change of an object, and for everybody when the `entitlements` asset is materialized: a mapping that
a person adds or ends changes what follows, and no event tells of it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.database.projections import lock_objects
from billing_pipeline.database.transactions import in_transaction
from billing_pipeline.webhooks.feature_cache import OnChanged, tell

BATCH = 1_000


@dataclass(frozen=True, slots=True)
class EntitlementsReport:
    """How many customers were looked at, and the organizations whose entitlements changed by that."""

    customers: int
    changed: tuple[str, ...]


def decide_for_customers(connection: Connection[Any], customers: Sequence[str], *, now: datetime) -> tuple[str, ...]:
    """Decide anew what the organizations of these customers may use; return those organizations."""
    return _decide_for(connection, customers, now)[0] if customers else ()


def decide_all(
    connection: Connection[Any],
    clock: Callable[[], datetime],
    *,
    batch: int = BATCH,
    on_changed: OnChanged | None = None,
) -> EntitlementsReport:
    """Decide everybody's entitlements anew, so many customers in a transaction; each batch is committed, then told."""
    looked_at, changed, after = 0, set[str](), ""
    while customers := customers_after(connection, after=after, limit=batch):
        work = partial(_decide_for, connection, customers, clock())
        _, of_batch = in_transaction(connection, work, name="Deciding entitlements")
        tell(on_changed, sorted(of_batch))
        changed |= of_batch
        looked_at, after = looked_at + len(customers), customers[-1]
    return EntitlementsReport(looked_at, tuple(sorted(changed)))


def customers_of(connection: Connection[Any], object_ids: Sequence[str]) -> set[str]:
    """Customers that these objects, as they are kept now, belong to."""
    found = queries.fetch_dicts(connection, "customers_of_objects", {"ids": list(object_ids)}) if object_ids else []
    return {str(row["stripe_customer_id"]) for row in found}


def organizations_of(connection: Connection[Any], customers: Sequence[str]) -> set[str]:
    """Organizations that these customers were last found to belong to."""
    found = queries.fetch_dicts(connection, "organizations_of", {"customers": list(customers)}) if customers else []
    return {str(row["organization_id"]) for row in found}


def without_organization(connection: Connection[Any], customers: Sequence[str]) -> frozenset[str]:
    """Those of these customers that belong to no organization."""
    found = queries.fetch_dicts(connection, "customers_of_nobody", {"customers": list(customers)}) if customers else []
    return frozenset(str(row["stripe_customer_id"]) for row in found)


def customers_after(connection: Connection[Any], *, after: str, limit: int) -> list[str]:
    """Customers that any object or row knows, in order after one of them."""
    found = queries.fetch_dicts(connection, "customers_after", {"after": after, "limit": limit})
    return [str(row["stripe_customer_id"]) for row in found]


def lock_customers(connection: Connection[Any], customers: Sequence[str]) -> None:
    """Wait until nobody else decides whose these customers are: an answer that is older must not be written later."""
    lock_objects(connection, (f"whose is {customer}" for customer in customers))


def whose(connection: Connection[Any], customers: Sequence[str]) -> tuple[str, ...]:
    """Keep whose these customers are now; return the organizations before and after."""
    found = queries.fetch_dicts(connection, "refresh_customer_organizations", {"customers": list(customers)})
    return tuple(sorted(str(row["organization_id"]) for row in found))


def decide(connection: Connection[Any], organizations: Sequence[str], *, now: datetime) -> set[str]:
    """Write what these organizations may use, where it changes; return those of whom it did."""
    if not organizations:
        return set()
    params = {"organizations": list(organizations), "now": now}
    changed = queries.fetch_dicts(connection, "decide_saas", params)
    changed += queries.fetch_dicts(connection, "decide_features", params)
    return {str(row["organization_id"]) for row in changed}


def _decide_for(
    connection: Connection[Any], customers: Sequence[str], now: datetime
) -> tuple[tuple[str, ...], set[str]]:
    """The organizations of these customers, and those of them whose entitlements changed."""
    lock_customers(connection, customers)
    organizations = whose(connection, customers)
    # Two customers of one organization may be handled at once; the second decides with what the first wrote.
    lock_objects(connection, (f"entitlements of {organization}" for organization in organizations))
    return organizations, decide(connection, organizations, now=now)
