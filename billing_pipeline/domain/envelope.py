"""What is around the object in a Stripe event: whose it is, what it is about, and where it belongs in the order.

The intake reads it of each delivery before storing, the sweep of each event that Stripe lists.
Snapshot events carry the object as it was; thin events only name it.  Both have ids that begin with `evt_`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

from billing_pipeline.errors import DeliveryRefused

ORGANIZATION_KEYS = ("organization_id", "tenant_id", "org_id", "account_id", "user_id")
"""Names under which the metadata of Stripe's objects may hold the organization, the first found wins."""

NAME_LENGTH_MAX = 255
THIN_OBJECT = "v2.core.event"


class PayloadStyle(StrEnum):
    """How much of the object an event carries."""

    SNAPSHOT = "snapshot"
    THIN = "thin"


@dataclass(frozen=True, slots=True)
class Envelope:
    """An event without its object.  `created_at` is Stripe's: whole seconds, milliseconds where thin.

    Events with one `object_key` are handled one at a time; it is the object's id where there is one.
    """

    stripe_event_id: str
    event_type: str
    payload_style: PayloadStyle
    api_version: str | None
    livemode: bool
    stripe_account: str | None
    object_id: str | None
    object_key: str
    created_at: datetime
    tenant_hint: str | None


def parse_envelope(event: object) -> Envelope:
    """Read the envelope of a parsed event.  Raises `DeliveryRefused` for what cannot be one of Stripe's."""
    if not isinstance(event, Mapping):
        raise _refused("it is no JSON object")
    event_id, event_type = _name(event, "id"), _name(event, "type")
    if not event_id.startswith("evt_"):
        raise _refused("its id does not begin with evt_")
    if not isinstance(livemode := event.get("livemode"), bool):
        raise _refused("livemode is neither true nor false")
    thin = event.get("object") == THIN_OBJECT
    about = event.get("related_object") or {} if thin else _snapshot_of(event)
    if not isinstance(about, Mapping):
        raise _refused("related_object is no object")
    object_id = _text(about.get("id"))
    return Envelope(
        stripe_event_id=event_id,
        event_type=event_type,
        payload_style=PayloadStyle.THIN if thin else PayloadStyle.SNAPSHOT,
        api_version=_text(event.get("api_version")),
        livemode=livemode,
        stripe_account=_text(event.get("account")) or _text(event.get("context")),
        object_id=object_id,
        object_key=object_id or reference(about.get("customer")) or event_id,
        created_at=_instant(event.get("created")),
        tenant_hint=None if thin else organization_hint(about),
    )


def organization_hint(about: Mapping[str, Any]) -> str | None:
    """The organization that an object says it belongs to; a hint, because metadata is only what somebody wrote."""
    if hint := _text(about.get("client_reference_id")):
        return hint
    metadata = about.get("metadata")
    found = metadata if isinstance(metadata, Mapping) else {}
    return next((text for key in ORGANIZATION_KEYS if (text := _text(found.get(key)))), None)


def reference(value: object) -> str | None:
    """The id of an object that may be expanded."""
    return _text(value.get("id") if isinstance(value, Mapping) else value)


def _snapshot_of(event: Mapping[str, Any]) -> Mapping[str, Any]:
    data = event.get("data")
    found = data.get("object") if isinstance(data, Mapping) else None
    if not isinstance(found, Mapping):
        raise _refused("it has no data.object")
    return found


def _name(event: Mapping[str, Any], key: str) -> str:
    value = event.get(key)
    if not isinstance(value, str) or not 0 < len(value) <= NAME_LENGTH_MAX or not value.isprintable():
        raise _refused(f"its {key} is missing or no name")
    return value


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and 0 < len(value) <= NAME_LENGTH_MAX and value.isprintable() else None


def _instant(created: object) -> datetime:
    try:
        if isinstance(created, str):
            return datetime.fromisoformat(created).astimezone(UTC)
        if isinstance(created, int) and not isinstance(created, bool):
            return datetime.fromtimestamp(created, UTC)
    except (ValueError, OverflowError, OSError):
        pass
    raise _refused("created is no time")


def _refused(why: str) -> DeliveryRefused:
    return DeliveryRefused("invalid_payload", f"The delivery is not an event of Stripe's: {why}. Nothing is stored.")
