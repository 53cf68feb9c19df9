"""Small readers of Stripe's JSON, which say what is wrong instead of guessing.

A field that is absent or null is None; one of another type makes the whole object unreadable, because a projection
with a hole in it would look like a fact.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from billing_pipeline.errors import EventUnreadable

Object = Mapping[str, Any]

BIGINT = 2**63
_NUMBER = re.compile(r"-?\d{1,20}(\.\d{1,12})?")


def part(of: Object, *path: str) -> Object:
    """The object at a path; empty where any step is absent or null."""
    found: Any = of
    for name in path:
        found = found.get(name)
        if found is None:
            return {}
        if not isinstance(found, Mapping):
            raise _unreadable(".".join(path), "an object")
    return found  # type: ignore[no-any-return] # a Mapping by now


def text(of: Object, name: str) -> str | None:
    """A string; null characters, which PostgreSQL cannot hold, are taken out."""
    value = of.get(name)
    if value is None or isinstance(value, str):
        return value.replace("\x00", "") if value else value
    raise _unreadable(name, "a text")


def required(of: Object, name: str) -> str:
    """A string that must be there."""
    if value := text(of, name):
        return value
    raise _unreadable(name, "a text that is not empty")


def integer(of: Object, name: str) -> int | None:
    """A whole number that PostgreSQL's bigint holds."""
    value = of.get(name)
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and abs(value) < BIGINT):
        return value
    raise _unreadable(name, "a whole number")


def decimal(of: Object, name: str) -> str | None:
    """A number that Stripe writes as text or as a whole number; as text, exact."""
    value = of.get(name)
    if value is None:
        return None
    if isinstance(value, int | str) and not isinstance(value, bool) and _NUMBER.fullmatch(str(value)):
        return str(value)
    raise _unreadable(name, "a decimal number")


def boolean(of: Object, name: str) -> bool | None:
    """True, false or nothing."""
    value = of.get(name)
    if value is None or isinstance(value, bool):
        return value
    raise _unreadable(name, "true or false")


def instant(of: Object, name: str) -> str | None:
    """Stripe's epoch seconds as an ISO 8601 instant in UTC."""
    epoch = integer(of, name)
    if epoch is None:
        return None
    try:
        return _iso(epoch)
    except (ValueError, OverflowError, OSError):
        raise _unreadable(name, "a time") from None


# An object tells most of its times again in each of its events.
@lru_cache(maxsize=65_536)
def _iso(epoch: int) -> str:
    return datetime.fromtimestamp(epoch, UTC).isoformat()


def id_of(of: Object, name: str) -> str | None:
    """The id of another object, which may stand there whole."""
    value = of.get(name)
    return required(value, "id") if isinstance(value, Mapping) else text(of, name)


def items_of(of: Object, name: str) -> tuple[list[Object], bool]:
    """The members of one of Stripe's lists, and whether they are all."""
    found = part(of, name)
    members = found.get("data") or []
    if not isinstance(members, list) or not all(isinstance(member, Mapping) for member in members):
        raise _unreadable(f"{name}.data", "a list of objects")
    return members, not found.get("has_more")


def _unreadable(name: str, expected: str) -> EventUnreadable:
    return EventUnreadable(
        f"{name} of the object is not {expected}. The event is kept; when a version of this program reads it, "
        "replay it with `billing-pipeline events replay`."
    )
