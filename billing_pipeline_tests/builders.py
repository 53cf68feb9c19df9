"""Rows for tests, each with sensible values that a test overrides where it matters."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import count
from typing import Any

from psycopg import Connection
from psycopg.types.json import Jsonb

from billing_pipeline.database.source import Source, read_source
from billing_pipeline.domain.source_columns import DEFAULT_RELATION
from billing_pipeline.settings import load_settings

NOON = datetime(2026, 3, 10, 12, tzinfo=UTC)
"""A quiet hour in the past, the default time of events; tests that reach Stripe pass recent times."""

_numbers = count(1)


def source_of(connection: Connection[Any], relation: str = DEFAULT_RELATION, columns: str = "") -> Source:
    """The source as these settings name it."""
    return read_source(connection, load_settings(billing_source_relation=relation, billing_source_columns=columns))


def billable_event(**overrides: Any) -> dict[str, Any]:
    """One row of `billable_events`; recorded a minute after it occurred unless told otherwise."""
    occurred_at = overrides.get("occurred_at", NOON)
    recorded = occurred_at + timedelta(minutes=1) if isinstance(occurred_at, datetime) else NOON
    return {
        "event_id": f"evt-{next(_numbers)}",
        "organization_id": "acme",
        "event_type": "prompt_tokens",
        "quantity": Decimal(1),
        "occurred_at": occurred_at,
        "recorded_at": recorded,
        "properties": None,
    } | overrides


def insert_events(connection: Connection[Any], *events: dict[str, Any]) -> None:
    """Write rows to the source as the product would."""
    copy_events(connection, events)


def copy_events(connection: Connection[Any], events: Iterable[dict[str, Any]]) -> None:
    """The same for many rows."""
    columns = ("event_id", "organization_id", "event_type", "quantity", "occurred_at", "recorded_at", "properties")
    with (
        connection.cursor() as cursor,
        cursor.copy(f"COPY public.billable_events ({', '.join(columns)}) FROM STDIN") as copy,
    ):
        for event in events:
            row = [event.get(column) for column in columns]
            copy.write_row([Jsonb(value) if isinstance(value, dict) else value for value in row])


def map_customer(connection: Connection[Any], organization_id: str, customer: str, during: str = "(,)") -> None:
    """Bill an organization to a Stripe customer, for always or for a range in PostgreSQL's notation."""
    connection.execute(
        "INSERT INTO customer_mappings (organization_id, stripe_customer_id, valid_during) VALUES (%s, %s, %s)",
        (organization_id, customer, during),
    )
