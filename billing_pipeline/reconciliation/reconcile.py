"""Reads the three sides of every organization and meter in one snapshot, and names their differences.

The last asset of a flush, and what a person looks at first when a number on an invoice is doubted.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from psycopg import Connection
from psycopg.sql import Literal

from billing_pipeline.database import queries
from billing_pipeline.domain.catalogue import Catalogue
from billing_pipeline.domain.differences import Difference, Sides, differences
from billing_pipeline.domain.windows import hour_of
from billing_pipeline.settings import Settings


@dataclass(frozen=True, slots=True)
class ReconciliationReport:
    """All sides, and the differences between them."""

    sides: tuple[Sides, ...]
    differences: tuple[Difference, ...]

    @property
    def faults(self) -> tuple[Difference, ...]:
        """Differences that no state of affairs explains."""
        return tuple(difference for difference in self.differences if difference.is_fault)


def reconcile(
    connection: Connection[Any], *, settings: Settings, catalogue: Catalogue, now: datetime
) -> ReconciliationReport:
    """Compare source, ledger and Stripe's last shown summaries over the lookback."""
    lookback = timedelta(days=settings.stripe_billing_contract_lookback_days)
    grace = timedelta(seconds=settings.billing_window_grace_seconds)
    rows = [(meter, event_type) for meter in catalogue.meters for event_type in meter.event_types]
    sides = queries.fetch(
        connection,
        "reconcile_usage",
        Sides,
        parts={
            "source": queries.relation(settings.billing_source_relation),
            "lookback_start": Literal(hour_of(now - lookback)),
            "closed_before": Literal(now - grace),
            "meters": Literal([meter.name for meter, _ in rows]),
            "event_types": Literal([event_type for _, event_type in rows]),
            "aggregations": Literal([str(meter.aggregation) for meter, _ in rows]),
            "unit_scales": Literal([meter.unit_scale for meter, _ in rows]),
            "event_names": Literal([meter.event_name for meter, _ in rows]),
        },
    )
    return ReconciliationReport(tuple(sides), tuple(found for side in sides for found in differences(side)))
