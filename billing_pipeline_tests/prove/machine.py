"""The state machine: any order of usage, stages, faults, crashes, zombies, restores and clock jumps, with shrinking.

The stages and every decision are the product's; only SQL is replaced, by tables in memory (`memory_*.py`).
After every step the books of Stripe and ledger are compared; at the end the faults stop, and what Stripe counted must
be what the rows say, but for what the ledger names as owed and Stripe takes no more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from psycopg import OperationalError

from billing_pipeline.domain.windows import HOUR, MINUTE, hour_of
from billing_pipeline.errors import BillingError, LedgerFrozen
from billing_pipeline_tests.prove.machine_judge import broken_rules, cancelled_minutes, differences_at_rest, is_quiet
from billing_pipeline_tests.prove.memory_flow import MemoryFlow
from billing_pipeline_tests.prove.memory_ledger import FOREVER, Crash, Row, in_memory
from billing_pipeline_tests.prove.memory_stripe import Trouble, Weather

ORGANIZATIONS = ("acme", "globex")
CUSTOMERS_EACH = 2
BEGINNING = datetime.min.replace(tzinfo=UTC)
DRAIN_ROUNDS_MAX = 80
RESTORES_MAX = 3
SECOND = timedelta(seconds=1)

JUMPS = (
    *(SECOND, 30 * SECOND, 3 * MINUTE, 20 * MINUTE, HOUR, HOUR + 7 * MINUTE, 3 * HOUR, 9 * HOUR + MINUTE),
    *(19 * HOUR + 59 * MINUTE, 23 * HOUR, 25 * HOUR, 72 * HOUR, timedelta(days=34), timedelta(days=40)),
)
LAGS = (timedelta(0), 10 * MINUTE, 2 * HOUR, 6 * HOUR)
weathers = st.builds(
    Weather,
    troubles=st.lists(st.sampled_from(list(Trouble)), min_size=1, max_size=4).map(tuple),
    late=st.sampled_from((MINUTE, 20 * MINUTE, 59 * MINUTE)),
    lag=st.sampled_from(LAGS),
)
quantities = st.integers(1, 1_000)
numbers = st.integers(0, 30)
deaths = st.none() | st.none() | st.integers(0, 60)
organizations = st.sampled_from(ORGANIZATIONS)


@dataclass
class Tally:
    """What all examples of a run came to."""

    examples: int = 0
    steps: int = 0
    happened: Counter[str] = field(default_factory=Counter)


class UsageMachine(RuleBasedStateMachine):
    """One company's life, as Hypothesis makes it up."""

    tally: ClassVar[Tally] = Tally()

    def __init__(self) -> None:
        super().__init__()
        self.flow = MemoryFlow(len(ORGANIZATIONS) * CUSTOMERS_EACH)
        customers = self.flow.stripe.customers
        self.customers = {
            organization_id: customers[number * CUSTOMERS_EACH : (number + 1) * CUSTOMERS_EACH]
            for number, organization_id in enumerate(ORGANIZATIONS)
        }
        for organization_id in ORGANIZATIONS:
            self._map(organization_id, self.customers[organization_id][0], BEGINNING)
        self.stored: Row | None = None
        self.restores = 0
        self.failed = False
        self.wrong: list[str] = []
        self._rows = 0
        self.lost_rows: dict[int, Row] = {}
        self.tally.examples += 1

    def _map(self, organization_id: str, customer: str, at: datetime) -> None:
        mapping = {"organization_id": organization_id, "stripe_customer_id": customer}
        self.flow.source.mappings.append(mapping | {"valid_from": at, "valid_until": FOREVER})

    @contextmanager
    def _stage(self, dies_at: int | None = None) -> Iterator[None]:
        """A stage of a process, which may die in it; a moment passes."""
        self.flow.pass_time(SECOND)
        ledger = self.flow.ledger
        try:
            with ledger.dying_at(dies_at):
                yield
        except Crash:
            self.tally.happened["crash"] += 1
        except LedgerFrozen as exc:
            self.tally.happened["frozen"] += 1
            if not self.restores:
                self.wrong.append(f"frozen, though nothing was ever restored: {exc}")
        except (BillingError, OperationalError) as exc:
            self.tally.happened[type(exc).__name__] += 1

    # The source.

    @rule(organization_id=organizations, age=st.integers(0, 30 * 60), quantity=quantities)
    def use(self, organization_id: str, age: int, quantity: int) -> None:
        """Usage, on time or late."""
        self._rows += 1
        row = {"organization_id": organization_id, "quantity": quantity}
        # Half of all usage falls into few hours, so that windows are corrected often.
        at = self.flow.now - age * MINUTE if age % 2 else hour_of(self.flow.now) - HOUR + age % 60 * MINUTE
        self.flow.source.rows[self._rows] = row | {"occurred_at": at}

    @precondition(lambda self: self.flow.source.rows)
    @rule(number=numbers, quantity=quantities)
    def change(self, number: int, quantity: int) -> None:
        """A row is corrected, however old it is."""
        self._row(number)["quantity"] = quantity

    @precondition(lambda self: self.flow.source.rows)
    @rule(number=numbers)
    def delete(self, number: int) -> None:
        """A row was a mistake."""
        rows = self.flow.source.rows
        del rows[list(rows)[-1 - number % len(rows)]]

    @rule(keep=st.integers(0, 3))
    def lose_rows(self, keep: int) -> None:
        """The source is truncated; some rows of four are left."""
        rows = self.flow.source.rows
        gone = [number for number in rows if number % 4 >= keep]
        self.tally.happened["rows lost"] += len(gone)
        self.lost_rows |= {number: rows.pop(number) for number in gone}

    @rule()
    def mend_source(self) -> None:
        """What was lost is back."""
        self.flow.source.rows |= self.lost_rows
        self.lost_rows = {}

    @rule(hours=st.sampled_from((-1, 1, 24)))
    def shift_rows(self, hours: int) -> None:
        """A wrong time zone is corrected: all that happened lies in other hours."""
        for row in self.flow.source.rows.values():
            row["occurred_at"] = min(row["occurred_at"] + hours * HOUR, self.flow.now)

    def _row(self, number: int) -> Row:
        rows = list(self.flow.source.rows.values())
        return rows[-1 - number % len(rows)]

    @rule(organization_id=organizations, ago=st.integers(0, 20))
    def remap(self, organization_id: str, ago: int) -> None:
        """The organization belongs to another customer, since some quarters of an hour ago."""
        flow = self.flow
        at = hour_of(flow.now) - ago * 15 * MINUTE
        latest = [m for m in flow.source.mappings if m["organization_id"] == organization_id][-1]
        if at <= latest["valid_from"]:
            return
        latest["valid_until"] = at
        mine = self.customers[organization_id]
        self._map(organization_id, mine[(mine.index(latest["stripe_customer_id"]) + 1) % len(mine)], at)

    # The stages, one by one.

    @rule(dies_at=deaths)
    def cut(self, dies_at: int | None) -> None:
        """Count, and cut what is due."""
        with self._stage(dies_at):
            self.flow.aggregate()
            self.flow.cut()

    @rule(dies_at=deaths)
    def claim(self, dies_at: int | None) -> None:
        """A worker takes what is due; how many there are at once does not matter."""
        with self._stage(dies_at):
            self.flow.claim()

    @precondition(lambda self: self.flow.workers)
    @rule(number=numbers, weather=weathers)
    def send(self, number: int, weather: Weather) -> None:
        """A worker sends its claim, now or whenever it wakes."""
        worker = self.flow.workers[number % len(self.flow.workers)]
        self.flow.stripe.set_weather(weather)
        if worker.answers is None:
            with self._stage():
                if self.flow.boot_nanoseconds() >= worker.claim.send_before:
                    self.tally.happened["zombie"] += 1
                self.flow.send(worker)

    @rule(weather=weathers, jump=st.sampled_from(JUMPS))
    def oversleep(self, weather: Weather, jump: timedelta) -> None:
        """A worker falls asleep with a claim in hand; others go on, and then it wakes."""
        self.cut(None)
        before = len(self.flow.workers)
        self.claim(None)
        self.flush(weather, None)
        self.flow.pass_time(jump)
        if len(self.flow.workers) > before:
            self.send(before, weather)

    @precondition(lambda self: self.flow.workers)
    @rule(number=numbers, dies_at=deaths)
    def record(self, number: int, dies_at: int | None) -> None:
        """It writes down what came of it, or dies with a claim in hand."""
        with self._stage(dies_at):
            self.flow.record(self.flow.workers[number % len(self.flow.workers)])

    @rule(weather=weathers, dies_at=deaths)
    def flush(self, weather: Weather, dies_at: int | None) -> None:
        """All stages in order; a frozen ledger is recovered first."""
        if self.flow.frozen:
            self.recover(None)
        self.flow.stripe.set_weather(weather)
        with self._stage(dies_at):
            self.flow.aggregate()
            self.flow.cut()
            self.flow.submit()
            self.flow.confirm()

    @rule(weather=weathers, hours=st.integers(2, 6), organization_id=organizations, quantity=quantities)
    def live(self, weather: Weather, hours: int, organization_id: str, quantity: int) -> None:
        """Some ordinary hours in one weather."""
        for hour in range(hours):
            self.use(organization_id, 61 + hour, quantity + hour)
            self.flush(weather, None)
            self.flow.pass_time(HOUR)

    @rule(dies_at=deaths)
    def confirm(self, dies_at: int | None) -> None:
        """Look at what Stripe shows."""
        with self._stage(dies_at):
            self.flow.confirm()

    @rule(weather=weathers)
    def canary(self, weather: Weather) -> None:
        """A canary of its own."""
        self.flow.stripe.set_weather(weather)
        with self._stage():
            self.flow.send_canary()

    # People, time and disasters.

    @rule(jump=st.sampled_from(JUMPS))
    def wait(self, jump: timedelta) -> None:
        """Nobody does anything."""
        self.flow.pass_time(jump)

    @rule(refused=st.booleans())
    def roll_key(self, refused: bool) -> None:
        """The sending key ends, and its successor comes later."""
        self.flow.stripe.refuse_key(refused)

    @rule()
    def release_holds(self) -> None:
        """A person looks at what is held."""
        with self._stage():
            self.flow.release_holds()

    @rule(organization_id=organizations, number=st.integers(0, CUSTOMERS_EACH - 1), hours=st.integers(1, 6))
    def finalize(self, organization_id: str, number: int, hours: int) -> None:
        """An invoice is final, of a period that ended hours ago; the product may refuse to seal it yet."""
        if self.flow.frozen or self.flow.lost_something:
            # What is found at Stripe under a seal is a conflict for a person, so nobody seals before the recovery.
            return
        end = hour_of(self.flow.now) - 2 * HOUR
        with self._stage():
            self.flow.seal(self.customers[organization_id][number], end - hours * HOUR, end)

    @rule()
    def snapshot(self) -> None:
        """A backup."""
        self.stored = self.flow.snapshot()

    @precondition(lambda self: self.stored is not None and self.restores < RESTORES_MAX)
    @rule()
    def restore(self) -> None:
        """The backup is put back."""
        assert self.stored is not None
        self.restores += 1
        self.flow.restore(self.stored)
        self.tally.happened["restore"] += 1
        self.tally.happened["restore that lost attempts"] += self.flow.lost_something

    @precondition(lambda self: self.flow.frozen)
    @rule(dies_at=deaths)
    def recover(self, dies_at: int | None) -> None:
        """Two people follow the operations guide; the command may die in between and is run again."""
        self.flow.stripe.refuse_key(False)
        if not self.flow.wait_until_settled():
            self.wrong.append("recovery never became possible")
            return
        # A backup of before a recovery is put back no more: the mark is lowered by the recovery, so that only the
        # canaries of the last week would tell.
        self.stored = None
        with self._stage(dies_at):
            self._adopt_and_release()
            self.tally.happened["recovery"] += 1

    def _adopt_and_release(self) -> None:
        self.flow.adopt()
        self.flow.stripe.cancelled |= cancelled_minutes(self.flow)
        self.flow.release()

    # What must hold.

    @invariant()
    def books_agree(self) -> None:
        """The rules that hold at every moment."""
        self.tally.steps += 1
        self.flow.stripe.look()
        self.wrong += broken_rules(self.flow)
        self._require_right()

    def teardown(self) -> None:
        """No more faults; everything comes to rest, and then Stripe's count is the truth."""
        self.tally.happened.update(self.flow.stripe.troubles)
        self.tally.happened["counted by Stripe"] += len(self.flow.stripe.counted)
        if self.failed:
            return
        self.drain()
        self.wrong += map(str, differences_at_rest(self.flow))
        self._require_right()

    def drain(self) -> None:
        """Without any more faults, until nothing is under way."""
        flow = self.flow
        flow.workers.clear()
        flow.stripe.refuse_key(False)
        for number in range(DRAIN_ROUNDS_MAX):
            flow.stripe.set_weather(Weather())
            with self._stage():
                if flow.frozen and flow.wait_until_settled():
                    self._adopt_and_release()
                flow.release_holds()
                flow.aggregate()
                flow.cut()
                flow.submit()
                flow.confirm()
            flow.stripe.look()
            self.wrong += broken_rules(flow)
            self._require_right()
            if number and is_quiet(flow):
                return
            flow.pass_time((HOUR if number < 3 else 5 * HOUR) + MINUTE)
        self.wrong.append("the ledger never came to rest")

    def _require_right(self) -> None:
        self.failed = bool(self.wrong)
        assert not self.wrong, "; ".join(dict.fromkeys(self.wrong))


