"""Draws what each meter counted per day, as a picture inside Markdown: no file, no network, no library.

Used by the assets and checks around the contract.  SVG, because it stays sharp, follows no theme and takes a few
kilobytes; each picture is a row of Dagster's event log.
"""

import base64
from decimal import Decimal
from fractions import Fraction
from xml.sax.saxutils import escape

import dagster as dg

from billing_pipeline.domain.volume import HISTORY_DAYS, MeterVolume, Volume

METERS_MAX = 12
"""Those with the most events; more would make the picture larger than a person looks at."""

_WIDTH, _PANEL, _BAR, _STEP, _LEFT, _HEIGHT = 640, 104, 16, 21, 26, 52
_STYLE = (
    "text{font:12px system-ui,sans-serif;fill:#444}.n{font-weight:600;fill:#111}.r{text-anchor:end}"
    ".d{fill:#a3b8e6}.l{fill:#3b5bdb}.x{stroke:#ccc}"
)


def volume_plot(volumes: list[MeterVolume]) -> dg.MarkdownMetadataValue:
    """One panel per meter: 28 days as bars, the last complete day dark."""
    volumes = [volume for volume in volumes if volume.days]
    if not volumes:
        return dg.MetadataValue.md("No complete day of usage was aggregated yet.")
    shown = sorted(volumes, key=lambda volume: (-sum(day.events for day in volume.days), volume.meter))[:METERS_MAX]
    picture = base64.b64encode(_picture(shown).encode()).decode()
    more = f"\n\nand {len(volumes) - len(shown)} meters with fewer events" if len(volumes) > len(shown) else ""
    return dg.MetadataValue.md(f"![daily volume per meter](data:image/svg+xml;base64,{picture}){more}")


def _picture(volumes: list[MeterVolume]) -> str:
    height = _PANEL * len(volumes)
    panels = "".join(
        f'<g transform="translate(0 {number * _PANEL})">{_panel(volume)}</g>' for number, volume in enumerate(volumes)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{height}" '
        f'viewBox="0 0 {_WIDTH} {height}"><style>{_STYLE}</style>'
        f'<rect width="{_WIDTH}" height="{height}" rx="6" fill="#fff"/>{panels}</svg>'
    )


def _panel(volume: MeterVolume) -> str:
    days = volume.days[-HISTORY_DAYS:]
    first, last = days[0], days[-1]
    highest = max(day.quantity for day in days)
    right = _LEFT + HISTORY_DAYS * _STEP
    before = "".join(_bar(day, last, highest) for day in days[:-1])
    return (
        f'<text class="n" x="{_LEFT}" y="18">{escape(volume.meter)}</text>'
        f'<text class="r" x="{right}" y="18">{last.quantity.normalize():,f} on {last.starts_at:%b %d}, '
        f"highest {highest.normalize():,f}</text>"
        f'<path class="d" d="{before}"/><path class="l" d="{_bar(last, last, highest)}"/>'
        f'<path class="x" d="M{_LEFT} {_base()}H{right}"/>'
        f'<text x="{_x(first, last)}" y="{_base() + 15}">{first.starts_at:%b %d}</text>'
        f'<text class="r" x="{right}" y="{_base() + 15}">{last.starts_at:%b %d}</text>'
    )


def _bar(day: Volume, last: Volume, highest: Decimal) -> str:
    # By whole pixels and exact numbers; a day with any usage shows at least one.
    share = Fraction(day.quantity) / Fraction(highest) if highest else Fraction(0)
    height = max(round(share * _HEIGHT), 1) if day.quantity else 0
    return f"M{_x(day, last)} {_base()}v-{height}h{_BAR}v{height}z" if height else ""


def _x(day: Volume, last: Volume) -> int:
    return _LEFT + (HISTORY_DAYS - 1 - (last.starts_at - day.starts_at).days) * _STEP


def _base() -> int:
    return 26 + _HEIGHT
