"""What the source looked like when it was last counted, and what a change since then means.

Drift is found before a row is read.  What can no longer be counted, or would take back what was billed, blocks;
whatever can still be counted exactly is only told, once.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import dataclass

from billing_pipeline.domain.source_columns import unsuitable


@dataclass(frozen=True, slots=True)
class SourceColumn:
    """One column that we read: our name, theirs, and its type as PostgreSQL writes it."""

    name: str
    column: str
    type: str
    """Without length or scale, such as `numeric`: what it can be read as depends on no more."""
    declared: str
    """With them, such as `numeric(12,2)`: also a smaller scale is a change."""
    labels: tuple[str, ...] = ()
    """An enum's, in its order."""

    @property
    def unsuitable(self) -> str | None:
        """Why it cannot be counted, and what to do; None where it can be."""
        return unsuitable(self.name, self.column, self.type, is_enum=bool(self.labels))


@dataclass(frozen=True, slots=True)
class SourceShape:
    """The relation's kind, and the columns we read."""

    kind: str
    columns: tuple[SourceColumn, ...]

    def column(self, name: str) -> SourceColumn | None:
        """The column that is our `name`, where there is one."""
        return next((column for column in self.columns if column.name == name), None)


@dataclass(frozen=True, slots=True)
class Drift:
    """One change of the source: a stable reason code, old and new in words, and whether it forbids counting."""

    reason: str
    detail: str
    blocks: bool


def drift(last: SourceShape, now: SourceShape, *, counted_types: Set[str], needed: Set[str]) -> Iterator[Drift]:
    """Everything that changed since `last`.

    `counted_types` are the event types of the catalogue; `needed` the columns of ours that must be there.
    """
    if last.kind != now.kind:
        yield Drift("source_kind_changed", f"{last.kind} → {now.kind}", False)
    for old in last.columns:
        new = now.column(old.name)
        if new is None:
            blocks = old.name in needed
            yield Drift("source_column_missing", f"{_named(old)}: {old.declared} → absent", blocks)
            continue
        if new.column != old.column:
            yield Drift("source_column_remapped", f"{old.name}: {old.column} → {new.column}", False)
        if new.declared != old.declared:
            change = f"{_named(new)}: {old.declared} → {new.declared}"
            why = f" ({new.unsuitable})" if new.unsuitable else ""
            yield Drift("source_column_type_changed", change + why, new.unsuitable is not None)
        if old.labels and new.labels:
            yield from _enum_drift(old, new, counted_types)


def _enum_drift(old: SourceColumn, new: SourceColumn, counted_types: Set[str]) -> Iterator[Drift]:
    added = [label for label in new.labels if label not in old.labels]
    removed = [label for label in old.labels if label not in new.labels]
    if removed:
        # Renaming a label renames it in rows that were billed long ago, and counting them would take it all back.
        counted = sorted(counted_types & set(removed)) if new.name == "event_type" else []
        why = f"; the catalogue counts {', '.join(counted)}" if counted else ""
        yield Drift("source_enum_narrowed", f"{_change(old, new)} (without {', '.join(removed)}{why})", bool(counted))
    if added:
        unknown = sorted(set(added) - counted_types) if new.name == "event_type" else []
        why = f"; the catalogue does not know {', '.join(unknown)}" if unknown else ""
        yield Drift("source_enum_widened", f"{_change(old, new)} (with {', '.join(added)}{why})", False)


def _change(old: SourceColumn, new: SourceColumn) -> str:
    return f"{_named(new)}: {', '.join(old.labels)} → {', '.join(new.labels)}"


def _named(column: SourceColumn) -> str:
    return column.name if column.name == column.column else f"{column.name} ({column.column})"