@dataclass(frozen=True)
class MachineRun:
    """What the machine was put through, and what was wrong."""

    examples: int
    steps: int
    happened: dict[str, int]
    wrong: tuple[str, ...] = ()


def run_machine(examples: int, steps: int, seed: int, *, shrink: bool = True) -> MachineRun:
    """Run so many examples of so many steps each; the same seed runs the same ones.  Stops at the first wrong one."""
    tally = Tally()
    machine: Any = hypothesis.seed(seed)(type("SeededMachine", (UsageMachine,), {"tally": tally}))
    phases = (Phase.generate, Phase.shrink) if shrink else (Phase.generate,)
    profile = settings(
        max_examples=examples,
        stateful_step_count=steps,
        phases=phases,
        deadline=None,
        database=None,
        print_blob=False,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    wrong: tuple[str, ...] = ()
    try:
        with in_memory():
            run_state_machine_as_test(machine, settings=profile)
    except Exception as exc:
        again = f"run_machine({examples}, {steps}, {seed})"
        notes = "\n".join(getattr(exc, "__notes__", ()))
        wrong = (f"{type(exc).__name__}: {exc}\nagain with {again}\n{notes}",)
    return MachineRun(
        tally.examples, tally.steps - tally.examples, {str(k): n for k, n in sorted(tally.happened.items())}, wrong
    )
