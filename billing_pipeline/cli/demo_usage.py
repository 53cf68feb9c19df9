"""The demo's usage: a week of five organizations, with everything that goes wrong in real data.

Pure and seeded, so that two demos of one hour bill the same.  Late and changed rows come apart, because they arrive
after the first flush.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal

SEED = 20_261_121
DAYS = 7
ORGANIZATIONS = {"acme": 9, "globex": 6, "hooli": 4, "initech": 2, "umbrella": 1}
"""Organization -> requests per hour at the busiest."""
DUPLICATE_EVERY = 150
LATE_SHARE = 0.01
CHANGED = 6


@dataclass(frozen=True, slots=True)
class SampleEvent:
    """One row for `billable_events`."""

    event_id: str
    organization_id: str
    event_type: str
    quantity: Decimal | None
    occurred_at: datetime
    recorded_at: datetime


@dataclass(frozen=True, slots=True)
class SampleUsage:
    """What the product writes before the first flush, and after it."""

    on_time: tuple[SampleEvent, ...]
    duplicates: tuple[SampleEvent, ...]
    """Sent a second time by the product, word for word."""
    bad: tuple[SampleEvent, ...]
    late: tuple[SampleEvent, ...]
    changed: tuple[SampleEvent, ...]
    """Rows of `on_time`, corrected upstream."""


def sample_usage(now: datetime) -> SampleUsage:
    """A week that ends with the last full hour before `now`."""
    rng = random.Random(SEED)
    end = now.replace(minute=0, second=0, microsecond=0)
    events = list(_requests(rng, end))
    late = [event for event in events if rng.random() < LATE_SHARE]
    on_time = [event for event in events if event not in set(late)]
    changed = [
        # Down as well as up: a correction may take back what Stripe was told.
        replace(event, quantity=Decimal(rng.randint(0, 5_000)), recorded_at=now)
        for event in rng.sample([event for event in on_time if event.event_type != "api_request"], CHANGED)
    ]
    return SampleUsage(
        on_time=tuple(on_time),
        duplicates=tuple(on_time[::DUPLICATE_EVERY]),
        bad=tuple(_bad_rows(end)),
        late=tuple(replace(event, recorded_at=now) for event in late),
        changed=tuple(changed),
    )


def _requests(rng: random.Random, end: datetime) -> Iterator[SampleEvent]:
    """Requests to a language model: each is one api_request with its prompt and generated tokens."""
    for hour in range(DAYS * 24, 0, -1):
        start = end - timedelta(hours=hour)
        busy = 0.3 + 0.7 * (8 <= start.hour < 20)
        for organization_id, per_hour in ORGANIZATIONS.items():
            for number in range(rng.randint(0, round(per_hour * busy))):
                occurred_at = start + timedelta(seconds=rng.randrange(3600), microseconds=rng.randrange(1_000_000))
                request_id = f"demo-{organization_id}-{start:%Y%m%d%H}-{number}"
                recorded_at = occurred_at + timedelta(seconds=rng.randint(1, 40))
                prompt, generated = rng.randint(20, 4_000), rng.randint(1, 800)
                for kind, quantity in (("api_request", 1), ("prompt_tokens", prompt), ("generated_tokens", generated)):
                    yield SampleEvent(
                        f"{request_id}-{kind}", organization_id, kind, Decimal(quantity), occurred_at, recorded_at
                    )


def _bad_rows(end: datetime) -> Iterator[SampleEvent]:
    at = end - timedelta(hours=3)
    bad = [
        ("nan", "prompt_tokens", Decimal("NaN"), at),
        ("negative", "prompt_tokens", Decimal(-5), at),
        ("no-quantity", "generated_tokens", None, at),
        ("too-many-digits", "prompt_tokens", Decimal(10**15), at),
        ("unknown-type", "espresso_shots", Decimal(2), at),
        ("from-the-future", "prompt_tokens", Decimal(7), at + timedelta(days=1)),
        ("ancient", "prompt_tokens", Decimal(7), at - timedelta(days=36)),
    ]
    for name, kind, quantity, occurred_at in bad:
        yield SampleEvent(f"demo-bad-{name}", "initech", kind, quantity, occurred_at, at)
