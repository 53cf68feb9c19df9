"""How fast a usage file becomes billable events, beside PostgreSQL's own COPY of the same rows."""

from __future__ import annotations

import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from billing_pipeline.database.connection import connect
from billing_pipeline.usage.import_events import import_events
from billing_pipeline.usage.import_mapping import EventRule, ImportMapping
from billing_pipeline_tests.bench.line import Line
from billing_pipeline_tests.bench.stack import bench_stack

ROWS = 500_000
HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
MAPPING = ImportMapping(
    time_column="TIMESTAMP",
    timezone="UTC",
    id_prefix="bench",
    row_modulo=20,
    events=(
        EventRule(event_type="prompt_tokens", quantity_column="ContextTokens"),
        EventRule(event_type="generated_tokens", quantity_column="GeneratedTokens"),
    ),
)


def import_rate() -> Line:
    """Billable events a second from a CSV file of LLM requests, two events a row, into a table with its indexes."""
    with bench_stack() as stack, connect(stack.database_url) as connection, tempfile.TemporaryDirectory() as folder:
        file = _usage_file(Path(folder))
        started = time.perf_counter()
        result = import_events(
            connection,
            file,
            MAPPING,
            relation=stack.settings.billing_source_relation,
            shift_to_end_at=None,
            skip_conflicts=False,
            progress=lambda rows: None,
        )
        ours = result.added / (time.perf_counter() - started)
        assert result.added == 2 * ROWS, result
        bare = _copy_rate(connection)
    return Line("import", ours, "events/s", ours / bare, "100,000/s", ours >= 100_000)


BENCHMARKS = {"import": import_rate}


def _usage_file(folder: Path) -> Path:
    start = datetime.now(UTC) - timedelta(days=7)
    file = folder / "usage.csv"
    with file.open("w") as out:
        out.write(HEADER + "\n")
        for number in range(ROWS):
            at = start + timedelta(seconds=number)
            out.write(f"{at:%Y-%m-%d %H:%M:%S}.{number % 1_000_000:06d}0,{number % 4_000 + 1},{number % 800 + 1}\n")
    return file


def _copy_rate(connection) -> float:
    """The same rows by COPY into the same kind of table, out of a table that holds them already."""
    connection.execute("CREATE TABLE public.copied (LIKE public.billable_events INCLUDING ALL)")
    with connection.cursor() as cursor, cursor.copy("COPY public.billable_events TO STDOUT (FORMAT binary)") as copy:
        rows = list(copy)
    started = time.perf_counter()
    with connection.cursor() as cursor, cursor.copy("COPY public.copied FROM STDIN (FORMAT binary)") as copy:
        for row in rows:
            copy.write(row)
    return 2 * ROWS / (time.perf_counter() - started)
