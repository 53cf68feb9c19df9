"""The product's own stages on the ledger in memory: gate, cut, claim, send, record, confirm, seal and recovery.

The state machine calls them one by one, with crashes between; nothing is decided here that the product decides.
A worker that is left alone keeps its claim, and may wake long after it ran out, or after a restore.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from billing_pipeline.domain.brakes import Brakes, MeterBrakes
from billing_pipeline.domain.catalogue import Aggregation, Catalogue, Meter
from billing_pipeline.domain.protocol import ProtocolTimes
from billing_pipeline.domain.seals import Period
from billing_pipeline.domain.windows import HOUR, MINUTE
from billing_pipeline.errors import GateClosed, LedgerFrozen
from billing_pipeline.stripe_api.meter_events import Answer
from billing_pipeline.usage import adopt, canary, confirm, cut, gate, hold, seal, send, submit
from billing_pipeline.usage.attempts import Claim
from billing_pipeline.usage.lease import Lease
from billing_pipeline.usage.mark import HighWaterMark, Mark
from billing_pipeline_tests.prove import memory_brakes, memory_evidence, memory_recovery, memory_seals, memory_sending  # noqa: F401 # their statements
from billing_pipeline_tests.prove.memory_ledger import BootClock, MemoryLedger, Row, Source, Witness
from billing_pipeline_tests.prove.memory_statements import EVENT_NAME, METER, aggregate
from billing_pipeline_tests.prove.memory_stripe import MemoryStripe, Weather

START = datetime(2026, 3, 10, 12, tzinfo=UTC)
GRACE = timedelta(minutes=5)
READS_MAX = 1_000
BATCH_SIZE = 3
BRAKES = Brakes({METER: MeterBrakes(hour_max=2_000, flush_max=9_000)}, taken_back_percent=20)
CATALOGUE = Catalogue((Meter(METER, ("tokens",), Aggregation.SUM, EVENT_NAME),), (), "1")
RECOVERY_HOURS_MAX = 60
LOOP = asyncio.new_event_loop()


class MemoryMark(HighWaterMark):
    """The high-water mark, kept where no restore reaches it; the process may die before or after it is written."""

    def __init__(self, flow: MemoryFlow) -> None:
        self._flow, self._stored, self._url = flow, None, "memory://"

    def read(self) -> Mark | None:
        return self._stored

    def _write(self, content: bytes) -> None:
        with self._flow.ledger.step():
            self._stored = Mark(**json.loads(content))

    @contextmanager
    def _exclusively(self) -> Iterator[None]:
        yield


@dataclass
class Worker:
    """A process with a claim in hand, and the answers to it once it has sent."""

    run: Any
    claim: Claim
    answers: list[Answer] | None = None


class MemoryFlow:
    """One company: its clock, its rows, its ledger, its Stripe and its workers."""

    def __init__(self, customers: int) -> None:
        self.now = START
        self.times = ProtocolTimes()
        self.source, self.witness = Source(), Witness()
        self.ledger = MemoryLedger(self.source, self.witness)
        self.stripe = MemoryStripe(self.clock, self.witness, customers)
        self.mark = MemoryMark(self)
        self.workers: list[Worker] = []
        BootClock.read = self.boot_nanoseconds

    def clock(self) -> datetime:
        """The database's time and Stripe's."""
        return self.now

    def boot_nanoseconds(self) -> int:
        """The same as a clock that nobody sets."""
        return (self.now - START) // timedelta(microseconds=1) * 1_000

    def pass_time(self, duration: timedelta) -> None:
        """Requests under way arrive meanwhile, each in its own time."""
        self.now += duration
        self.stripe.look()

    def pass_gate(self) -> gate.Identity:
        """As every stage does before it cuts, sends or settles."""
        identity = gate.read_identity(self.ledger)
        gate.require_open(self.ledger, identity, self.mark, now=self.now)
        return identity

    def aggregate(self) -> None:
        """Stage 2."""
        aggregate(self.ledger, self.now)

    def cut(self) -> None:
        """Stage 3."""
        identity = self.pass_gate()
        cut.cut(
            self.ledger,
            identity=identity,
            closed_before=self.now - GRACE,
            past_max=self.times.past_max,
            brakes=BRAKES,
            clock=self.clock,
        )

    def claim(self) -> Worker | None:
        """The first half of stage 4: a worker with attempts committed and the mark raised, or None."""
        identity = self.pass_gate()
        if (lost := canary.lost_canaries(self.ledger, self.stripe, now=self.now)) is not None:
            gate.freeze(self.ledger, lost, now=self.now)
            raise LedgerFrozen(lost)
        old = {"now": self.now, "past_max": self.times.past_max}
        submit.queries.execute(self.ledger, "hold_entries_too_old", old)
        context = submit.SubmitContext(
            identity=identity,
            lease=Lease("flush", "worker", 1, self.now + HOUR),
            lease_ttl=HOUR,
            mark=self.mark,
            times=self.times,
            concurrency=1,
            canary_customer=self.stripe.canary_customer,
            event_names=(EVENT_NAME,),
            batch_size=BATCH_SIZE,
        )
        run = submit._Run(self.ledger, self.stripe, context, self.clock, lambda sent: None)
        claimed = run._claim()
        if not claimed.entries:
            return None
        worker = Worker(run, claimed)
        self.workers.append(worker)
        return worker

    def send(self, worker: Worker) -> None:
        """What a worker does with its claim, however late it wakes."""
        batch, until = worker.claim.entries, worker.claim.send_before
        worker.answers = LOOP.run_until_complete(send.send_batch(self.stripe, batch, 1, until))

    def record(self, worker: Worker) -> None:
        """What it does with the answers; then it is gone."""
        self.workers.remove(worker)
        if worker.answers is not None:
            worker.run._record(submit._Sent(worker.claim, worker.answers))

    def submit(self) -> None:
        """Stage 4 as a whole: every due entry once, then a canary."""
        while (worker := self.claim()) is not None:
            self.send(worker)
            self.record(worker)
        self.send_canary()

    def send_canary(self) -> None:
        """One unit that nobody is billed for."""
        identity, names = gate.read_identity(self.ledger), (EVENT_NAME,)
        sending = submit._send_canaries(
            self.ledger, self.stripe, identity, self.stripe.canary_customer, names, self.now
        )
        LOOP.run_until_complete(sending)

    def confirm(self) -> None:
        """Stage 5."""
        self.pass_gate()
        confirm.confirm(self.ledger, self.stripe, times=self.times, reads_max=READS_MAX, clock=self.clock)

    def seal(self, customer: str, starts_at: datetime, ends_at: datetime) -> None:
        """A period's invoice is final; what is not stated by now stays owed."""
        period = Period(customer, None, starts_at, ends_at)
        before = self.now - GRACE
        seal.seal(self.ledger, period, leave_owed=True, closed_before=before, actor="Ann", reason="final", now=self.now)

    def release_holds(self) -> None:
        """A person lets the cutter look again at what is held."""
        entries = self.ledger.entries.values()
        held = {w["window_id"] for w in self.ledger.windows.values() if w["hold_reason"]}
        held |= {e["window_id"] for e in entries if e["state"] == "rejected" and e["hold_reason"]}
        if held:
            hold.release_windows(self.ledger, held, actor="Ann", reason="looked at it", now=self.now)

    def snapshot(self) -> Row:
        """A backup of the ledger."""
        return self.ledger.copy()

    def restore(self, stored: Row) -> None:
        """The ledger as it was; workers lose their connection, but what they have claimed they may still send."""
        self.ledger = self.ledger.restored(stored)

    @property
    def frozen(self) -> bool:
        """Nothing is sent."""
        return self.ledger.identity["frozen_reason"] is not None

    @property
    def lost_attempts(self) -> bool:
        """The ledger has forgotten attempts, and nobody has recovered them yet."""
        mark = self.mark.read()
        return mark is not None and mark.attempt_id > max(self.ledger.attempts, default=0)

    @property
    def lost_something(self) -> bool:
        """It has forgotten attempts or canaries."""
        known = {c["slot_at"] for c in self.ledger.canaries.values()}
        canaries = {at for customer, at in self.stripe.counted if customer == self.stripe.canary_customer}
        return self.lost_attempts or bool(canaries - known)

    def wait_until_settled(self) -> bool:
        """Canaries after the freeze, hour by hour, until everything before it must show."""
        self.stripe.set_weather(Weather())
        for _ in range(RECOVERY_HOURS_MAX):
            self.send_canary()
            canary.look_for_canaries(self.ledger, self.stripe, now=self.now)
            try:
                adopt.require_settled(self.ledger, self.times, now=self.now)
                return True
            except GateClosed:
                self.pass_time(HOUR + MINUTE)
        return False

    def adopt(self) -> None:
        """A person brings the ledger to what Stripe shows."""
        adopt.adopt(
            self.ledger,
            self.stripe,
            catalogue=CATALOGUE,
            mark=self.mark,
            since=START - timedelta(days=5),
            actor="Ann",
            reason="a restore",
            clock=self.clock,
        )

    def release(self) -> None:
        """A second person lets it send again."""
        adopt.release(self.ledger, actor="Bob", reason="looked at the report", now=self.now)
