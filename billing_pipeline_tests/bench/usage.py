"""How fast usage is judged and counted: the contract beside plain pandas, the recount beside a bare GROUP BY, and what
an hour's flush costs when the history or the hour grows."""

from __future__ import annotations

import gc
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import pyarrow
import sqlalchemy
from psycopg import Connection

from billing_pipeline.database.connection import connect
from billing_pipeline.database.source import read_source
from billing_pipeline.usage.aggregate import Scope, aggregate
from billing_pipeline.usage.catalogue import load_catalogue
from billing_pipeline.usage.contract import ContractReport, validate_contract
from billing_pipeline.usage.row_contract import first_faults, row_schema, rows_recorded_since, statement_of
from billing_pipeline_tests.bench.line import Line
from billing_pipeline_tests.bench.stack import BenchStack, bench_stack

CONTRACT_ROWS = 5_000_000
MEMORY_ROWS = (1_000_000, 5_000_000)
RECOMPUTE_ROWS = 5_000_000
REACH = timedelta(days=34)
ORGANIZATIONS = 200

ROWS = """
INSERT INTO public.billable_events (event_id, organization_id, event_type, quantity, occurred_at, recorded_at)
SELECT %(prefix)s || n, 'org_' || (hashint8(n) & 65535) %% %(organizations)s,
       (ARRAY['api_request', 'prompt_tokens', 'generated_tokens'])[1 + n %% 3], 1 + n %% 4000, at,
       at + interval '2 seconds'
  FROM (SELECT n, %(start)s + n * (%(length)s / %(rows)s) AS at FROM generate_series(0, %(rows)s::bigint - 1) n) row
"""
"""Usage spread evenly over a time, by three types and two hundred organizations."""

BARE = """
CREATE TEMP TABLE bare AS
SELECT organization_id, event_type, date_trunc('hour', occurred_at, 'UTC') AS hour_at, sum(quantity), count(*)
  FROM public.billable_events
 WHERE occurred_at >= %s
 GROUP BY 1, 2, 3
"""


def fill(connection: Connection[Any], rows: int, start: datetime, length: timedelta, prefix: str = "evt_") -> None:
    """Write so many rows into the source."""
    connection.execute(
        ROWS,
        {"rows": rows, "start": start, "length": length, "prefix": prefix, "organizations": ORGANIZATIONS},
    )
    connection.execute("VACUUM ANALYZE public.billable_events")


def contract() -> Line:
    """Rows judged a second in a validation of the whole lookback, beside pandas.read_sql and the same schema."""
    with bench_stack() as stack, connect(stack.database_url) as connection:
        fill(connection, CONTRACT_ROWS, datetime.now(UTC) - timedelta(days=29), timedelta(days=29))
        started = time.perf_counter()
        report = _validate(stack, connection)
        ours = report.rows_read / (time.perf_counter() - started)
        assert report.rows_read == CONTRACT_ROWS, report
        assert not report.faults, report
        gc.collect()
        plain = _plain_rate(stack, connection)
    return Line("contract", ours, "rows/s", ours / plain, "500,000/s and 4x", ours >= 500_000 and ours >= 4 * plain)


def contract_memory() -> Line:
    """Peak memory of the process that validates five million rows, in MB; less than 600, as with a million."""
    command = "import sys; from billing_pipeline_tests.bench.usage import validate_many as run; run(int(sys.argv[1]))"
    few, many = (
        int(
            subprocess.run(
                [sys.executable, "-c", command, str(rows)], check=True, capture_output=True, text=True
            ).stdout.split()[-1]
        )
        for rows in MEMORY_ROWS
    )
    ok = many < 600 and many < 1.25 * few
    return Line("contract_memory", many, "MB", many / few, "<600 MB and <1.25x that of 1/5 of the rows", ok)


def validate_many(rows: int) -> None:
    """Runs in a process of its own, so that the peak is the contract's."""
    with bench_stack() as stack, connect(stack.database_url) as connection:
        fill(connection, rows, datetime.now(UTC) - timedelta(days=29), timedelta(days=29))
        assert _validate(stack, connection).rows_read == rows
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024)  # noqa: T201


def recompute() -> Line:
    """Rows counted a second by the full recount of 35 days, beside PostgreSQL's bare GROUP BY over the same rows."""
    with bench_stack() as stack, connect(stack.database_url) as connection:
        now = datetime.now(UTC)
        fill(connection, RECOMPUTE_ROWS, now - REACH, REACH)
        _aggregate(stack, connection, now, Scope.FULL)
        connection.execute("VACUUM ANALYZE billing_pipeline.usage_windows")
        # Alternately, so that neither has the warmer cache.
        bare, ours = _in_turn(
            lambda: _group_by(connection, now - timedelta(days=35)),
            lambda: _aggregate(stack, connection, now, Scope.FULL),
        )
    rate = RECOMPUTE_ROWS / ours
    return Line("recompute", rate, "rows/s", bare / ours, "0.5x", bare / ours >= 0.5)


