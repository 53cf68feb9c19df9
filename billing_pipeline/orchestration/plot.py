"""Draws bars as a picture inside Markdown: no file, no network, no library.

Used by assets and checks through `volume_plot.py` and `progress_plots.py`.  SVG, because it stays sharp and its grey
text is legible on a light and on a dark page.  On an asset's page Dagster shows Markdown of less than 1,000 characters
at once, and on a laptop's screen 340 pixels of it, so a picture keeps within both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from html import escape

import dagster as dg

MARKDOWN_MAX = 1_000
"""Characters from which on Dagster wants a click first."""

_WIDTH, _HEIGHT, _TOP, _BASE = 340, 104, 22, 86
_GREY, _BLUE = "%23888", "%235b7be0"
_SCALES = ((Decimal(10) ** 12, "T"), (Decimal(10) ** 9, "G"), (Decimal(10) ** 6, "M"), (Decimal(10) ** 3, "k"))


@dataclass(frozen=True, slots=True)
class Bar:
    """One quantity; `below` is written under it, `above` over it, where there is something to write."""

    quantity: Decimal
    below: str = ""
    above: str = ""


def picture(title: str, bars: Sequence[Bar]) -> dg.MarkdownMetadataValue:
    """The bars from left to right, the highest as high as the picture, and what they are in a line above them.

    A bar of any quantity shows at least one pixel; one below zero shows none.
    """
    step = _WIDTH // len(bars)
    bar = max(step * 3 // 4, 1)
    highest = max(bar.quantity for bar in bars)
    heights = [_height(bar.quantity, highest) for bar in bars]
    path = "".join(f"v-{height}m{step},{height}" if height else f"m{step},0" for height in heights)
    # Not base64, which would take a third more of the few characters.
    svg = (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{_WIDTH}' height='{_HEIGHT}' fill='{_GREY}' "
        f"font-size='11' font-family='sans-serif'><text y='11'>{escape(title)}</text>"
        f"<path stroke='{_BLUE}' stroke-width='{bar}' d='M{step // 2},{_BASE}{path}'/>"
        f"<path stroke='{_GREY}' d='M0,{_BASE}h{_WIDTH}'/><g text-anchor='middle'>"
        + "".join(_texts(bars, heights, step))
        + "</g></svg>"
    )
    return dg.MetadataValue.md(f"![](<data:image/svg+xml,{svg.replace('<', '%3C').replace('>', '%3E')}>)")


def short(quantity: Decimal) -> str:
    """Three digits that tell the size, where all of them would not fit: 12.3M."""
    for scale, letter in _SCALES:
        if abs(quantity) >= scale:
            return f"{_three_digits(quantity / scale)}{letter}"
    return _three_digits(quantity)


def _three_digits(quantity: Decimal) -> str:
    size = abs(quantity)
    if 0 < size < 1:
        return f"{quantity:.3g}"
    text = f"{quantity:,.{0 if size >= 100 else 1 if size >= 10 else 2}f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _texts(bars: Sequence[Bar], heights: list[int], step: int) -> list[str]:
    found = []
    for number, (bar, height) in enumerate(zip(bars, heights, strict=True)):
        for text, y in ((bar.below, 100), (bar.above, _BASE - height - 2)):
            if text:
                # So far from the edge that all of it shows: a letter is about six pixels wide.
                edge = 3 * len(text) + 2
                x = min(max(number * step + step // 2, edge), _WIDTH - edge)
                found.append(f"<text x='{x}' y='{y}'>{escape(text)}</text>")
    return found


def _height(quantity: Decimal, highest: Decimal) -> int:
    # By whole pixels.
    return max(int(quantity * (_BASE - _TOP) // highest), 1) if quantity > 0 else 0
