"""Real processes and a real PostgreSQL, killed at random: `run_kills`, and many flushes at once: `run_together`.

    usage ─► worker(s) ─► a misfortune somewhere in their life ─► repair ─► hours pass ─► … ─► drain ─► judge

What is chosen follows from the seed; where exactly a kill strikes is the machine's doing.  The judge sums the rows
written and the simulator's journal; the witness wants an attempt in the ledger before each request.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from random import Random

from billing_pipeline.errors import BillingError
from billing_pipeline_tests.builders import billable_event
from billing_pipeline_tests.prove.kill_company import EVENT_TYPES, HOUR, Company
from billing_pipeline_tests.prove.kill_deck import USUAL, Kind, shuffled_deck
from billing_pipeline_tests.prove.kill_kinds import Misfortunes
from billing_pipeline_tests.prove.kill_server import small_disk_fault
from billing_pipeline_tests.prove.kill_worker import nothing

ORGANIZATIONS = 4
DRAIN_HOURS_MAX = 120
MISSES_MAX = 20
"""Misfortunes in a row that struck nobody, such as a kill after the worker's end, before the run gives up."""
WRONG_MAX = 5
"""Texts from each who is asked."""
TOGETHER_HOURS = 250


@dataclass(frozen=True)
class KillRun:
    """What a run came to; `wrong` says what was wrong and how to run it again, and is empty when nothing was."""

    seed: int
    kills: dict[str, int]
    """Misfortunes that struck, by kind."""
    left_out: dict[str, str]
    """Kinds that this machine does not allow, and why."""
    missed: int
    flushes: int
    sends: int
    """Meter events that reached the simulator, repeated ones included."""
    unheard: int
    """Attempts whose outcome was never recorded: a kill struck between the send and its record."""
    restores: int
    restores_that_lost: int
    undetected: int
    lost: int
    over: int
    doubled: int
    hours: int
    """Simulated."""
    seconds: float
    wrong: tuple[str, ...]

    @property
    def right(self) -> bool:
        """Nothing lost, nothing doubled, every lossy restore noticed, every request announced, everything settled."""
        return not self.wrong


def run_kills(
    seed: int,
    kills: int,
    folder: Path,
    *,
    on_progress: Callable[[int], None] = lambda kills: None,
    kinds: Mapping[Kind, int] = USUAL,
    before: Callable[[], None] = nothing,
) -> KillRun:
    """Let `kills` misfortunes strike a company in `folder`, new or empty and open to the database's user; then judge.

    `kinds` says how many of each kind there are in a deck, which is drawn from at random and shuffled again when it
    is empty.  `before` runs in each worker before its flush, to break the product on purpose.
    """
    began = time.monotonic()
    again = f"run again: run_kills({seed}, {kills}, folder)"
    left_out = _left_out(kinds)
    with ExitStack() as stack:
        company = Company(folder, seed, ORGANIZATIONS, stack, before)
        misfortunes = Misfortunes(company, Random(f"{seed}/kills"), keeps_backups=Kind.RESTORE in kinds)
        deck = shuffled_deck(kinds.keys() - left_out.keys(), kinds, Random(f"{seed}/deck"))
        with _failures_noted(misfortunes):
            _suffer(misfortunes, deck, kills, on_progress)
        return _judged(company, misfortunes, left_out, again, began)


