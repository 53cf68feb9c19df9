"""The hour or the instant that a person means; an hour may be a UTC clock hour, as people in finance type it.

Asked by the command and by the Dagster job that explain an hour; both print the hour that was taken.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

from billing_pipeline.domain.windows import hour_of
from billing_pipeline.errors import UserError

_UTC_HOUR = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d[Zz]?")


def hour_given(text: str, *, now: datetime) -> datetime:
    """The UTC hour that holds the given instant; `2026-11-20T13` and `2026-11-20T13Z` are UTC hours.

    Raises `UserError` for what is no time, has no offset, or lies in the future.
    """
    stripped = text.strip()
    try:
        found = datetime.fromisoformat(stripped)
        if _UTC_HOUR.fullmatch(stripped):
            found = found.replace(tzinfo=UTC)
        hour_at = hour_of(found) if found.tzinfo is not None else None
    except (ValueError, OverflowError):
        raise UserError(f"{text} is not a time; write it like 2026-11-20T13:00:00Z.") from None
    if hour_at is None:
        hint = f"{found:%Y-%m-%dT%H:%M}Z is that time in UTC" if len(stripped) > len("2026-11-20") else "name its hour"
        raise UserError(f"{text} has no offset, so it may be one of many hours; {hint}.")
    if hour_at > now:
        raise UserError(f"{hour_at:%Y-%m-%d %H:%M} UTC lies in the future; it is {now:%Y-%m-%d %H:%M} UTC now.")
    return hour_at


def instant_given(name: str, text: str) -> datetime:
    """The instant that a person gave as `name`.  Raises `UserError` for what is no time or has no offset."""
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise UserError(f"{name} {text} is not a time with an offset; write it like 2026-11-20T00:00:00Z.")
    return found.astimezone(UTC)
