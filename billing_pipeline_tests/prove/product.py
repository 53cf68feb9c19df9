"""What the simulated company's product counts: rows that come late, change and vanish, and what they say in all.

The world writes them into the source as the product would; the judge takes the truth from here.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from datetime import datetime
from itertools import count
from random import Random
from typing import Any

from psycopg import Connection

from billing_pipeline.domain.windows import hour_of
from billing_pipeline_tests.builders import billable_event, copy_events
from billing_pipeline_tests.prove.judge import Cell, truth
from billing_pipeline_tests.prove.plan import HOUR, MINUTE, Plan

EVENT_TYPES = ("prompt_tokens", "api_request")
COUNTED = {"api_request"}
Row = dict[str, Any]


class Product:
    """The source's rows, and from when on they have said how much of each hour."""

    def __init__(
        self, plan: Plan, time: Callable[[], datetime], customers: Mapping[str, str], started_at: datetime
    ) -> None:
        self.rows: dict[str, Row] = {}
        self.highest: defaultdict[Cell, list[tuple[datetime, int]]] = defaultdict(list)
        self._plan, self._time, self._customers, self._started_at = plan, time, customers, started_at
        self._numbers = count()

    def truth(self) -> Counter[Cell]:
        """Units per customer, meter and hour, as the rows say now."""
        return truth(self.rows.values(), self._customers, COUNTED)

    def new_rows(self, chance: Random) -> list[Row]:
        """What an hour brings; some of it late."""
        now = self._time()
        rows = []
        for organization_id in self._customers:
            for _ in range(chance.randrange(3)):
                late = chance.random() < self._plan.chances.late_row
                age = chance.random() * (72 * HOUR if late else 55 * MINUTE)
                # More digits than a float of four bytes holds.
                quantity = chance.randrange(1, 10**9)
                occurred_at = max(now - age, self._started_at)
                rows.append(self._row(organization_id, chance.choice(EVENT_TYPES), quantity, occurred_at, now))
        return rows

    def one_row(self, quantity: int) -> Row:
        """One organization's usage in this hour."""
        at = self._time() + MINUTE
        return self._row(next(iter(self._customers)), EVENT_TYPES[0], quantity, at, at)

    def record(self, connection: Connection[Any], rows: list[Row]) -> None:
        """Write rows to the source."""
        copy_events(connection, rows)
        self.rows |= {row["event_id"]: row for row in rows}
        self._note_truth(rows)

    def change_rows(self, connection: Connection[Any], chance: Random) -> None:
        """Corrections and deletions, within two days."""
        now = self._time()
        young = [row for row in self.rows.values() if row["occurred_at"] > now - 48 * HOUR]
        if young and chance.random() < self._plan.chances.changed_row:
            row = chance.choice(young)
            row |= {"quantity": chance.randrange(1, 10**9), "recorded_at": now}
            change = "UPDATE public.billable_events SET quantity = %s, recorded_at = %s WHERE event_id = %s"
            connection.execute(change, (row["quantity"], now, row["event_id"]))
            self._note_truth([row])
        if young and chance.random() < self._plan.chances.deleted_row:
            gone = chance.choice(young)["event_id"]
            del self.rows[gone]
            connection.execute("DELETE FROM public.billable_events WHERE event_id = %s", (gone,))

    def _row(
        self, organization_id: str, event_type: str, quantity: int, occurred_at: datetime, recorded_at: datetime
    ) -> Row:
        return billable_event(
            event_id=f"{self._plan.seed}-{next(self._numbers)}",
            organization_id=organization_id,
            event_type=event_type,
            quantity=quantity,
            occurred_at=occurred_at,
            recorded_at=recorded_at,
        )

    def _note_truth(self, changed: list[Row]) -> None:
        hours = {hour_of(row["occurred_at"]) for row in changed}
        of_hours = [row for row in self.rows.values() if hour_of(row["occurred_at"]) in hours]
        for cell, units in truth(of_hours, self._customers, COUNTED).items():
            self.highest[cell].append((self._time(), units))
