"""A long life in memory: hour by hour, thousands of hours in a minute, every choice from the seed.

The same company as in `world.py`, with the stages and decisions of the product on the tables in memory that the state
machine uses: what PostgreSQL costs is left out, so that a million hours can be lived.
The books of Stripe and ledger are compared after every hour, and the rows with Stripe's count at the end.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from random import Random

from billing_pipeline.domain.windows import HOUR, MINUTE
from billing_pipeline_tests.prove.machine import CUSTOMERS_EACH, LAGS, ORGANIZATIONS, UsageMachine
from billing_pipeline_tests.prove.machine import Tally as MachineTally
from billing_pipeline_tests.prove.machine_judge import differences_at_rest
from billing_pipeline_tests.prove.memory_flow import START
from billing_pipeline_tests.prove.memory_ledger import in_memory
from billing_pipeline_tests.prove.memory_stripe import Trouble, Weather

CERTAIN_WITHIN_HOURS = 36
RESTORE_AGE_MAX = 78 * HOUR
STEPS_MAX = 100
"""A crash is drawn among this many steps of a flush, before and after each; past its end it does not happen."""
TROUBLES = tuple(trouble for trouble in Trouble if trouble is not Trouble.NONE)
OUTAGE = (Trouble.LOST_REQUEST, Trouble.LOST_ANSWER, Trouble.LATE)
CALM = Weather()


@dataclass(frozen=True, slots=True)
class Chances:
    """How likely each thing is in an hour; a call's trouble, for each call."""

    usage: float = 0.5  # of each organization
    late_row: float = 0.15
    changed_row: float = 0.08
    deleted_row: float = 0.03
    remapped: float = 0.004
    lost_rows: float = 0.005  # most of the source, until it is mended
    mended: float = 0.1
    shifted_rows: float = 0.002
    idle: float = 0.35  # nobody flushes
    downtime: float = 0.003  # nobody flushes for 5 to 40 hours
    outage: float = 0.008  # nothing is heard of any call for 1 to 40 hours
    refused_key: float = 0.003  # for 1 to 40 hours
    trouble: float = 0.35
    crash: float = 0.25
    sleeper: float = 0.01  # a worker wakes long after its claim ran out
    sealed: float = 0.005
    released: float = 0.02
    snapshot: float = 0.03
    restore: float = 0.008


@dataclass
class Lives:
    """What some lives came to; `wrong` is empty when everything was right."""

    seeds: int = 0
    hours: int = 0
    flushes: int = 0
    sends: int = 0
    faults: dict[str, int] = field(default_factory=dict)
    happened: dict[str, int] = field(default_factory=dict)
    restores: int = 0
    restores_that_lost: int = 0
    undetected: int = 0
    outages: int = 0
    hours_to_certainty: int = 0
    lost: int = 0
    over: int = 0
    wrong: list[str] = field(default_factory=list)
    again: list[str] = field(default_factory=list)
    """The job of each life that went wrong."""


