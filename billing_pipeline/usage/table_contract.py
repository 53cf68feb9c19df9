"""The rules about the source's rows as a whole: what must be there, and whose usage nobody can take.

`contract.py` asks after it has read the rows one by one.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.database.source import Source
from billing_pipeline.domain.catalogue import Catalogue
from billing_pipeline.domain.contract_rules import SAMPLES_MAX, Fault, fault
from billing_pipeline.domain.reach import reach_end
from billing_pipeline.errors import SettingsError


def table_faults(
    connection: Connection[Any],
    source: Source,
    *,
    required_event_types: tuple[str, ...],
    lookback_start: datetime,
    now: datetime,
) -> list[Fault]:
    """The broken ones of these rules.  The lookback ends where aggregation's reach does: infinity is not in it."""
    faults = []
    lookback = {"since": lookback_start, "until": reach_end(now)}
    if not queries.fetch_dicts(connection, "source_has_rows_between", lookback, parts=source.parts)[0]["found"]:
        faults.append(fault("lookback_empty", 1))
    if required_event_types:
        params = lookback | {"event_types": list(required_event_types)}
        rows = queries.fetch_dicts(connection, "absent_event_types", params, parts=source.parts)
        if absent := tuple(row["event_type"] for row in rows):
            faults.append(fault("required_event_type_absent", len(absent), absent))
    unmapped = queries.fetch_dicts(connection, "some_unmapped_organizations")
    if unmapped:
        ids = tuple(row["organization_id"] for row in unmapped[:SAMPLES_MAX])
        faults.append(fault("organization_unmapped", len(unmapped), ids))
    return faults


def require_known_event_types(required_event_types: tuple[str, ...], catalogue: Catalogue) -> None:
    """Refuse to require what the catalogue has never heard of.  Raises `SettingsError` naming the types."""
    if unknown := [kind for kind in required_event_types if kind not in catalogue.known_event_types]:
        raise SettingsError(
            f"The contract requires event types that the meter catalogue does not know: {', '.join(unknown)}. "
            "Add them to a meter or to ignored_event_types in BILLING_METERS_FILE, or take them out of "
            "STRIPE_BILLING_CONTRACT_REQUIRED_EVENT_TYPES; "
            "STRIPE_BILLING_CONTRACT_REQUIRE_ZEITGEIST and --require-zeitgeist require the type zeitgeist."
        )
