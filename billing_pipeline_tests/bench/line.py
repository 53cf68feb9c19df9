"""One benchmark's result, and how it is printed."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Line:
    """A figure of ours, its ratio to the bare one, and whether both goals are met."""

    name: str
    value: float
    unit: str
    ratio: float
    goal: str
    ok: bool

    def __str__(self) -> str:
        verdict = "ok" if self.ok else "short"
        return f"bench {self.name} {self.value:,.0f} {self.unit} ratio {self.ratio:.2f} goal {self.goal} {verdict}"