def flush_history_growth() -> Line:
    """What an hour's validation and count cost over a hundred times the history; at most 1.2 times as much."""
    small = _hour_seconds(history=40_000, hour=2_000)
    large = _hour_seconds(history=4_000_000, hour=2_000)
    return Line("flush_history_growth", large * 1000, "ms", large / small, "<=1.2x", large <= 1.2 * small)


def flush_hour_growth() -> Line:
    """What an hour's validation and count cost with ten times the events in the hour; at most 12 times as much."""
    small = _hour_seconds(history=1_000_000, hour=20_000)
    large = _hour_seconds(history=1_000_000, hour=200_000)
    return Line("flush_hour_growth", large * 1000, "ms", large / small, "<=12x", large <= 12 * small)


BENCHMARKS = {
    "contract": contract,
    "contract_memory": contract_memory,
    "recompute": recompute,
    "flush_history_growth": flush_history_growth,
    "flush_hour_growth": flush_hour_growth,
}


def _hour_seconds(*, history: int, hour: int) -> float:
    """Median seconds of what a flush does in the database, over five hours of so many events behind such a history."""
    with bench_stack() as stack, connect(stack.database_url) as connection:
        first_hour = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=8)
        fill(connection, history, first_hour - timedelta(days=25), timedelta(days=25))
        _aggregate(stack, connection, first_hour, Scope.FULL)
        _flush_hour(stack, connection, first_hour, since=first_hour - timedelta(minutes=15))
        seconds = []
        for number in range(5):
            start = first_hour + timedelta(hours=number)
            fill(connection, hour, start, timedelta(minutes=59), prefix=f"hour_{number}_")
            began = time.perf_counter()
            _flush_hour(stack, connection, start + timedelta(hours=1), since=start - timedelta(minutes=15))
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _flush_hour(stack: BenchStack, connection: Connection[Any], now: datetime, since: datetime) -> None:
    _validate(stack, connection, now=now, since=since)
    _aggregate(stack, connection, now, Scope.TOUCHED)


def _validate(
    stack: BenchStack, connection: Connection[Any], now: datetime | None = None, since: datetime | None = None
) -> ContractReport:
    return validate_contract(
        connection,
        stack.database_url,
        source=read_source(connection, stack.settings),
        catalogue=load_catalogue(stack.settings),
        since=since,
        lookback=timedelta(days=30),
        now=now or datetime.now(UTC),
    )


def _aggregate(stack: BenchStack, connection: Connection[Any], now: datetime, scope: Scope) -> None:
    aggregate(
        connection,
        source=read_source(connection, stack.settings),
        catalogue=load_catalogue(stack.settings),
        start_at=None,
        overlap=timedelta(minutes=15),
        clock=lambda: now,
        scope=scope,
    )


def _group_by(connection: Connection[Any], since: datetime) -> None:
    connection.execute(BARE, (since,))
    connection.execute("DROP TABLE bare")


def _plain_rate(stack: BenchStack, connection: Connection[Any]) -> float:
    """The same rows by pandas.read_sql in one go, and the same schema over the frame."""
    catalogue = load_catalogue(stack.settings)
    since = datetime.now(UTC) - timedelta(days=36)
    rows = rows_recorded_since(read_source(connection, stack.settings), recorded_since=since, occurred_since=since)
    statement = statement_of(connection, catalogue, rows)
    engine = sqlalchemy.create_engine(stack.database_url.replace("postgresql://", "postgresql+psycopg://"))
    started = time.perf_counter()
    with engine.connect() as plain:
        frame = pd.read_sql(sqlalchemy.text(statement.replace(":", "\\:")), plain, dtype_backend="pyarrow")
    lag = (frame["recorded_at"] - frame["occurred_at"]).astype(pd.ArrowDtype(pyarrow.duration("us")))
    frame["lag_microseconds"] = lag.astype(pd.ArrowDtype(pyarrow.int64()))
    schema = row_schema(catalogue)
    typed = {name: column.dtype.type for name, column in schema.columns.items() if column.dtype}
    assert len(first_faults(schema, frame.astype(typed))) == 0
    return len(frame) / (time.perf_counter() - started)


def _in_turn(*runs: Callable[[], object], times: int = 3) -> list[float]:
    """Median seconds of each, run one after the other, several times."""
    seconds: list[list[float]] = [[] for _ in runs]
    for _ in range(times):
        for number, run in enumerate(runs):
            began = time.perf_counter()
            run()
            seconds[number].append(time.perf_counter() - began)
    return [statistics.median(found) for found in seconds]
