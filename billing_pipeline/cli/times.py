"""Times as a person types them on the command line."""

from __future__ import annotations

from datetime import datetime

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
