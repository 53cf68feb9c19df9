"""After stage 2: reads each meter's volume from the usage windows, and names what changed about it.

It reads what was just aggregated, never the source, so it can stop an hour in wrong units before the cutter states it.
`domain/volume.py` has the rules.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.domain.contract_rules import Fault, Part, Severity, fault, rules_of
from billing_pipeline.domain.volume import HISTORY_DAYS, MeterVolume, Volume, VolumeFactors, volume_changes
from billing_pipeline.domain.windows import DAY, HOUR, day_of, hour_of, utc
from billing_pipeline.errors import ContractBlocked

DAY_SETTLES = timedelta(hours=6)
"""A day counts as complete this long after its end, so that products which load their usage at night are no news."""


@dataclass(frozen=True, slots=True)
class _Row:
    meter: str
    starts_at: datetime
    quantity: Any
    events: int


def meter_volumes(connection: Connection[Any], *, grace: timedelta) -> list[MeterVolume]:
    """Each meter's complete days, from its first usage within the history on, and its last complete hour.

    Complete is what had ended, and had its grace, when the windows were last aggregated.
    """
    cutoff_at: datetime | None = queries.fetch_dicts(connection, "latest_aggregation")[0]["cutoff_at"]
    if cutoff_at is None:
        return []
    until = day_of(utc(cutoff_at) - DAY_SETTLES)
    hour_at = hour_of(utc(cutoff_at) - grace) - HOUR
    rows = queries.fetch(
        connection,
        "meter_volumes",
        _Row,
        {"since": until - (HISTORY_DAYS + 1) * DAY, "until": until, "hour_at": hour_at},
    )
    found: dict[str, dict[datetime, Volume]] = defaultdict(dict)
    for row in rows:
        starts_at = utc(row.starts_at)
        found[row.meter][starts_at] = Volume(starts_at, row.quantity, row.events)
    return [
        MeterVolume(meter, _without_gaps(volumes, until), volumes.get(hour_at, Volume(hour_at)))
        for meter, volumes in found.items()
    ]


def volume_faults(volumes: list[MeterVolume], factors: VolumeFactors) -> list[Fault]:
    """The broken rules about volume and units, each with the meters that break it."""
    told: dict[str, list[str]] = defaultdict(list)
    for volume in volumes:
        for change in volume_changes(volume, factors):
            told[change.reason].append(str(change))
    return [
        fault(rule.reason, len(told[rule.reason]), tuple(told[rule.reason]))
        for rule in rules_of(Part.VOLUME)
        if rule.reason in told
    ]


def require_steady_volume(faults: list[Fault]) -> None:
    """The gate's part when failing closed.  Raises `ContractBlocked` for a fault of the table."""
    if stopping := [found for found in faults if found.severity is Severity.TABLE]:
        told = "; ".join(f"{found.reason}: {', '.join(found.samples)}" for found in stopping)
        raise ContractBlocked(
            f"The volume of usage changed ({told}) and STRIPE_BILLING_CONTRACT_FAIL_CLOSED is on, so nothing was cut. "
            "docs/contract.md says what to do."
        )


def _without_gaps(volumes: dict[datetime, Volume], until: datetime) -> tuple[Volume, ...]:
    day_at, days = min(volumes), []
    while day_at < until:
        days.append(volumes.get(day_at, Volume(day_at)))
        day_at += DAY
    return tuple(days)
