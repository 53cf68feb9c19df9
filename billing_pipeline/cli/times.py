"""Times as a person types them on the command line, and spans as it shows them."""

from __future__ import annotations

from datetime import datetime, timedelta

from billing_pipeline.errors import UserError


def instant(option: str, text: str) -> datetime:
    """The time given for `option`, with its offset.  Raises `UserError`."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise UserError(f"{option} {text} is not a time with an offset; write it like 2026-11-20T00:00:00Z.")
    return found


def age(span: timedelta) -> str:
    """A span of time in one unit, the largest that it fills: 40 s, 3 min, 5 h, 12 d."""
    seconds = max(int(span.total_seconds()), 0)
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit}"
    return f"{seconds} s"
