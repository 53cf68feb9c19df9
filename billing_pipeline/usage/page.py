"""A page of plain facts, written once and shown as text on a terminal or as Markdown in Dagster's UI.

What it shows comes from other people's data: what a terminal would obey is made visible, and what Markdown would obey
is escaped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SHOWN_MAX = 200
"""Characters of one id or message of others."""
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>#|~])")


@dataclass(frozen=True, slots=True)
class Fact:
    """A line under its label, and what belongs to it."""

    label: str
    text: str
    details: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Grid:
    """A small table; every column but the first is of numbers."""

    titles: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True)
class Section:
    """Facts under one title."""

    title: str
    facts: tuple[Fact, ...] = ()
    grid: Grid | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Notes for all of it, sections, and the one line that it all comes to, with the command that helps."""

    title: str
    notes: tuple[str, ...]
    sections: tuple[Section, ...]
    verdict: str
    command: str | None = None


def visible(text: str) -> str:
    """Text of others on one line, with what is not printable written out, and not endless."""
    shown = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
    return shown if len(shown) <= SHOWN_MAX else f"{shown[:SHOWN_MAX]}..."


def as_text(page: Page) -> str:
    """For a terminal."""
    lines = [page.title, *page.notes]
    width = 2 + max((len(fact.label) for section in page.sections for fact in section.facts), default=0)
    for section in page.sections:
        lines += ["", section.title]
        for fact in section.facts:
            lines.append(f"  {fact.label:<{width}}{fact.text}".rstrip())
            lines += [f"  {'':<{width}}{detail}" for detail in fact.details]
        lines += _text_of(section.grid) if section.grid else []
    lines += ["", page.verdict]
    if page.command:
        lines.append(f"Next: `{page.command}`")
    return "\n".join(lines)


def as_markdown(page: Page) -> str:
    """For the metadata of a run."""
    lines = [f"### {_escaped(page.title)}", "", f"**{_escaped(page.verdict)}**"]
    if page.command:
        lines += ["", f"Next: `{page.command}`"]
    for note in page.notes:
        lines += ["", _escaped(note)]
    for section in page.sections:
        lines += ["", f"#### {_escaped(section.title)}", ""]
        for fact in section.facts:
            lines.append(f"- {' '.join(part for part in (_label(fact.label), _escaped(fact.text)) if part)}")
            lines += [f"    - {_escaped(detail.strip())}" for detail in fact.details]
        lines += _markdown_of(section.grid) if section.grid else []
    return "\n".join(lines)


def _label(label: str) -> str:
    return f"**{_escaped(label)}**" if label else ""


def _escaped(text: str) -> str:
    return _MARKDOWN.sub(r"\\\1", text)


def _text_of(grid: Grid) -> Iterator[str]:
    rows = [grid.titles, *grid.rows]
    widths = [max(len(row[column]) for row in rows) for column in range(len(grid.titles))]
    for row in rows:
        yield "  " + _aligned(row, widths)


def _aligned(row: Sequence[str], widths: Sequence[int]) -> str:
    first, *others = row
    cells = [first.ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True))]
    return "  ".join(cells).rstrip()


def _markdown_of(grid: Grid) -> Iterator[str]:
    yield ""
    yield "| " + " | ".join(_escaped(title) for title in grid.titles) + " |"
    yield "|---|" + "---:|" * (len(grid.titles) - 1)
    for row in grid.rows:
        yield "| " + " | ".join(_escaped(cell) for cell in row) + " |"
