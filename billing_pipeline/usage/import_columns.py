"""Turns input rows into billable events, a whole column at a time, exactly.

Between the reader and the staging table of `import_events.py`: it gets one batch of rows and a mapping, and gives
batches of text columns as COPY wants them.
A quantity stays the text or decimal it was, a time becomes whole microseconds in UTC; no value passes through a
float and none is mended.  Every refusal names the row (counted from 1 after the header), the column and the value.
Whether an event may be billed is not asked here; the contract does that.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from billing_pipeline.errors import ImportRefused
from billing_pipeline.usage.import_mapping import ImportMapping

STAGED_COLUMNS = ("event_id", "organization_id", "event_type", "quantity", "occurred_at", "properties")
INSTANT = pa.timestamp("us", tz="UTC")

_NO_OFFSET = "has no offset from UTC; say --assume-timezone UTC, or whichever it was written in"
_PLAIN_DECIMAL = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)$"
_OFFSET = r"[T ][0-9]{2}.*(Z|[+-][0-9]{2}(:?[0-9]{2})?)$"
_FINER_THAN_MICROSECONDS = r"(\.[0-9]{6})[0-9]+"


@dataclass(frozen=True)
class Batch:
    """Some rows of the file, and how many came before them."""

    rows: pa.RecordBatch
    rows_before: int

    def texts(self, column: str) -> pa.Array:
        """The values as text; null stays null.  Floats and nested types are refused."""
        values = self.rows.column(column)
        if pa.types.is_dictionary(values.type):
            values = values.dictionary_decode()
        if pa.types.is_floating(values.type) or pa.types.is_nested(values.type):
            self._refuse(None, column, f"holds {values.type}, which has no exact text; store it as text or decimal")
        return values.cast(pa.string())

    def quantities(self, column: str) -> pa.Array:
        """Decimal numbers as text, with every digit they had."""
        texts = self.texts(column)
        kind = self.rows.column(column).type
        if not (pa.types.is_integer(kind) or pa.types.is_decimal(kind)):
            wrong = pc.index(pc.match_substring_regex(texts, pattern=_PLAIN_DECIMAL), False).as_py()
            if wrong >= 0:
                self._refuse(wrong, column, f"is {_shown(texts[wrong])}, not a plain decimal number such as 12.5")
        return texts

    def times(self, column: str, timezone: str | None) -> pa.Array:
        """UTC instants in microseconds; finer digits are cut off, never rounded up into the next microsecond."""
        values = self.rows.column(column)
        if pa.types.is_timestamp(values.type):
            if values.type.tz is None and timezone is None:
                self._refuse(None, column, _NO_OFFSET)
            # safe=False permits losing the digits below a microsecond.
            return _localized(values.cast(pa.timestamp("us", tz=values.type.tz), safe=False), timezone)
        texts = self.texts(column)
        try:
            instants, zoned = _parsed(texts, timezone or "UTC")
        except pa.ArrowInvalid:
            wrong = next(i for i in range(len(texts)) if not _is_time(texts.slice(i, 1), timezone or "UTC"))
            fault = f"is {_shown(texts[wrong])}, not an ISO 8601 time such as 2026-11-21T06:00:00Z"
            self._refuse(wrong, column, fault + (f" that exists once in {timezone}" if timezone else ""))
        naive = pc.index(zoned, False).as_py()
        if timezone is None and naive >= 0:
            self._refuse(naive, column, f"is {_shown(texts[naive])}, and {_NO_OFFSET}")
        return instants

    def properties(self, columns: tuple[str, ...]) -> pa.Array:
        """One JSON object per row of the named columns, or the file's own `properties`, or null."""
        if not columns:
            return self._own_properties()
        parts: list[object] = []
        for column in columns:
            parts += [f"{',' if parts else '{'}{json.dumps(column)}:", _json_texts(self.texts(column))]
        return pc.binary_join_element_wise(*parts, "}", "")

    def ids(self, column: str, prefix: str | None) -> pa.Array:
        """The values of the id column, or `<prefix>:<row number>`."""
        if prefix is not None:
            return pc.binary_join_element_wise(f"{prefix}:", self._row_numbers().cast(pa.string()), "")
        texts = self.texts(column)
        missing = pc.index(texts.is_null(), True).as_py()
        if missing >= 0:
            self._refuse(missing, column, "is empty, and an event without an id cannot be told from its repeat")
        return texts

    def organizations(self, mapping: ImportMapping) -> pa.Array:
        """A constant, `org-0001` and on dealt out by row number, or the values of a column."""
        if mapping.organization is not None:
            return self.constant(mapping.organization)
        if mapping.row_modulo is not None:
            dealt = pc.add(pa.array((self._row_numbers().to_numpy() - 1) % mapping.row_modulo), 1)
            return pc.binary_join_element_wise("org-", pc.utf8_lpad(dealt.cast(pa.string()), 4, padding="0"), "")
        return self.texts(mapping.organization_column)

    def constant(self, text: str) -> pa.Array:
        """The same text in every row."""
        return pa.repeat(pa.scalar(text), self.rows.num_rows)

    def _row_numbers(self) -> pa.Array:
        return pa.array(np.arange(self.rows_before + 1, self.rows_before + 1 + self.rows.num_rows, dtype=np.int64))

    def _own_properties(self) -> pa.Array:
        if "properties" not in self.rows.schema.names:
            return pa.nulls(self.rows.num_rows, pa.string())
        texts = self.texts("properties")
        for text in texts.unique().drop_null():
            if not _is_json(text.as_py()):
                self._refuse(pc.index(texts, text).as_py(), "properties", f"is {_shown(text)}, not JSON")
        return texts

    def _refuse(self, index: int | None, column: str, fault: str) -> NoReturn:
        row = "" if index is None else f"row {self.rows_before + index + 1}: "
        raise ImportRefused(f"{row}column {column} {fault}")


