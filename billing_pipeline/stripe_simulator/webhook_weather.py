"""What can go wrong between Stripe's events and an endpoint, apart from the endpoint itself.

The weather is a pure function of a seed and a number, so a run repeats itself; off unless asked for.
The number is that of the fact (from its journal line) or that of the delivery, counted from 0.

    kind            what happens
    not_generated   the fact makes no event at all
    two_events      the fact makes two events of different ids
    duplicated      the delivery arrives a second time, although the first was answered well
    delayed         the delivery begins up to `delay_max` late, so others overtake it
    dropped         the delivery never begins
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from billing_pipeline.stripe_simulator.journal import Record

_WHOLE = 1_000_000


class Trouble(StrEnum):
    """The kinds, as in the table above."""

    NOT_GENERATED = "not_generated"
    TWO_EVENTS = "two_events"
    DUPLICATED = "duplicated"
    DELAYED = "delayed"
    DROPPED = "dropped"


_OF_FACTS = (Trouble.NOT_GENERATED, Trouble.TWO_EVENTS)
_OF_DELIVERIES = (Trouble.DUPLICATED, Trouble.DELAYED, Trouble.DROPPED)


@dataclass(frozen=True, slots=True)
class WebhookWeather:
    """How many of a million facts or deliveries each trouble meets, and how late a late one is at most (seconds)."""

    seed: int = 0
    per_million: Mapping[Trouble, int] = field(default_factory=dict)
    delay_max: int = 300

    def of_fact(self, number: int) -> Trouble | None:
        """What happens to the making of one event."""
        return self._drawn("fact", number, _OF_FACTS)

    def of_delivery(self, number: int) -> Trouble | None:
        """What happens to one event on its way to one endpoint."""
        return self._drawn("delivery", number, _OF_DELIVERIES)

    def delay(self, number: int) -> int:
        """By how many seconds a delivery, or its copy, is late."""
        return 1 + self._draw("delay", number) % max(self.delay_max, 1)

    def _drawn(self, what: str, number: int, kinds: tuple[Trouble, ...]) -> Trouble | None:
        drawn = self._draw(what, number) % _WHOLE
        for kind in kinds:
            drawn -= self.per_million.get(kind, 0)
            if drawn < 0:
                return kind
        return None

    def _draw(self, what: str, number: int) -> int:
        text = f"{self.seed}/{what}/{number}".encode()
        return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest())


FAIR = WebhookWeather()
FACTS_PER_LINE = 16
"""More than any record makes, so that each fact has a number of its own."""


def weathered(record: Record, weather: WebhookWeather) -> Record:
    """The record with the events that are really made, and those that are not."""
    told: list[str] = []
    missing: list[str] = []
    for number, type in enumerate(record["events"]):
        match weather.of_fact(record["line"] * FACTS_PER_LINE + number):
            case Trouble.NOT_GENERATED:
                missing.append(type)
            case Trouble.TWO_EVENTS:
                told += [type, type]
            case _:
                told.append(type)
    return {**record, "events": told, **({"not_generated": missing} if missing else {})}