class Life:
    """One company from its first hour to the last."""

    def __init__(self, seed: int) -> None:
        self.seed, self.chances = seed, Chances()
        self.machine = UsageMachine()
        # Its own, not the one that all of Hypothesis' examples share.
        self.machine.tally = MachineTally()
        self.flushes = self.outages = self.restores_that_lost = self.undetected = 0
        self._down_until = self._outage_until = self._refused_until = self._stored_at = START
        self._doubts: Counter[str] = Counter()

    @property
    def hours(self) -> int:
        """Simulated, the waiting for a recovery and the drain among them."""
        return (self.machine.flow.now - START) // HOUR

    @property
    def hours_to_certainty(self) -> int:
        """The longest that an entry was in doubt, outages and downtimes not counted."""
        return max(self._doubts.values(), default=0)

    def live_an_hour(self, number: int) -> None:
        """Usage, perhaps a disaster, perhaps a flush; then the hour is over, and the books must agree."""
        chance = Random(f"{self.seed}/{number}")
        self._usage(chance)
        # Of a chance of its own, so that every life is otherwise what it was.
        self._break_source(Random(f"{self.seed}/{number}/source"))
        self._begin_trouble(chance)
        self._backup(chance)
        self._people(chance)
        if self.machine.flow.now >= self._down_until and chance.random() >= self.chances.idle:
            self._flush(chance)
        self.machine.flow.pass_time(HOUR)
        self._note_doubts()
        self.machine.books_agree()

    def _usage(self, chance: Random) -> None:
        machine, chances = self.machine, self.chances
        for organization_id in ORGANIZATIONS:
            if chance.random() < chances.usage:
                # An odd age is that many minutes; an even one is a minute of the hour before.
                age = (
                    chance.randrange(1, 48 * 60, 2) if chance.random() < chances.late_row else 2 * chance.randrange(30)
                )
                machine.use(organization_id, age, chance.randrange(1, 1_000))
            if chance.random() < chances.remapped:
                machine.remap(organization_id, chance.randrange(20))
        if machine.flow.source.rows:
            if chance.random() < chances.changed_row:
                machine.change(chance.randrange(30), chance.randrange(1, 1_000))
            if chance.random() < chances.deleted_row:
                machine.delete(chance.randrange(30))

    def _break_source(self, chance: Random) -> None:
        if self.machine.lost_rows:
            if chance.random() < self.chances.mended:
                self.machine.mend_source()
        elif chance.random() < self.chances.lost_rows:
            self.machine.lose_rows(chance.randrange(4))
        elif chance.random() < self.chances.shifted_rows:
            self.machine.shift_rows(chance.choice((-1, 1)))

    def _begin_trouble(self, chance: Random) -> None:
        now, chances = self.machine.flow.now, self.chances
        if chance.random() < chances.downtime:
            self._down_until = now + chance.randrange(5, 41) * HOUR
        if chance.random() < chances.outage:
            self.outages += 1
            self._outage_until = now + chance.randrange(1, 41) * HOUR
        if chance.random() < chances.refused_key:
            self.outages += 1
            self._refused_until = now + chance.randrange(1, 41) * HOUR
        self.machine.roll_key(now < self._refused_until)

    def _backup(self, chance: Random) -> None:
        machine = self.machine
        if chance.random() < self.chances.snapshot and not machine.flow.frozen:
            machine.snapshot()
            self._stored_at = machine.flow.now
        young = machine.flow.now - self._stored_at <= RESTORE_AGE_MAX
        if machine.stored is not None and young and chance.random() < self.chances.restore:
            machine.restore()
            if machine.flow.lost_attempts:
                self.restores_that_lost += 1
                self._must_be_noticed()

    def _must_be_noticed(self) -> None:
        """The next flush sends nothing and freezes the ledger."""
        stripe = self.machine.flow.stripe
        sent = stripe.sent
        self.machine.flush(CALM, None)
        self.undetected += stripe.sent > sent or not self.machine.flow.frozen

    def _people(self, chance: Random) -> None:
        if chance.random() < self.chances.sealed:
            organization_id = chance.choice(ORGANIZATIONS)
            self.machine.finalize(organization_id, chance.randrange(CUSTOMERS_EACH), chance.randrange(1, 6))
        if chance.random() < self.chances.released:
            self.machine.release_holds()

    def _flush(self, chance: Random) -> None:
        self.flushes += 1
        weather = self._weather(chance)
        for worker in list(self.machine.flow.workers):
            # Left behind by a crash, and not dead after all.
            if chance.random() < 0.5:
                self.machine.send(self.machine.flow.workers.index(worker), weather)
        if chance.random() < self.chances.sleeper:
            self.machine.oversleep(weather, chance.choice((3 * MINUTE, HOUR, 9 * HOUR, 19 * HOUR + 59 * MINUTE)))
        self.machine.flush(weather, chance.randrange(2 * STEPS_MAX) if chance.random() < self.chances.crash else None)

    def _weather(self, chance: Random) -> Weather:
        if self.machine.flow.now < self._outage_until:
            troubles = tuple(chance.choices(OUTAGE, k=5))
        else:
            one = [chance.random() < self.chances.trouble for _ in range(5)]
            troubles = tuple(chance.choice(TROUBLES) if bad else Trouble.NONE for bad in one)
        return Weather(troubles, late=chance.randrange(60) * MINUTE, lag=chance.choice(LAGS))

    def _note_doubts(self) -> None:
        flow = self.machine.flow
        if flow.now >= max(self._down_until, self._outage_until, self._refused_until):
            in_doubt = [e["identifier"] for e in flow.ledger.entries.values() if e["state"] == "ambiguous"]
            self._doubts.update(in_doubt)


def run_lives(first: int, seeds: int, hours: int) -> Lives:
    """Live so many hours with each seed; the same seed lives the same life.  A life ends where it goes wrong."""
    found = Lives()
    with in_memory():
        for seed in range(first, first + seeds):
            _live(found, Life(seed), hours)
    return found


def _live(found: Lives, life: Life, hours: int) -> None:
    wrong: list[str] = []
    try:
        for number in range(hours):
            life.live_an_hour(number)
        life.machine.drain()
    except Exception as exc:
        # What the tables in memory or the product could not go on with is wrong as well, and has its seed.
        wrong.append(str(exc) if isinstance(exc, AssertionError) else f"{type(exc).__name__}: {exc}")
    else:
        for difference in differences_at_rest(life.machine.flow):
            wrong.append(str(difference))
            found.lost += max(0, difference.missing)
            found.over += max(0, -difference.missing)
    if life.undetected:
        wrong.append(f"{life.undetected} restores were not noticed before the next send")
    if life.hours_to_certainty > CERTAIN_WITHIN_HOURS:
        wrong.append(f"an entry was in doubt for {life.hours_to_certainty} hours, not counting outages")
    stripe, happened = life.machine.flow.stripe, life.machine.tally.happened
    found.seeds += 1
    found.hours += life.hours
    found.flushes += life.flushes
    found.sends += stripe.sent
    for kind, times in stripe.troubles.items():
        found.faults[str(kind)] = found.faults.get(str(kind), 0) + times
    for what, times in happened.items():
        found.happened[what] = found.happened.get(what, 0) + times
    found.outages += life.outages
    found.restores += happened["restore"]
    found.restores_that_lost += life.restores_that_lost
    found.undetected += life.undetected
    found.hours_to_certainty = max(found.hours_to_certainty, life.hours_to_certainty)
    found.wrong += [f"seed {life.seed} after {life.hours} hours: {what}" for what in wrong]
    if wrong:
        found.again.append(f"lives {life.seed} 1 {hours}")
