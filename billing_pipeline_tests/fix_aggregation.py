"""Aggregation alone, on a clock that stands still: what the source says becomes windows, nothing is sent."""

from __future__ import annotations

from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from psycopg import Connection

from billing_pipeline.domain.catalogue import Catalogue, parse_catalogue
from billing_pipeline.usage.aggregate import AggregationReport, Scope, aggregate
from billing_pipeline_tests.builders import NOON, source_of

TOKENS = '[meters.tokens]\nevent_types = ["tokens"]\naggregation = "sum"\n'


def catalogue_of(*meters: str) -> Catalogue:
    """A catalogue of these meter tables."""
    return parse_catalogue("\n".join(meters), origin="test")


class Aggregator:
    """Aggregates `public.billable_events` at `now`, which a test moves by hand."""

    def __init__(self, connection: Connection[Any]) -> None:
        self.connection = connection
        self.catalogue = catalogue_of(TOKENS)
        self.now = NOON + timedelta(hours=3, minutes=20)
        self.start_at: datetime | None = None

    def __call__(self, scope: Scope | None = Scope.FULL) -> AggregationReport:
        return aggregate(
            self.connection,
            source=source_of(self.connection),
            catalogue=self.catalogue,
            start_at=self.start_at,
            overlap=timedelta(minutes=15),
            clock=lambda: self.now,
            scope=scope,
        )

    def targets(self) -> dict[tuple[str, datetime], Decimal]:
        """Meter and hour -> target, of the windows that are worth something."""
        rows = self.connection.execute("SELECT meter, starts_at, target FROM usage_windows WHERE target > 0").fetchall()
        return {(meter, starts_at): target for meter, starts_at, target in rows}


@pytest.fixture
def aggregator(connection: Connection[Any]) -> Aggregator:
    """An aggregator of one meter, `tokens`."""
    return Aggregator(connection)
