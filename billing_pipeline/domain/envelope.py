"""What is around the object in a Stripe event: whose it is, what it is about, and where it belongs in the order.

The intake reads it of each delivery before storing, the sweep of each event that Stripe lists.
Snapshot events carry the object as it was; thin events only name it.  Both have ids that begin with `evt_`.
Only what is read here is made into Python's objects: measured on invoices of 4 kB, 8 us instead of 25.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, TypeVar

import msgspec

from billing_pipeline.errors import DeliveryRefused

ORGANIZATION_KEYS = ("organization_id", "tenant_id", "org_id", "account_id", "user_id")
"""Names under which the metadata of Stripe's objects may hold the organization, the first found wins."""

NAME_LENGTH_MAX = 255
THIN_OBJECT = "v2.core.event"

Shape = TypeVar("Shape")


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


class _Event(msgspec.Struct):
    id: Any = None
    type: Any = None
    style: Any = msgspec.field(default=None, name="object")
    livemode: Any = None
    api_version: Any = None
    account: Any = None
    context: Any = None
    created: Any = None
    data: msgspec.Raw = msgspec.Raw()
    related_object: msgspec.Raw = msgspec.Raw()


class _Data(msgspec.Struct):
    about: msgspec.Raw = msgspec.field(default=msgspec.Raw(), name="object")


class _About(msgspec.Struct):
    id: Any = None
    customer: Any = None
    client_reference_id: Any = None
    metadata: Any = None


_EVENT, _DATA, _ABOUT = msgspec.json.Decoder(_Event), msgspec.json.Decoder(_Data), msgspec.json.Decoder(_About)


def parse_envelope(event: str) -> Envelope:
    """Read the envelope of an event's JSON text.  Raises `DeliveryRefused` for what cannot be one of Stripe's."""
    try:
        found = _EVENT.decode(event)
    except msgspec.ValidationError:
        raise _refused("it is no JSON object") from None
    except (msgspec.DecodeError, RecursionError):
        raise _refused("it is no JSON document") from None
    event_id, event_type = _name(found.id, "id"), _name(found.type, "type")
    if not event_id.startswith("evt_"):
        raise _refused("its id does not begin with evt_")
    if not isinstance(found.livemode, bool):
        raise _refused("livemode is neither true nor false")
    thin = found.style == THIN_OBJECT
    about = _related_object(found) if thin else _snapshot_of(found)
    object_id = _text(about.id)
    return Envelope(
        stripe_event_id=event_id,
        event_type=event_type,
        payload_style=PayloadStyle.THIN if thin else PayloadStyle.SNAPSHOT,
        api_version=_text(found.api_version),
        livemode=found.livemode,
        stripe_account=_text(found.account) or _text(found.context),
        object_id=object_id,
        object_key=object_id or reference(about.customer) or event_id,
        created_at=_instant(found.created),
        tenant_hint=None if thin else _hint(about.client_reference_id, about.metadata),
    )


def organization_hint(about: Mapping[str, Any]) -> str | None:
    """The organization that an object says it belongs to; a hint, because metadata is only what somebody wrote."""
    return _hint(about.get("client_reference_id"), about.get("metadata"))


def _hint(client_reference_id: object, metadata: object) -> str | None:
    if hint := _text(client_reference_id):
        return hint
    found = metadata if isinstance(metadata, Mapping) else {}
    return next((text for key in ORGANIZATION_KEYS if (text := _text(found.get(key)))), None)


def reference(value: object) -> str | None:
    """The id of an object that may be expanded."""
    return _text(value.get("id") if isinstance(value, Mapping) else value)


def _related_object(event: _Event) -> _About:
    if bytes(event.related_object) in (b"", b"null"):
        return _About()
    if (about := _object(_ABOUT, event.related_object)) is None:
        raise _refused("related_object is no object")
    return about


def _snapshot_of(event: _Event) -> _About:
    data = _object(_DATA, event.data)
    about = None if data is None else _object(_ABOUT, data.about)
    if about is None:
        raise _refused("it has no data.object")
    return about


def _object(decoder: msgspec.json.Decoder[Shape], raw: msgspec.Raw) -> Shape | None:
    try:
        return decoder.decode(raw)
    except msgspec.DecodeError:
        return None


def _name(value: object, key: str) -> str:
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
