"""What the source looked like when it was last counted, and what a change since then means.

Drift is found before a row is read.  What can no longer be counted, or would take back what was billed, blocks;
whatever can still be counted exactly is only told, once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass

from billing_pipeline.domain.catalogue import Catalogue
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


def drift(
    last: SourceShape, now: SourceShape, *, mapped: Mapping[str, str], needed: Set[str], catalogue: Catalogue
) -> Iterator[Drift]:
    """Everything that changed since `last`.

    `mapped` are our names that the settings map, and theirs; `needed` are those without which nothing can be counted.
    """
    if last.kind != now.kind:
        yield Drift("source_kind_changed", f"{last.kind} → {now.kind}", False)
    for old in last.columns:
        new, theirs = now.column(old.name), mapped.get(old.name, old.name)
        if new is None:
            absent = f"{_named(old.name, theirs)}: {old.declared} → absent"
            yield Drift("source_column_missing", absent, old.name in needed)
            continue
        if theirs != old.column:
            yield Drift("source_column_remapped", f"{old.name}: {old.column} → {theirs}", False)
        if new.declared != old.declared:
            change = f"{_named(old.name, theirs)}: {old.declared} → {new.declared}"
            why = f" ({new.unsuitable})" if new.unsuitable else ""
            yield Drift("source_column_type_changed", change + why, new.unsuitable is not None)
        if old.labels and new.labels:
            yield from _enum_drift(old, new, catalogue)


def _enum_drift(old: SourceColumn, new: SourceColumn, catalogue: Catalogue) -> Iterator[Drift]:
    added = [label for label in new.labels if label not in old.labels]
    removed = [label for label in old.labels if label not in new.labels]
    change = f"{_named(new.name, new.column)}: {', '.join(old.labels)} → {', '.join(new.labels)}"
    if removed:
        # Renaming a label renames it in rows that were billed long ago, and counting them would take it all back.
        metered = {event_type for meter in catalogue.meters for event_type in meter.event_types}
        billed = sorted(metered & set(removed)) if new.name == "event_type" else []
        why = f"; meters count {', '.join(billed)}" if billed else ""
        yield Drift("source_enum_narrowed", f"{change} (without {', '.join(removed)}{why})", bool(billed))
    if added:
        unknown = sorted(set(added) - catalogue.known_event_types) if new.name == "event_type" else []
        why = f"; not in the catalogue, so its rows would wait in quarantine: {', '.join(unknown)}" if unknown else ""
        yield Drift("source_enum_widened", f"{change} (with {', '.join(added)}{why})", False)


def _named(name: str, theirs: str) -> str:
    return name if name == theirs else f"{name} ({theirs})"
