"""How long a person waits for `explain` when the history has grown: the same hour behind one and ten million rows."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

from psycopg import Connection

from billing_pipeline.database.connection import connect
from billing_pipeline.database.source import read_source
from billing_pipeline.usage.aggregate import Scope, aggregate
from billing_pipeline.usage.catalogue import load_catalogue
from billing_pipeline.usage.explain import Question, explain
from billing_pipeline.usage.explain_page import page_of
from billing_pipeline.usage.page import as_text
from billing_pipeline_tests.bench.line import Line
from billing_pipeline_tests.bench.stack import BenchStack, bench_stack
from billing_pipeline_tests.bench.usage import ORGANIZATIONS, fill

ROWS = (1_000_000, 10_000_000)
HOUR_ROWS = 20_000
ASKED = 25
MILLISECONDS_MAX = 1_000
RATIO_MAX = 1.5

LEDGER = (
    "INSERT INTO customer_mappings (organization_id, stripe_customer_id) "
    "SELECT 'org_' || n, 'cus_' || n FROM generate_series(0, %(organizations)s - 1) n",
    "UPDATE usage_windows SET stripe_customer_id = 'cus_' || substr(organization_id, 5)",
    "INSERT INTO ledger_entries (window_id, sequence, epoch, stripe_customer_id, event_name, value, slot_at, "
    "identifier, state) SELECT window_id, 0, 0, stripe_customer_id, event_name, target, starts_at, "
    "'be1_t_' || window_id, 'adopted' FROM usage_windows WHERE target > 0",
    "INSERT INTO attempts (entry_id, fence, channel, outcome, http_status) "
    "SELECT entry_id, 1, 'v1', 'ok', 200 FROM ledger_entries",
    "INSERT INTO evidence (entry_id, kind, observed, granularity) "
    "SELECT entry_id, 'summary_present', value, 'hour' FROM ledger_entries",
    "INSERT INTO meter_summaries SELECT stripe_customer_id, event_name, slot_at, value, now() FROM ledger_entries",
    "INSERT INTO quarantined_events (event_id, reason, contract_version, organization_id, event_type, quantity) "
    "SELECT 'bad_' || n, 'quantity_missing', '1', 'org_' || n %% %(organizations)s, 'prompt_tokens', NULL "
    "FROM generate_series(1, %(quarantined)s) n",
    "VACUUM ANALYZE",
)
"""A ledger as billing leaves it: each usage window with an entry, an attempt, its proof and what Stripe showed."""


def explain_hour() -> Line:
    """Milliseconds for one organization's hour over ten million rows; at most 1.5 times those over one million."""
    now = datetime.now(UTC)
    hour_at = now.replace(minute=0, second=0, microsecond=0) - timedelta(days=4)
    with ExitStack() as stack:
        few, many = (stack.enter_context(_history(rows, hour_at, now)) for rows in ROWS)
        took: dict[int, list[float]] = {rows: [] for rows in ROWS}
        # In turn, so that both meet the same moments of the machine.
        for number in range(ASKED):
            for rows, (bench, connection) in zip(ROWS, (few, many), strict=True):
                began = time.perf_counter()
                _explained(bench, connection, f"org_{number}", hour_at, now)
                took[rows].append(time.perf_counter() - began)
    of_few, of_many = (statistics.median(took[rows]) for rows in ROWS)
    ok = of_many * 1000 <= MILLISECONDS_MAX and of_many <= RATIO_MAX * of_few
    return Line("explain", of_many * 1000, "ms", of_many / of_few, f"<={MILLISECONDS_MAX:,} ms and <={RATIO_MAX}x", ok)


BENCHMARKS = {"explain": explain_hour}


@contextmanager
def _history(rows: int, hour_at: datetime, now: datetime) -> Iterator[tuple[BenchStack, Connection[Any]]]:
    """A billed history of so many rows, in which nobody has asked yet."""
    with bench_stack() as stack, connect(stack.database_url) as connection:
        # The hour in the middle is the same in both; only what lies around it grows.
        fill(connection, rows - rows // 10, hour_at - timedelta(days=30), timedelta(days=30), prefix="before_")
        fill(connection, rows // 10, hour_at + timedelta(hours=1), timedelta(days=3), prefix="after_")
        fill(connection, HOUR_ROWS, hour_at, timedelta(minutes=59), prefix="hour_")
        _bill(stack, connection, now, rows)
        yield stack, connection


def _bill(stack: BenchStack, connection: Connection[Any], now: datetime, rows: int) -> None:
    aggregate(
        connection,
        source=read_source(connection, stack.settings),
        catalogue=load_catalogue(stack.settings),
        start_at=None,
        overlap=timedelta(minutes=15),
        clock=lambda: now,
        scope=Scope.FULL,
    )
    for statement in LEDGER:
        given = {"organizations": ORGANIZATIONS, "quarantined": rows // 1_000}
        connection.execute(statement, given if "%(" in statement else None)


def _explained(
    stack: BenchStack, connection: Connection[Any], organization: str, hour_at: datetime, now: datetime
) -> None:
    found = explain(
        connection,
        Question(organization, hour_at),
        source=read_source(connection, stack.settings),
        catalogue=load_catalogue(stack.settings),
        settings=stack.settings,
        prices=lambda names: ({}, "not asked here"),
        now=now,
    )
    page = as_text(page_of(found))
    assert len(found.windows) == 3, page
    assert all(window.counted and window.row for window in found.windows), page
    counted = sum((window.counted.events for window in found.windows if window.counted), 0)
    assert counted == HOUR_ROWS // ORGANIZATIONS or abs(counted - HOUR_ROWS / ORGANIZATIONS) < 60, counted
    assert found.verdict.text == "Nothing is owed in any of the 3 usage windows.", page
    assert all(window.row.target == Decimal(window.entries[0].row.value) for window in found.windows if window.row)
