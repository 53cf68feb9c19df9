"""Runs worlds, whole or broken on purpose, and says what came of each."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, field, replace

from billing_pipeline.errors import BillingError
from billing_pipeline_tests.prove.controls import Control
from billing_pipeline_tests.prove.plan import Chances
from billing_pipeline_tests.prove.world import Place, World, opened_world

CONTROL_SEEDS = 6
LOOK_EVERY_HOURS = 10
"""A broken variant is stopped at the first sign; the rest would only take time."""


@dataclass
class Run:
    """One seed's result; `wrong` says where, and is empty when everything is right."""

    seed: int
    hours: int = 0
    flushes: int = 0
    sends: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    cells: dict[str, int] = field(default_factory=dict)
    crashes: dict[str, int] = field(default_factory=dict)
    restores: int = 0
    restores_that_lost: int = 0
    undetected: int = 0
    lost: int = 0
    over: int = 0
    doubled: int = 0
    outages: int = 0
    hours_to_certainty: int = 0
    wrong: tuple[str, ...] = ()

    @property
    def right(self) -> bool:
        """Nothing lost, nothing doubled even for a moment, every lossy restore noticed, everything settled."""
        return not self.wrong


@dataclass(frozen=True)
class ControlRun:
    """One broken variant: the seed that caught it, and how it showed."""

    name: str
    seed: int | None
    hours: int
    sign: str
    wrong: tuple[str, ...] = ()


def run_world(place: Place, seed: int, hours: int, control: Control | None = None) -> Run:
    """Live `hours`, drain, judge; every third world sends by the stream.  With a control the product is broken."""
    if control:
        name, chances, settings = f"{control.name}_{seed}", control.chances, control.settings
    else:
        name, chances = f"world_{seed}", Chances()
        settings = {"stripe_meter_sink": "v2_stream" if seed % 3 == 2 else "v1"}
    with opened_world(place, name, seed, chances, **settings) as world, ExitStack() as broken:
        if control:
            control.apply(world, broken)
        try:
            for _ in range(hours):
                world.live_an_hour()
                if control and world.tally.hours % LOOK_EVERY_HOURS == 0 and world.has_failed():
                    return _result(world, ())
            world.drain()
        except BillingError as exc:
            return _result(world, (f"{type(exc).__name__}: {exc}",))
        return _result(world, ())


def run_control(place: Place, control: Control, hours: int, *, and_whole: bool = True) -> ControlRun:
    """Run the broken product, world after world, until the proof sees it.

    With `and_whole`, the whole product has to stand the same weather: else the weather was caught and not the break.
    """
    for seed in range(CONTROL_SEEDS):
        run = run_world(place, seed, hours, control)
        if not run.right:
            whole = replace(control, apply=lambda world, stack: None)
            wrong = run_world(place, seed, hours, whole).wrong if and_whole else ()
            return ControlRun(control.name, seed, (seed + 1) * hours, run.wrong[0], wrong)
    return ControlRun(control.name, None, CONTROL_SEEDS * hours, "", (f"{control.name} was not caught",))


def _result(world: World, wrong: tuple[str, ...]) -> Run:
    verdict, tally = world.verdict(), world.tally
    wrong += (*verdict.wrong.values(), *world.complaints())
    return Run(
        seed=world.plan.seed,
        hours=tally.hours,
        flushes=tally.flushes,
        sends=world.sent(),
        faults={str(kind): times for kind, times in world.core.faults_applied.items()},
        cells={" ".join(cell): times for cell, times in world.plan.cells.items()},
        crashes=dict(tally.crashes),
        outages=tally.outages,
        restores=tally.restores,
        restores_that_lost=tally.restores_that_lost,
        undetected=tally.undetected,
        lost=verdict.lost,
        over=verdict.over,
        doubled=verdict.doubled,
        hours_to_certainty=world.hours_to_certainty() if world.is_quiet() else 0,
        wrong=wrong,
    )
