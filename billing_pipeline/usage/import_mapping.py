"""Says how the columns of a usage file become billable events: what a person writes, checked before a row is read.

First step of `import-events`; `import_columns.py` applies the mapping, `import_events.py` loads the result.
A mapping is a small TOML file, options of the command, or both; an option replaces the file's key of the same name.
Without either, the file's columns carry the names of `billable_events` itself.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, ClassVar

import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError

from billing_pipeline.errors import ImportRefused

FINGERPRINT = "{fingerprint}"
"""In `id_prefix`, stands for the first 16 hex digits of the file's SHA-256."""

Name = Annotated[str, Field(min_length=1)]


@dataclass(frozen=True)
class EventRule:
    """One billable event that every input row yields.

    The type is the constant `event_type`, or else the value of `event_type_column`.
    The quantity is the value of `quantity_column`; without one, each row counts 1.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    event_type: Name | None = None
    event_type_column: Name | None = None
    quantity_column: Name | None = None


@dataclass(frozen=True)
class ImportMapping:
    """Where each field of a billable event comes from.

    Ids are `<id_prefix>:<row number>` when `id_prefix` is given, else the values of `id_column`; rows are counted
    from 1 after the header.  Where a row yields several events, `:<event type>` is appended.
    The organization is the constant `organization`, or `org-0001` to `org-<row_modulo>` dealt out in turn, or else
    the value of `organization_column`.
    Times without an offset are read in `timezone`, and refused when it is not given.
    `properties` names columns to keep, each as text; without them a column `properties` is taken as JSON.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    time_column: Name = "occurred_at"
    timezone: Name | None = None
    id_column: Name = "event_id"
    id_prefix: Name | None = None
    organization: Name | None = None
    organization_column: Name = "organization_id"
    row_modulo: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    events: Annotated[tuple[EventRule, ...], Field(min_length=1)] = (
        EventRule(event_type_column="event_type", quantity_column="quantity"),
    )
    properties: tuple[Name, ...] = ()

    def columns(self) -> tuple[str, ...]:
        """Every column the file must have, in order of first mention."""
        named = [self.time_column]
        if self.id_prefix is None:
            named.append(self.id_column)
        if self.organization is None and self.row_modulo is None:
            named.append(self.organization_column)
        for rule in self.events:
            named += [name for name in (rule.event_type_column, rule.quantity_column) if name is not None]
        return tuple(dict.fromkeys([*named, *self.properties]))


def load_mapping(file: Path | None, options: Mapping[str, object]) -> ImportMapping:
    """The mapping of a TOML file with the options laid over it.  Raises `ImportRefused` naming every fault."""
    document = {**(_read(file) if file else {}), **options}
    faults = list(_contradictions(document))
    try:
        mapping = TypeAdapter(ImportMapping).validate_python(document)
    except ValidationError as exc:
        faults += [
            f"{'.'.join(str(part) for part in fault['loc'])}: {fault['msg']}"
            for fault in exc.errors(include_url=False, include_context=False)
        ]
    if faults:
        raise ImportRefused(f"The mapping{f' {file}' if file else ''} is wrong: {'; '.join(faults)}.")
    return mapping


def _read(file: Path) -> dict[str, object]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as exc:
        raise ImportRefused(f"The mapping {file} cannot be read: {exc.strerror}. Check the path.") from None
    except UnicodeDecodeError:
        raise ImportRefused(f"The mapping {file} is not UTF-8 text; save it as UTF-8.") from None
    except tomllib.TOMLDecodeError as exc:
        raise ImportRefused(f"The mapping {file} is not TOML: {exc}. Correct that line.") from None


def _contradictions(document: Mapping[str, object]) -> Iterator[str]:
    """What each key allows alone but not together; the types of the keys are checked elsewhere."""
    for alternatives in (("id_column", "id_prefix"), ("organization", "organization_column", "row_modulo")):
        given = [name for name in alternatives if name in document]
        if len(given) > 1:
            yield f"{' and '.join(given)} exclude each other, keep one"
    timezone = document.get("timezone")
    if isinstance(timezone, str) and not _known(timezone):
        yield f"timezone: {timezone!r} is not a known time zone, write a name such as UTC or Europe/Berlin"
    events = document.get("events")
    rules = [rule for rule in events if isinstance(rule, dict)] if isinstance(events, list) else []
    for number, rule in enumerate(rules):
        if ("event_type" in rule) == ("event_type_column" in rule):
            yield f"events.{number}: give either event_type or event_type_column"
    types = [rule.get("event_type") for rule in rules]
    if len(rules) > 1 and (None in types or len({str(name) for name in types}) < len(types)):
        # The type is part of the id there, so it must tell the events of one row apart.
        yield "events: where a row yields several events, each needs its own constant event_type"


def _known(timezone: str) -> bool:
    # Asked of Arrow, which will do the conversion, rather than of Python's own time zone data.
    if timezone == "UTC":
        return True
    try:
        pc.assume_timezone(pa.array([0], pa.timestamp("us")), timezone)
    except pa.ArrowInvalid:
        return False
    return True