def run_together(
    entries: int,
    workers: int,
    folder: Path,
    *,
    seed: int = 0,
    kills: int | None = None,
    before: Callable[[], None] = nothing,
) -> KillRun:
    """Flush about `entries` pending entries by so many workers at once, without a common lease, while backends die.

    `kills` backends are killed, by default one for every two workers.
    """
    began = time.monotonic()
    again = f"run again: run_together({entries}, {workers}, folder, seed={seed})"
    with ExitStack() as stack:
        hours = min(TOGETHER_HOURS, max(1, entries // (2 * len(EVENT_TYPES))))
        organizations = max(2, -(-entries // (hours * len(EVENT_TYPES))))
        # Without lag an hour is proved at one look; with it, eight workers at once would read every minute of it.
        company = Company(folder, seed, organizations, stack, before, lag_max=timedelta(0))
        misfortunes = Misfortunes(company, Random(f"{seed}/together"))
        with _failures_noted(misfortunes):
            _cut_entries(company, entries, hours)
            misfortunes.flush_together(workers, workers // 2 if kills is None else kills)
        return _judged(company, misfortunes, {}, again, began)


def _suffer(misfortunes: Misfortunes, deck: Iterator[Kind], kills: int, on_progress: Callable[[int], None]) -> None:
    kind, misses = next(deck), 0
    while misfortunes.struck.total() < kills and not misfortunes.wrong:
        if misfortunes.suffer(kind):
            kind, misses = next(deck), 0
            on_progress(misfortunes.struck.total())
        elif (misses := misses + 1) == MISSES_MAX:
            misfortunes.wrong.append(f"{kind} struck nobody {misses} times in a row")


@contextmanager
def _failures_noted(misfortunes: Misfortunes) -> Iterator[None]:
    """What the product refuses to the people who mend things is a result, not the end of the report."""
    try:
        yield
    except BillingError as exc:
        misfortunes.wrong.append(f"{type(exc).__name__}: {exc}")


def _cut_entries(company: Company, entries: int, hours: int) -> None:
    now = company.clock().replace(minute=0, second=0, microsecond=0)
    chance = Random(f"{company.seed}/entries")
    cells = [
        (name, event_type, now - (hour + 2) * HOUR)
        for hour in range(hours)
        for name in company.customers
        for event_type in EVENT_TYPES
    ]
    company.record(
        [
            billable_event(
                event_id=f"entry-{number}",
                organization_id=name,
                event_type=event_type,
                quantity=chance.randrange(1, 10**6),
                occurred_at=hour + timedelta(minutes=chance.randrange(60)),
                recorded_at=company.clock(),
            )
            for number, (name, event_type, hour) in enumerate(cells[:entries])
        ]
    )
    with company.flow() as flow:
        flow.validate_contract()
        flow.sync_periods()
        flow.aggregate()
        flow.cut()
        flow.give_lease_back()


def _left_out(kinds: Mapping[Kind, int]) -> dict[str, str]:
    fault = small_disk_fault() if Kind.FULL_DISK in kinds else None
    return {Kind.FULL_DISK: fault} if fault else {}


def _judged(
    company: Company,
    misfortunes: Misfortunes,
    left_out: dict[str, str],
    again: str,
    began: float,
) -> KillRun:
    """Drain without any more misfortune, then ask everybody."""
    if not misfortunes.wrong:
        with _failures_noted(misfortunes):
            misfortunes.drain(DRAIN_HOURS_MAX)
    company.read_witness()
    unannounced = tuple(company.witness.unannounced())
    verdict = company.verdict()
    wrong = _few(misfortunes.wrong) + _few(tuple(verdict.wrong.values()))
    if verdict.doubled:
        wrong += (f"{verdict.doubled} meter events too many in minutes that were counted already",)
    if misfortunes.undetected:
        wrong += (f"{misfortunes.undetected} restores were not noticed before the next send",)
    if not company.is_quiet():
        wrong += ("the ledger never came to rest",)
    wrong += _few(unannounced) + _few(company.violations())
    return KillRun(
        seed=company.seed,
        kills=dict(Counter(misfortunes.struck)),
        left_out=left_out,
        missed=misfortunes.missed,
        flushes=misfortunes.flushes,
        sends=len(company.witness.seen),
        unheard=company.witness.never_heard_of,
        restores=misfortunes.restores,
        restores_that_lost=misfortunes.restores_that_lost,
        undetected=misfortunes.undetected,
        lost=verdict.lost,
        over=verdict.over,
        doubled=verdict.doubled,
        hours=int(company.clock.shift / HOUR),
        seconds=round(time.monotonic() - began, 1),
        wrong=tuple(f"{text}; {again}" for text in wrong),
    )


def _few(texts: Sequence[str]) -> tuple[str, ...]:
    more = len(texts) - WRONG_MAX
    return (*texts[:WRONG_MAX], f"and {more} more like this") if more > 0 else tuple(texts)
