"""The canary: one unpriced unit per meter and flush, whose fate tells two things about everything else.

When Stripe shows it, what was sent before it must show too, or was not counted: it is the watermark of lag.
When Stripe shows more canaries than the ledger ever sent, the ledger has lost attempts: it was restored.
Its customer has no subscription, so no invoice ever sees it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.domain.identifiers import entry_identifier
from billing_pipeline.domain.windows import HOUR, MINUTE, hour_of, minute_of
from billing_pipeline.stripe_api.meter_events import Answer, MeterEvent
from billing_pipeline.usage.gate import Identity

CANARY_ORGANIZATION = "billing-pipeline canary"
WATCH = timedelta(days=7)
"""How far back canaries are looked for and counted; a restored backup is rarely older."""


class CanaryReader(Protocol):
    """What the canary needs of Stripe's summaries."""

    def hours(self, event_name: str, customer: str, start: datetime, end: datetime) -> dict[datetime, int]:
        """Units per UTC hour; hours without usage are absent."""
        ...

    def minute(self, event_name: str, customer: str, minute: datetime) -> int:
        """Units in one minute."""
        ...


@dataclass(frozen=True, slots=True)
class Canary:
    """One canary: committed before it is sent, like any attempt."""

    canary_id: int
    event_name: str
    stripe_customer_id: str
    slot_at: datetime
    identifier: str

    def as_meter_event(self) -> MeterEvent:
        """The one unit to send."""
        return MeterEvent(
            identifier=self.identifier,
            fence=1,
            event_name=self.event_name,
            stripe_customer_id=self.stripe_customer_id,
            value=1,
            timestamp=self.slot_at,
        )


@dataclass(frozen=True, slots=True)
class SentCanaries:
    """How many canaries of one meter were sent for one customer."""

    event_name: str
    stripe_customer_id: str
    sent: int


def write_canaries(
    connection: Connection[Any], *, identity: Identity, customer: str, event_names: Sequence[str], now: datetime
) -> list[Canary]:
    """Commit one canary per meter, to be sent now; at most one a minute, so that each has a minute of its own."""
    slot = minute_of(now)
    identifiers = [
        entry_identifier(
            stripe_account=identity.stripe_account,
            livemode=identity.livemode,
            event_name=event_name,
            organization_id=CANARY_ORGANIZATION,
            stripe_customer_id=customer,
            starts_at=slot,
            ends_at=slot + MINUTE,
            sequence=0,
            epoch=identity.epoch,
        )
        for event_name in event_names
    ]
    return queries.fetch(
        connection,
        "insert_canaries",
        Canary,
        {
            "event_names": list(event_names),
            "identifiers": identifiers,
            "customer": customer,
            "slot_at": slot,
            "now": now,
        },
    )


def record_canaries(connection: Connection[Any], canaries: Sequence[Canary], answers: Sequence[Answer]) -> None:
    """Note what Stripe answered; a canary whose answer is lost may still turn up."""
    params = {
        "canary_ids": [canary.canary_id for canary in canaries],
        "outcomes": [str(answer.outcome) for answer in answers],
    }
    queries.execute(connection, "record_canaries", params)


def look_for_canaries(connection: Connection[Any], reader: CanaryReader, *, now: datetime) -> int:
    """Note the canaries that Stripe shows by now, with one read per meter where hours agree.  Returns how many."""
    unseen: dict[tuple[str, str], list[Canary]] = defaultdict(list)
    for canary in queries.fetch(connection, "unseen_canaries", Canary, {"since": now - WATCH}):
        unseen[(canary.event_name, canary.stripe_customer_id)].append(canary)
    seen = [
        canary.canary_id
        for (event_name, customer), canaries in unseen.items()
        for canary in _shown(reader, event_name, customer, canaries)
    ]
    queries.execute(connection, "mark_canaries_seen", {"canary_ids": seen, "now": now})
    return len(seen)


def lost_canaries(connection: Connection[Any], reader: CanaryReader, *, now: datetime) -> str | None:
    """Why the canaries say that this ledger was restored, or None."""
    return more_than_sent(sent_canaries(connection, now=now), reader, now=now)


def sent_canaries(connection: Connection[Any], *, now: datetime) -> list[SentCanaries]:
    """What the ledger has sent of each meter and canary customer in the time that is watched."""
    return queries.fetch(connection, "sent_canaries", SentCanaries, {"start": hour_of(now - WATCH)})


def more_than_sent(sent: Sequence[SentCanaries], reader: CanaryReader, *, now: datetime) -> str | None:
    """What Stripe shows beyond that, or None; asks Stripe only."""
    for one in sent:
        hours = reader.hours(one.event_name, one.stripe_customer_id, hour_of(now - WATCH), hour_of(now) + HOUR)
        if (shown := sum(hours.values())) > one.sent:
            return f"Stripe shows {shown} canaries of {one.event_name}, but the ledger sent only {one.sent}"
    return None


def unproved_without_canary(connection: Connection[Any], *, absence_after: timedelta, now: datetime) -> bool:
    """Whether some entry waits for its proof, and no later canary shows or still has time to show."""
    params = {"absence_after": absence_after, "now": now}
    return bool(queries.fetch_dicts(connection, "unproved_without_canary", params))


def _shown(reader: CanaryReader, event_name: str, customer: str, canaries: list[Canary]) -> list[Canary]:
    # The hours say where to look; other canaries share them, so each is asked for by its own minute.
    hours = [hour_of(canary.slot_at) for canary in canaries]
    observed = reader.hours(event_name, customer, min(hours), max(hours) + HOUR)
    return [
        canary
        for canary, hour in zip(canaries, hours, strict=True)
        if observed.get(hour, 0) >= 1 and reader.minute(event_name, customer, canary.slot_at) >= 1
    ]
