"""Draws what a meter counted per day, as a picture inside Markdown: no file, no network, no library.

Used by `usage_windows` and its checks.  SVG, because it stays sharp and follows any theme.  On an asset's page
Dagster shows Markdown of less than 1,000 characters at once, so each meter has a small picture of its own there; on a
check's page all Markdown is behind a click, so there they are one.
"""

import base64
from decimal import Decimal

import dagster as dg

from billing_pipeline.domain.volume import HISTORY_DAYS, MeterVolume, Volume

METERS_MAX = 12
"""Those with the most events: a page for a person, and a row of Dagster's event log."""

_WIDTH, _HEIGHT, _BASE, _STEP, _BAR, _HIGHEST = 472, 84, 82, 17, 12, 60


def volume_plots(volumes: list[MeterVolume]) -> dict[str, dg.MarkdownMetadataValue]:
    """By a name for the meter: 28 days as bars, the last complete day dark."""
    with_days = [volume for volume in volumes if volume.days]
    shown = sorted(with_days, key=lambda volume: (-sum(day.events for day in volume.days), volume.meter))[:METERS_MAX]
    plots = {f"daily_volume {volume.meter}": dg.MetadataValue.md(_picture(volume)) for volume in shown}
    if len(with_days) > len(shown):
        plots["daily_volume of others"] = dg.MetadataValue.md(
            f"{len(with_days) - len(shown)} meters with fewer events are not drawn."
        )
    return plots


def volume_page(volumes: list[MeterVolume]) -> dict[str, dg.MarkdownMetadataValue]:
    """The same as one entry, where there is anything to show."""
    parts = [
        f"**{name.removeprefix('daily_volume ')}**\n\n{plot.value}" for name, plot in volume_plots(volumes).items()
    ]
    return {"daily_volume": dg.MetadataValue.md("\n\n".join(parts))} if parts else {}


def _picture(volume: MeterVolume) -> str:
    days = volume.days[-HISTORY_DAYS:]
    highest = max(day.quantity for day in days)
    heights = [0] * (HISTORY_DAYS - len(days)) + [_height(day, highest) for day in days]
    before = "".join(f"v-{height}m{_STEP} {height}" if height else f"m{_STEP} 0" for height in heights[:-1])
    last_x = _BAR // 2 + _STEP * (HISTORY_DAYS - 1)
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{_HEIGHT}" stroke-width="{_BAR}">'
        f'<text y="12" font-size="12" font-family="sans-serif" fill="#888" stroke="none">{_told(days, highest)}</text>'
        f'<path stroke="#a3b8e6" d="M{_BAR // 2} {_BASE}{before}"/>'
        f'<path stroke="#3b5bdb" d="M{last_x} {_BASE}v-{heights[-1]}"/></svg>'
    )
    return f"![{_told(days, highest)}](data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()})"


def _height(day: Volume, highest: Decimal) -> int:
    # By whole pixels; a day with any usage shows at least one.
    return max(int(day.quantity * _HIGHEST // highest), 1) if day.quantity else 0


def _told(days: tuple[Volume, ...], highest: Decimal) -> str:
    first, last = days[0], days[-1]
    return f"{first.starts_at:%b %d} to {last.starts_at:%b %d}: last {_short(last.quantity)}, most {_short(highest)}"


def _short(quantity: Decimal) -> str:
    text = f"{quantity:,f}"
    return text.rstrip("0").rstrip(".") if "." in text else text