def billable_events(
    batch: Batch, mapping: ImportMapping, *, id_prefix: str | None, shift_microseconds: int
) -> Iterator[pa.RecordBatch]:
    """One batch per event rule, all columns text, in the order of the staging table.

    Raises `ImportRefused` for the first value that is not what its field needs.
    """
    ids = batch.ids(mapping.id_column, id_prefix)
    organizations = batch.organizations(mapping)
    shift = pa.scalar(shift_microseconds, pa.duration("us"))
    times = _as_text(pc.add_checked(batch.times(mapping.time_column, mapping.timezone), shift))
    properties = batch.properties(mapping.properties)
    for rule in mapping.events:
        types = batch.constant(rule.event_type) if rule.event_type else batch.texts(str(rule.event_type_column))
        quantities = batch.quantities(rule.quantity_column) if rule.quantity_column else batch.constant("1")
        own_ids = ids if len(mapping.events) == 1 else pc.binary_join_element_wise(ids, types, ":")
        columns = [own_ids, organizations, types, quantities, times, properties]
        yield pa.RecordBatch.from_arrays(columns, names=list(STAGED_COLUMNS))


def _parsed(texts: pa.Array, timezone: str) -> tuple[pa.Array, pa.Array]:
    """The instants, and which texts carry their own offset.  Raises `ArrowInvalid` if any is not a time."""
    texts = pc.replace_substring_regex(texts, pattern=_FINER_THAN_MICROSECONDS, replacement=r"\1")
    zoned = pc.match_substring_regex(texts, pattern=_OFFSET)
    nothing = pa.scalar(None, pa.string())
    with_offset = pc.if_else(zoned, texts, nothing).cast(INSTANT)
    without = pc.if_else(zoned, nothing, texts).cast(pa.timestamp("us"))
    return pc.coalesce(with_offset, _localized(without, timezone)), zoned


def _localized(times: pa.Array, timezone: str | None) -> pa.Array:
    # Without a zone the cast means UTC; assume_timezone needs time zone files, which small images lack.
    if times.type.tz is None and timezone != "UTC":
        times = pc.assume_timezone(times, timezone)
    return times.cast(INSTANT)


def _is_time(text: pa.Array, timezone: str) -> bool:
    try:
        _parsed(text, timezone)
    except pa.ArrowInvalid:
        return False
    return True


def _as_text(times: pa.Array) -> pa.Array:
    # Arrow's CSV writer formats times twenty times slower than this cast (1,000,000 rows: 1.7 s).
    return pc.binary_join_element_wise(times.cast(pa.timestamp("us")).cast(pa.string()), "Z", "")


def _json_texts(texts: pa.Array) -> pa.Array:
    """Each text as a JSON string, null as JSON's null."""
    for plain, escaped in (("\\", "\\\\"), ('"', '\\"')):
        texts = pc.replace_substring(texts, pattern=plain, replacement=escaped)
    if pc.any(pc.match_substring_regex(texts, pattern=r"[\x00-\x1f]")).as_py():
        for code in range(0x20):
            texts = pc.replace_substring(texts, pattern=chr(code), replacement=f"\\u{code:04x}")
    return pc.coalesce(pc.binary_join_element_wise('"', texts, '"', ""), "null")


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _shown(value: pa.Scalar) -> str:
    text = str(value.as_py())
    return repr(text if len(text) <= 60 else text[:60] + "…")
