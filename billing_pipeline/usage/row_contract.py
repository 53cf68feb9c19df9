"""The contract of a single row, as one pandera schema over a chunk of the source.

`contract.py` runs it on the frames that ADBC reads; what a chunk's columns are is decided here and in the statement
`read_for_contract`.  `database/schema/contract.sql` states the same rules for aggregation, in the snapshot it counts,
and a test holds the two equal.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

import pandas as pd
import pandera.pandas as pa
import pyarrow
import pyarrow.compute as compute
from psycopg import Connection
from psycopg.sql import SQL, Composable, Composed, Literal

from billing_pipeline.database import queries
from billing_pipeline.database.arrow import ahead, read_batches
from billing_pipeline.database.properties import kinds_of_counting
from billing_pipeline.database.source import Source
from billing_pipeline.domain.catalogue import Catalogue
from billing_pipeline.domain.reach import FUTURE_MAX

PAST_MAX = timedelta(days=35)  # Stripe: a meter event may lie at most 35 days back
_MICROSECOND = timedelta(microseconds=1)

_TIME = pyarrow.timestamp("us", tz="UTC")
_FIRST_TIME = datetime(1, 1, 1, tzinfo=UTC)
# The last day is out: its last window would end in the year 10000.
_END_OF_TIME = datetime(9999, 12, 31, tzinfo=UTC)

_COLUMNS = pyarrow.schema(
    [
        ("event_id", pyarrow.string()),
        ("organization_id", pyarrow.string()),
        ("event_type", pyarrow.string()),
        ("quantity", pyarrow.string()),
        ("occurred_at", _TIME),
        ("recorded_at", _TIME),
        ("property_missing", pyarrow.bool_()),
        ("counted", pyarrow.bool_()),
        ("summed", pyarrow.bool_()),
    ]
)

ROW_RULES = (
    "event_id_missing",
    "organization_id_missing",
    "event_type_missing",
    "quantity_missing",
    "quantity_not_finite",
    "quantity_negative",
    "quantity_too_many_digits",
    "property_missing",
    "occurred_at_missing",
    "recorded_at_missing",
    "time_out_of_range",
    "occurred_at_in_future",
    "occurred_at_too_old",
    "event_type_unknown",
)
"""Reason codes in order; a row with several faults is quarantined under the first."""


def rows_recorded_since(source: Source, *, recorded_since: datetime, occurred_since: datetime | None) -> Composed:
    """The rows recorded or occurred since then, and all without recorded_at."""
    return queries.part("rows_recorded_since").format(
        source=source.sql,
        recorded_since=Literal(recorded_since),
        occurred_since=Literal(occurred_since or "infinity"),
    )


def rows_in_quarantine(source: Source, event_ids: Sequence[str] | None) -> Composed:
    """The rows of the source that wait in quarantine, or those of `event_ids` that ever were there."""
    asked = Literal(None if event_ids is None else list(event_ids))
    return queries.part("rows_in_quarantine").format(**source.parts, event_ids=asked)


def statement_of(connection: Connection[Any], catalogue: Catalogue, rows: Composable) -> str:
    """What is read of these rows of the source, ready to be sent."""
    return (
        SQL(queries.statements()["read_for_contract"])
        .format(
            rows=SQL("({})").format(rows),
            known_event_types=Literal(sorted(catalogue.known_event_types)),
            property_missing=property_missing(connection, catalogue),
        )
        .as_string(connection)
    )


def read_chunks(
    connection: Connection[Any], database_url: str, catalogue: Catalogue, rows: Composable
) -> Iterator[pd.DataFrame]:
    """These rows of the source as Arrow-backed frames.

    Raises `DatabaseUnavailable` when the source cannot be read to its end.
    """
    batches = read_batches(database_url, statement_of(connection, catalogue, rows))
    # The next chunk is read and converted while this one is judged: both work without the interpreter's lock.
    return ahead(_frame(batch) for batch in batches)


def _frame(batch: pyarrow.RecordBatch) -> pd.DataFrame:
    table = pyarrow.Table.from_batches([batch]).cast(_COLUMNS)
    lag = compute.subtract(table["recorded_at"], table["occurred_at"]).cast(pyarrow.int64())
    return table.append_column("lag_microseconds", lag).to_pandas(types_mapper=pd.ArrowDtype)


def property_missing(connection: Connection[Any], catalogue: Catalogue) -> Composable:
    """Whether a row lacks a property that a meter counts by, as SQL over the source as `s`."""
    if not catalogue.needed_properties and not kinds_of_counting(connection)["unique_values"]:
        return SQL("false")
    needed = [{"event_type": kind, "property": name} for kind, name in sorted(catalogue.needed_properties)]
    # Escaped, because the driver would take a % for the place of a value.
    as_json = json.dumps(needed).replace("%", "\\u0025")
    return queries.part("missing_property").format(
        lacks_a_property=queries.part("lacks_a_property"), needed_properties=Literal(as_json)
    )


def row_schema(catalogue: Catalogue) -> pa.DataFrameSchema:
    """The contract as pandera sees a chunk; each check is named by its reason code."""
    known, summed = sorted(catalogue.known_event_types), sorted(catalogue.summed_event_types)
    earliest_lag, latest_lag = -FUTURE_MAX // _MICROSECOND, PAST_MAX // _MICROSECOND
    return pa.DataFrameSchema(
        {
            "event_id": _text(_present("event_id"), _filled("event_id")),
            "organization_id": _text(_present("organization_id"), _filled("organization_id")),
            "event_type": _text(
                _present("event_type"),
                _filled("event_type"),
            ),
            "quantity": _text(
                pa.Check(lambda c: ~c.isin(["NaN", "Infinity", "-Infinity"]), name="quantity_not_finite"),
                pa.Check(lambda c: ~c.str.startswith("-"), name="quantity_negative"),
                pa.Check(lambda c: c.str.fullmatch(r"\d{1,15}(\.\d{0,12}0*)?"), name="quantity_too_many_digits"),
            ),
            "occurred_at": _time(_present("occurred_at"), pa.Check(_in_range, name="time_out_of_range")),
            "recorded_at": _time(_present("recorded_at"), pa.Check(_in_range, name="time_out_of_range")),
            "property_missing": pa.Column(
                pd.ArrowDtype(pyarrow.bool_()), pa.Check(lambda c: ~c, name="property_missing"), nullable=False
            ),
            "counted": pa.Column(pd.ArrowDtype(pyarrow.bool_())),
            "summed": pa.Column(pd.ArrowDtype(pyarrow.bool_()), nullable=True),
            "lag_microseconds": pa.Column(
                pd.ArrowDtype(pyarrow.int64()),
                [
                    pa.Check(lambda c: c >= earliest_lag, name="occurred_at_in_future"),
                    pa.Check(lambda c: c <= latest_lag, name="occurred_at_too_old"),
                ],
                nullable=True,
            ),
        },
        # These look at several columns.  A count needs no quantity, a sum does; and a type that the catalogue has
        # dropped since is still known in the hours that counted it.
        checks=[
            pa.Check(
                lambda rows: rows["quantity"].notna() | ~rows["summed"].fillna(rows["event_type"].isin(summed)),
                name="quantity_missing",
                ignore_na=False,
            ),
            pa.Check(
                lambda rows: rows["event_type"].isna() | rows["event_type"].isin(known) | rows["counted"],
                name="event_type_unknown",
                ignore_na=False,
            ),
        ],
        strict=True,
        ordered=True,
    )


def first_faults(schema: pa.DataFrameSchema, chunk: pd.DataFrame) -> pd.DataFrame:
    """The rows of `chunk` that break a rule, with a column `reason`: the first rule in `ROW_RULES` order.

    Raises `pandera.errors.SchemaErrors` only for faults that are not a row's, such as a wrong type.
    """
    try:
        schema.validate(chunk, lazy=True)
    except pa.errors.SchemaErrors as exc:
        cases = exc.failure_cases
        if not cases["check"].isin(ROW_RULES).all():
            raise
        rank = cases["check"].map({reason: position for position, reason in enumerate(ROW_RULES)})
        first = cases.assign(rank=rank).sort_values("rank").drop_duplicates("index").set_index("index")["check"]
        return chunk.loc[first.index].assign(reason=first)
    return chunk.iloc[0:0].assign(reason=[])


def storable_times(times: pd.Series) -> pd.Series:
    """The same times with null for one outside the years that Python can read back."""
    return times.where(_in_range(times))


def _in_range(times: pd.Series) -> pd.Series:
    return (times >= _FIRST_TIME) & (times < _END_OF_TIME)


def _time(*checks: pa.Check) -> pa.Column:
    return pa.Column(pd.ArrowDtype(_TIME), list(checks), nullable=True)


def _text(*checks: pa.Check) -> pa.Column:
    return pa.Column(pd.ArrowDtype(pyarrow.string()), list(checks), nullable=True)


def _present(column: str) -> pa.Check:
    return pa.Check(lambda c: c.notna(), name=f"{column}_missing", ignore_na=False)


def _filled(column: str) -> pa.Check:
    return pa.Check(lambda c: c != "", name=f"{column}_missing")
