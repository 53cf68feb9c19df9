"""The judge: sums from the source's rows and from the simulator's journal, in plain code of its own.

It never reads the ledger.  Truth is what the rows say by customer, meter and UTC hour; what counts is what the
simulator wrote down before it answered.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

Cell = tuple[str, str, datetime]
"""Customer, meter event name, UTC hour."""


Highest = Mapping[Cell, Sequence[tuple[datetime, int]]]
"""Per hour, from when on the source had said so much, rising: more may never be counted, not even for a moment."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """Units that Stripe lacks, units it had too many at the end or for a moment, and minutes counted twice."""

    lost: int
    over: int
    excess: int
    """Those of `over` that were more than the source had ever said: no correction was only under way."""
    doubled: int
    wrong: Mapping[Cell, str]
    """What is wrong with an hour, in words."""

    @property
    def right(self) -> bool:
        """Nothing lost, nothing doubled."""
        return not (self.wrong or self.doubled)


def truth(rows: Iterable[Mapping[str, Any]], customers: Mapping[str, str], counts: set[str]) -> Counter[Cell]:
    """What the source says; events of a type in `counts` are worth one, others their quantity."""
    total: Counter[Cell] = Counter()
    for row in rows:
        hour = row["occurred_at"].replace(minute=0, second=0, microsecond=0)
        meter = {"api_request": "api_requests"}.get(row["event_type"], row["event_type"])
        total[(customers[row["organization_id"]], meter, hour)] += 1 if row["event_type"] in counts else row["quantity"]
    return total


def judge(
    expected: Mapping[Cell, int],
    journal: Iterable[Mapping[str, Any]],
    ignored: set[str],
    highest: Highest | None = None,
) -> Verdict:
    """Compare; `ignored` are customers that stand for nobody, such as the canary's."""
    counted: Counter[Cell] = Counter()
    excess: Counter[Cell] = Counter()
    minutes: Counter[tuple[str, str, int]] = Counter()
    for record in journal:
        if record["kind"] != "meter_event" or record["customer"] in ignored:
            continue
        at = datetime.fromtimestamp(record["timestamp"], UTC).replace(minute=0, second=0)
        cell = (record["customer"], record["event_name"], at)
        counted[cell] += int(record["value"])
        minutes[(record["customer"], record["event_name"], record["timestamp"] // 60)] += 1
        if highest is not None:
            said = _said_by(highest.get(cell, ()), datetime.fromisoformat(record["received_at"]))
            excess[cell] = max(excess[cell], counted[cell] - said, 0)
    wrong: dict[Cell, str] = {}
    lost = over = 0
    for cell in sorted(counted.keys() | expected.keys()):
        difference = counted[cell] - expected.get(cell, 0)
        lost, over = lost + max(-difference, 0), over + max(difference, excess[cell], 0)
        if difference:
            wrong[cell] = f"{cell[0]} {cell[1]} {cell[2]:%Y-%m-%dT%H}: {difference:+d}"
        elif excess[cell] > 0:
            wrong[cell] = f"{cell[0]} {cell[1]} {cell[2]:%Y-%m-%dT%H}: {excess[cell]:+d} for a moment"
    return Verdict(lost, over, sum(excess.values()), sum(times - 1 for times in minutes.values() if times > 1), wrong)


def _said_by(said: Sequence[tuple[datetime, int]], at: datetime) -> int:
    return max((units for since, units in said if since <= at), default=0)
