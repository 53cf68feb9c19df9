"""Keeps the history of the meter catalogue: which definition of a meter is valid in which hour.

Aggregation asks here first, in its own transaction.  A definition that changed takes effect with the next full UTC
hour, so a change never rewrites an hour that was already counted, and late rows are counted as their hour was.
"""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from typing import Any

from psycopg import Connection
from psycopg.types.json import Jsonb

from billing_pipeline.database import queries
from billing_pipeline.domain.catalogue import Catalogue, Meter
from billing_pipeline.domain.reach import reach_start
from billing_pipeline.domain.windows import HOUR, hour_of


def definition(meter: Meter) -> dict[str, Any]:
    """What decides how a meter counts, with a version that two equal definitions share."""
    parts: dict[str, Any] = {
        "meter": meter.name,
        "event_types": sorted(meter.event_types),
        "aggregation": str(meter.aggregation),
        "event_name": meter.event_name,
        # As text: a JSON number may be read as a float.
        "unit_scale": f"{meter.unit_scale.normalize():f}",
    }
    # Only where they are used, so that a meter without them keeps its version.
    if meter.choices:
        parts["choices"] = [json.loads(choice) for choice in sorted(meter.choices)]
    if meter.property:
        parts["property"] = meter.property
    return parts | {"version": hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]}


def keep_meter_versions(
    connection: Connection[Any], catalogue: Catalogue, *, start_at: datetime | None, now: datetime
) -> int:
    """Close and open versions until the open ones are the catalogue's; returns how many were opened.

    `start_at` is the first hour that is billed at all; None is the whole reach.
    Runs in the caller's transaction, which must keep other callers out.
    """
    definitions = Jsonb([definition(meter) for meter in catalogue.meters])
    edge = {"definitions": definitions, "next_hour_at": hour_of(now) + HOUR}
    queries.execute(connection, "close_meter_versions", edge)
    return queries.execute(connection, "open_meter_versions", edge | {"billing_start": start_at or reach_start(now)})
