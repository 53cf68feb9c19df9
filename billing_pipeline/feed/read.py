"""Reads of the feed: what follows an id, how far each organization's feed is, and where a reader begins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from psycopg import Connection

from billing_pipeline.database import queries

PAGE = 50
"""Rows that a reader gets at once; the table holds the rest."""


@dataclass(frozen=True, slots=True)
class FeedRow:
    """A row as it goes out: its id, and its payload as JSON text without line breaks."""

    feed_id: int
    payload: str


@dataclass(frozen=True, slots=True)
class FeedEnds:
    """The newest id of one organization, and the oldest and newest of all that is kept; 0 where there is none."""

    head: int
    oldest: int
    newest: int


@dataclass(frozen=True, slots=True)
class Beginning:
    """The id after which a reader reads, and whether rows may be missing before what he gets."""

    after: int
    has_gap: bool = False


def rows_after(connection: Connection[Any], *, organization_id: str, after: int, limit: int = PAGE) -> list[FeedRow]:
    """The next rows of an organization, in order, at most so many."""
    params = {"organization_id": organization_id, "after": after, "limit": limit}
    return queries.fetch(connection, "feed_after", FeedRow, params)


def newest_rows(connection: Connection[Any], *, organization_id: str, limit: int) -> list[FeedRow]:
    """The last rows of an organization, at most so many, in order."""
    params = {"organization_id": organization_id, "limit": limit}
    return queries.fetch(connection, "feed_newest", FeedRow, params)


def heads_of(connection: Connection[Any], organizations: Sequence[str]) -> Mapping[str, int]:
    """The newest id of each of these organizations that has any row."""
    found = queries.fetch_dicts(connection, "feed_heads", {"organizations": list(organizations)})
    return {str(row["organization_id"]): int(row["feed_id"]) for row in found}


def ends_of(connection: Connection[Any], organization_id: str) -> FeedEnds:
    """Where this organization's feed is, in what is kept."""
    [found] = queries.fetch(connection, "feed_ends", FeedEnds, {"organization_id": organization_id})
    return found


def begin(last_seen: int | None, ends: FeedEnds) -> Beginning:
    """Where a reader goes on who has seen everything up to an id; None is one who wants only what comes, 0 wants all.

    Rows may be missing where the row that he has seen last is out of retention, or comes from another life of the
    database, as after a restore: then he goes on with what comes.
    """
    if last_seen is None:
        return Beginning(ends.head)
    if last_seen > ends.newest:
        return Beginning(ends.head, has_gap=True)
    return Beginning(last_seen, has_gap=0 < last_seen < ends.oldest - 1)
