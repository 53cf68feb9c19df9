"""Reads a usage file of CSV or Parquet as batches of rows, in memory that does not grow with the file.

First in the chain of `import_events.py`; `import_columns.py` takes the batches.
Every CSV value is read as text, so that no number passes through a float on its way.
Faults of the whole file are found here, before a row is read; faults of a value are `import_columns.py`'s.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from pyarrow import csv, parquet

from billing_pipeline.errors import ImportRefused
from billing_pipeline.usage.import_columns import Batch
from billing_pipeline.usage.import_mapping import FINGERPRINT, ImportMapping

BATCH_ROWS = 20_000
CHUNK_BYTES = 1 << 20


def check_file(file: Path, mapping: ImportMapping) -> None:
    """Say what can be said before a row is read.  Raises `ImportRefused`."""
    if file.suffix.lower() not in (".csv", ".parquet"):
        raise ImportRefused("only .csv and .parquet files can be imported; convert it to one of them")
    if file.stat().st_size == 0:
        raise ImportRefused("the file is empty; check how it was exported")
    names = _column_names(file)
    wanted = _wanted(names, mapping)
    if missing := [name for name in wanted if name not in names]:
        raise ImportRefused(
            f"it has no column {', '.join(missing)}, only {', '.join(names)}; "
            "name the right ones with --mapping or the column options"
        )
    if repeated := [name for name in wanted if names.count(name) > 1]:
        raise ImportRefused(f"column {', '.join(repeated)} occurs more than once; rename all but one")
    if _is_csv(file) and _count_quotes(file) % 2:
        # Arrow would take everything behind the open quote as one value, and so lose rows without a word.
        raise ImportRefused('a quoted value is never closed; quote each value that contains a " and double it inside')


def read_batches(file: Path, mapping: ImportMapping) -> Iterator[Batch]:
    """The columns that the mapping needs, and `properties` if the file has it, in file order."""
    columns = _wanted(_column_names(file), mapping)
    rows_before = 0
    for rows in _csv_rows(file, columns) if _is_csv(file) else _parquet_rows(file, columns):
        yield Batch(rows, rows_before)
        rows_before += rows.num_rows


def id_prefix(file: Path, mapping: ImportMapping) -> str | None:
    """The mapping's prefix for derived ids, with the file's fingerprint put in where it asks for it."""
    if mapping.id_prefix is None or FINGERPRINT not in mapping.id_prefix:
        return mapping.id_prefix
    with file.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    return mapping.id_prefix.replace(FINGERPRINT, digest[:16])


def _is_csv(file: Path) -> bool:
    return file.suffix.lower() == ".csv"


def _wanted(names: list[str], mapping: ImportMapping) -> list[str]:
    own_properties = ["properties"] if "properties" in names and not mapping.properties else []
    return list(dict.fromkeys([*mapping.columns(), *own_properties]))


def _column_names(file: Path) -> list[str]:
    if _is_csv(file):
        # Arrow looks at rows already here; malformed ones are left for `_csv_rows`, which can number them.
        parse = csv.ParseOptions(newlines_in_values=True, invalid_row_handler=lambda row: "skip")
        convert = csv.ConvertOptions(default_column_type=pa.string())
        with csv.open_csv(file, parse_options=parse, convert_options=convert) as opened:
            return list(opened.schema.names)
    with parquet.ParquetFile(file) as opened:
        return list(opened.schema_arrow.names)


def _count_quotes(file: Path) -> int:
    with file.open("rb") as content:
        return sum(chunk.count(b'"') for chunk in iter(lambda: content.read(CHUNK_BYTES), b""))


def _parquet_rows(file: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    with parquet.ParquetFile(file) as opened:
        yield from opened.iter_batches(batch_size=BATCH_ROWS, columns=columns)


def _csv_rows(file: Path, columns: list[str]) -> Iterator[pa.RecordBatch]:
    malformed: list[csv.InvalidRow] = []

    def remember(row: csv.InvalidRow) -> str:
        malformed.append(row)
        return "error"

    # Arrow knows the number of a malformed row only without threads.
    read = csv.ReadOptions(use_threads=False, block_size=CHUNK_BYTES)
    parse = csv.ParseOptions(newlines_in_values=True, invalid_row_handler=remember)
    # An unquoted empty value is null, a quoted one an empty text; PostgreSQL reads CSV the same way.
    convert = csv.ConvertOptions(
        default_column_type=pa.string(),
        include_columns=columns,
        null_values=[""],
        strings_can_be_null=True,
        quoted_strings_can_be_null=False,
    )
    try:
        with csv.open_csv(file, read_options=read, parse_options=parse, convert_options=convert) as opened:
            yield from opened
    except pa.ArrowInvalid:
        if not malformed:
            raise
        row = malformed[0]
        raise ImportRefused(
            # Arrow counts the header as row 1.
            f"row {row.number - 1} has {row.actual_columns} values where the header has {row.expected_columns}; "
            "correct that row, and quote values that contain a comma"
        ) from None
