"""What statements over the source read of a row's properties: nothing, unless some meter asks for them.

Properties are wide, and most catalogues look only at columns; a statement that carries them for nothing costs twice
the time.  What `meter_versions` knows of any hour decides, so it is asked after aggregation has recorded the catalogue.
"""

from __future__ import annotations

from typing import Any

from psycopg import Connection
from psycopg.sql import SQL, Composable

from billing_pipeline.database import queries


def kinds_of_counting(connection: Connection[Any]) -> dict[str, bool]:
    """Whether any hour is counted by `properties`, as `period_levels`, or by `unique_values`."""
    return queries.fetch_dicts(connection, "kinds_of_counting")[0]


def property_parts(connection: Connection[Any]) -> dict[str, Composable]:
    """The parts `properties` and `property_missing` of a statement that calls the source `s`."""
    if not kinds_of_counting(connection)["properties"]:
        return {"properties": SQL("NULL::jsonb"), "property_missing": SQL("false")}
    return {"properties": SQL("s.properties"), "property_missing": queries.part("lacks_a_property")}
