"""Which column of the team's own table is which of ours, and which PostgreSQL types can be billed exactly.

`settings.py` reads the mapping of `BILLING_SOURCE_COLUMNS` here, `database/source.py` makes SQL of it, and
`usage/source_contract.py` refuses what is not suitable.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import MappingProxyType

DEFAULT_RELATION = "public.billable_events"
"""The source of the embedded database, the only one that this project creates."""

INTEGERS = frozenset({"smallint", "integer", "bigint"})
TEXTS = frozenset({"text", "character varying", "character", "uuid"}) | INTEGERS

NEEDED = MappingProxyType(
    {
        "event_id": "text",
        "organization_id": "text",
        "event_type": "text",
        "quantity": "numeric",
        "occurred_at": "timestamp with time zone",
        "recorded_at": "timestamp with time zone",
    }
)
"""The columns a source must have, with the types that the flow reads."""

OPTIONAL = MappingProxyType({"properties": "jsonb"})
READ_AS = MappingProxyType(NEEDED | OPTIONAL)

_CAST_EXACTLY = {
    "text": TEXTS,
    "numeric": frozenset({"numeric"}) | INTEGERS,
    "timestamp with time zone": frozenset({"timestamp with time zone"}),
    "jsonb": frozenset({"jsonb", "json"}),
}
_REMEDIES = {
    "real": "a float is not exact, so give numeric in a view: round({column}::numeric, 6) AS {name}",
    "double precision": "a float is not exact, so give numeric in a view: round({column}::numeric, 6) AS {name}",
    "timestamp without time zone": "say in a view which zone it is in: {column} AT TIME ZONE 'UTC' AS {name}",
}


def parse_source_columns(text: str) -> dict[str, str]:
    """The mapping of `event_id=id, quantity=amount`, ours to theirs.  Raises `ValueError` that names every fault."""
    parts = text.split(",") if text.strip() else []
    entries = [tuple(part.strip() for part in entry.partition("=")) for entry in parts]
    if faults := list(_mapping_faults(entries)):
        raise ValueError("; ".join(faults))
    return {ours: theirs for ours, _, theirs in entries}


def unsuitable(name: str, column: str, found: str, *, is_enum: bool) -> str | None:
    """Why their `column` of type `found` cannot be our column `name`, and what to do; None where it can be."""
    expected = READ_AS[name]
    if found in _CAST_EXACTLY[expected] or (is_enum and expected == "text"):
        return None
    remedy = _REMEDIES.get(found, "a view can give {column} as " + expected)
    return f"{found}, expected {expected}; {remedy.format(name=name, column=column)}"


def _mapping_faults(entries: list[tuple[str, ...]]) -> Iterator[str]:
    named: set[str] = set()
    for ours, equals, theirs in entries:
        if not (ours and equals and theirs):
            yield f"{f'{ours}{equals}{theirs}' or 'an empty entry'} is not NAME=COLUMN"
        if "%" in theirs:
            yield f"{theirs} has a % in its name; a view can give it another"
        if ours and ours not in READ_AS:
            yield f"{ours} is none of our columns ({', '.join(READ_AS)})"
        elif ours in named:
            yield f"{ours} is named twice"
        named.add(ours)
