"""What a meter counted per day, as pictures for `usage_windows` and its checks.

On an asset's page each meter has a small picture of its own, which Dagster shows at once; on a check's page all
Markdown is behind a click, so there they are one.
"""

from decimal import Decimal

import dagster as dg

from billing_pipeline.domain.volume import HISTORY_DAYS, MeterVolume
from billing_pipeline.orchestration.plot import Bar, picture, short

METERS_MAX = 12
"""Those with the most events: a page for a person, and a row of Dagster's event log."""
LABEL_EVERY = 9
"""Days, so that dates do not touch."""


def volume_plots(volumes: list[MeterVolume]) -> dict[str, dg.MarkdownMetadataValue]:
    """By a name for the meter: 28 days as bars, the last complete one on the right."""
    with_days = [volume for volume in volumes if volume.days]
    shown = sorted(with_days, key=lambda volume: (-sum(day.events for day in volume.days), volume.meter))[:METERS_MAX]
    plots = {f"daily_volume {volume.meter}": _picture(volume) for volume in shown}
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


def _picture(volume: MeterVolume) -> dg.MarkdownMetadataValue:
    days = volume.days[-HISTORY_DAYS:]
    before = [Bar(Decimal(0))] * (HISTORY_DAYS - len(days))
    # Counted from the right: the last day is the one that is judged.
    labels = [f"{day.starts_at:%b %d}" if back % LABEL_EVERY == 0 else "" for back, day in enumerate(reversed(days))]
    bars = [Bar(day.quantity, below=label) for day, label in zip(days, reversed(labels), strict=True)]
    most = max(day.quantity for day in days)
    return picture(f"quantity per UTC day: most {short(most)}, last {short(days[-1].quantity)}", [*before, *bars])
