"""The exhaustive sweep: a flush dies once at every one of its steps, under every answer that Stripe can give.

Each case has an hour of usage of its own, so the judge names the case: flush under one fault and die at one step, then
flush without either until the hour has settled.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime
from itertools import count

from billing_pipeline.stripe_simulator.faults import FaultKind
from billing_pipeline_tests.prove.crash import Death
from billing_pipeline_tests.prove.plan import CALL_FAULTS, CALM, HOUR, ONLY_OF
from billing_pipeline_tests.prove.world import Place, World, opened_world

OUTCOMES: tuple[FaultKind | None, ...] = (
    None,
    *CALL_FAULTS,
    *ONLY_OF.values(),
    FaultKind.ASYNC_SILENT_DROP,
    FaultKind.KEY_EXPIRED_401,
)
"""What the sends of the dying flush meet; None is Stripe's good answer."""


@dataclass
class Sweep:
    """One outcome's cases, by the step of death."""

    outcome: str
    cases: int = 0
    died_at: dict[str, int] = field(default_factory=dict)
    wrong: tuple[str, ...] = ()


def sweep(place: Place, outcome: FaultKind | None, *, every: int = 1) -> Sweep:
    """Die at every step of a flush whose sends meet `outcome`; `every` takes each nth step only."""
    found = Sweep(str(outcome or "ok"))
    settings = {"stripe_meter_sink": "v2_stream" if outcome is FaultKind.SESSION_EXPIRED_401 else "v1"}
    with opened_world(place, f"sweep_{found.outcome}", 0, CALM, **settings) as world:
        cases: dict[datetime, str] = {}
        where: Counter[str] = Counter()

        def die(step: int, *, unheard: bool) -> str | None:
            hour = world.time()
            died_at = _die(world, outcome, Death(step, unheard)).died_at
            cases[hour] = f"{found.outcome}, step {step}: {died_at}"
            where[died_at or "nowhere"] += 1
            return died_at

        for step in count(0, every):
            died_at = die(step, unheard=False)
            if died_at is None:
                break
            if died_at == "before request":
                die(step, unheard=True)
        found.cases, found.died_at = len(cases), dict(where)
        world.drain()
        found.wrong = tuple(f"{cases.get(cell[2], 'no case')}: {what}" for cell, what in world.verdict().wrong.items())
        found.wrong += world.complaints()
    return found


def _die(world: World, outcome: FaultKind | None, death: Death) -> Death:
    world.product.record(world.connection, [world.product.one_row(1_000 + len(world.product.rows))])
    world.pass_time(HOUR)
    world.plan.forced = outcome
    world.flush(death)
    world.plan.forced = None
    world.pass_time(HOUR)
    world.flush()
    return death
