"""What goes wrong, kind by kind: each begins with workers in the middle of their life and ends with all repaired.

`kills.py` draws the kinds.  One that struck nobody, because the worker had ended before, does not count.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping
from datetime import timedelta
from random import Random
from typing import Any

from billing_pipeline.reconciliation.invariants import LEDGER_INVARIANTS
from billing_pipeline_tests.prove.kill_company import HOUR, Company
from billing_pipeline_tests.prove.kill_deck import Kind
from billing_pipeline_tests.prove.kill_worker import UNEXPECTED, Worker

CONTRACT = "stripe_billing_validate_contract_before_flush"
CONTRACT_SHARE = 0.3
"""It takes a third of a flush's time and decides on no money, so most workers go without."""
BATCH_SIZES = (3, 10, None)
PAST_THE_LEASE = timedelta(minutes=56)
"""Longer than the flush lease and an entry's, and shorter than a request may be late by the protocol's rules."""
PAUSES = (1, 1, 1, 1, 2, 3, 6, 21)
"""Hours until the next flush; at least the lease of one that was killed, at times past the safe time."""
BACKUP_AGE_MAX = timedelta(hours=72)
AIMED_SHARE = 0.4
AIMED_REQUEST_MAX = 6
BACKUP_SHARE = 0.2
CALM_SHARE = 0.2
"""Of the misfortunes, so many come after a flush that ends well."""
LIFE_SPREAD = 1.1
"""Lives differ: the last part of a longer one must not be safe."""
DAY = timedelta(hours=25)
SEVERAL = 3
FROZEN = 3
WHILE_FLUSHES_DIE = tuple(name for name in LEDGER_INVARIANTS if name != "v12_ambiguity_ends")
"""Ambiguity ends with a flush that reaches its proof; for days there may be none here.  The drain has it checked."""
TOGETHER_PAUSE = timedelta(minutes=3)
"""The claim of a worker that died has run out after it."""
TOGETHER_ROUNDS_MAX = 50
TOGETHER_SECONDS_MAX = 3600
TOGETHER: Mapping[str, Any] = {"batch_size": 50, "billing_summary_reads_max": 100, CONTRACT: False}
"""Small batches, so that all find work, and few proofs, which are for the drain."""


class Misfortunes:
    """Lets a company suffer, and counts."""

    def __init__(self, company: Company, chance: Random, *, keeps_backups: bool = False) -> None:
        self.struck: Counter[str] = Counter()
        self.missed = self.flushes = self.restores = self.restores_that_lost = self.undetected = 0
        self.wrong: list[str] = []
        self._company, self._chance, self._keeps_backups = company, chance, keeps_backups
        self._life = 0.0
        self._backup: tuple[timedelta, int] | None = None
        self._restored = False
        self._strike: Mapping[Kind, Callable[[], int]] = {
            Kind.SIGKILL: lambda: self._sigkill(1),
            Kind.SIGKILL_SEVERAL: lambda: self._sigkill(SEVERAL),
            Kind.SIGSTOP: self._sigstop,
            Kind.TERMINATE_BACKEND: self._terminate_backend,
            Kind.KILL_BACKEND: self._kill_backend,
            Kind.STOP_IMMEDIATELY: lambda: self._stop_server(self._company.server.stop_immediately),
            Kind.KILL_POSTMASTER: lambda: self._stop_server(self._company.server.kill_postmaster),
            Kind.READ_ONLY: self._read_only,
            Kind.RESTORE: self._restore,
            Kind.FULL_DISK: self._full_disk,
        }

    def suffer(self, kind: Kind) -> bool:
        """Usage, a flush and a misfortune, then hours pass; tells whether it struck."""
        if not self._life or self._chance.random() < CALM_SHARE:
            self._live_calmly()
        self._company.use(self._chance)
        struck = self._strike[kind]()
        self.struck[kind] += struck
        self.missed += not struck
        self._look_after_ledger()
        if self._keeps_backups and (self._backup is None or self._chance.random() < BACKUP_SHARE):
            self._back_up()
        self._company.clock.pass_time(self._chance.choice(PAUSES) * HOUR)
        return bool(struck)

    def drain(self, hours_max: int) -> None:
        """Hourly flushes without usage or misfortune, until nothing is unsettled or owed.

        A deleted row is found by the daily look at everything, so a day passes before the last of them.
        """
        day_passed = False
        for _ in range(hours_max):
            self._end(self._start())
            self._look_after_ledger()
            self._company.clock.pass_time(HOUR)
            if self.wrong or (day_passed and self._company.is_quiet()):
                return
            if self._company.is_quiet():
                self._company.clock.pass_time(DAY)
                day_passed = True

    def flush_together(self, workers: int, kills: int) -> None:
        """Flushes at once, each with a lease of its own, until nothing waits; meanwhile backends are terminated."""
        for number in range(TOGETHER_ROUNDS_MAX):
            seen = len(self._company.witness.seen)
            at_work = [self._start(lock_key=f"flush-{number}-{one}", **TOGETHER) for one in range(workers)]
            deadline = time.monotonic() + TOGETHER_SECONDS_MAX
            while any(worker.alive for worker in at_work) and time.monotonic() < deadline:
                time.sleep(self._chance.random() / 2)
                if self.struck.total() < kills and len(self._company.witness.seen) > seen:
                    self.struck[Kind.TERMINATE_BACKEND] += self._company.server.terminate_backend(self._chance)
            self._end_all(at_work)
            self._company.clock.pass_time(TOGETHER_PAUSE)
            if self.wrong or not self._company.open_entries():
                return
        self.wrong.append(f"entries still wait after {TOGETHER_ROUNDS_MAX} rounds of {workers} flushes")

    def _sigkill(self, workers: int) -> int:
        if workers == 1 and self._chance.random() < AIMED_SHARE:
            return self._sigkill_at_a_request(self._chance.randint(1, AIMED_REQUEST_MAX))
        at_work = self._start_several(workers)
        killed = 0
        for moment, worker in sorted(((self._moment(), worker) for worker in at_work), key=lambda pair: pair[0]):
            if worker.lives_for(moment):
                killed += worker.kill()
        for worker in at_work:
            self._end(worker, killed=True)
        return killed

    def _sigkill_at_a_request(self, number: int) -> int:
        """While its nth request is at Stripe: sending is a small part of a life, and the one that matters most."""
        seen = self._company.witness.seen
        goal = len(seen) + number
        worker = self._start()
        while len(seen) < goal and worker.alive:
            time.sleep(0.0005)
        killed = worker.kill()
        self._end(worker, killed=True)
        return int(killed)

    def _sigstop(self) -> int:
        stopped = self._start()
        if not stopped.lives_for(self._moment()):
            self._end(stopped)
            return 0
        stopped.send(signal.SIGSTOP)
        self._company.clock.pass_time(PAST_THE_LEASE)
        other = self._start()
        # It may wait for a lock that the stopped one holds, and then gets on only with it.
        other.lives_for(2 * self._life * self._chance.random())
        stopped.send(signal.SIGCONT)
        self._end(stopped)
        self._end(other)
        return 1

    def _terminate_backend(self) -> int:
        at_work = self._start_several(self._chance.choice((1, SEVERAL)))
        at_work[0].lives_for(self._moment())
        struck = self._company.server.terminate_backend(self._chance)
        self._end_all(at_work)
        return int(struck)

    def _kill_backend(self) -> int:
        at_work = self._start_several(self._chance.choice((1, SEVERAL)))
        at_work[0].lives_for(self._moment())
        struck = self._company.server.kill_backend(self._chance)
        self._end_all(at_work)
        return int(struck)

    def _stop_server(self, stop: Callable[[], None]) -> int:
        at_work = self._start_several(self._chance.choice((1, SEVERAL)))
        at_work[0].lives_for(self._moment())
        struck = any(worker.alive for worker in at_work)
        stop()
        self._company.server.start()
        self._end_all(at_work)
        return int(struck)

    def _read_only(self) -> int:
        before = self._start()
        struck = before.lives_for(self._moment())
        with self._company.server.read_only():
            self._end(before)
            seen = len(self._company.witness.seen)
            self._end(self._start())
            if len(self._company.witness.seen) > seen:
                self.wrong.append("a worker sent from a database that takes no writes")
        return int(struck)

    def _full_disk(self) -> int:
        with self._company.server.full_disk():
            self._company.clock.pass_time(2 * HOUR)
            return int(self._end(self._start()) == 1)

    def _restore(self) -> int:
        if self._backup is None or self._company.clock.shift - self._backup[0] > BACKUP_AGE_MAX:
            self._back_up()
        for _ in range(self._chance.randrange(3)):
            self._company.use(self._chance)
            self._company.clock.pass_time(HOUR)
            self._end(self._start())
        assert self._backup is not None
        company = self._company
        company.server.end_all_backends()
        company.read_witness()
        # What the mark names may have been sent; attempts beyond it died before their requests left.
        lost = company.mark() - self._backup[1]
        company.server.restore()
        company.replay()
        self.restores += 1
        self._restored = True
        if lost > 0:
            self.restores_that_lost += 1
            seen = len(company.witness.seen)
            code = self._end(self._start())
            if code != FROZEN or len(company.witness.seen) > seen or company.frozen_reason() is None:
                self.undetected += 1
        return 1

    def _look_after_ledger(self) -> None:
        """A ledger that froze after a restore is recovered; for anything else there is no reason."""
        reason = self._company.frozen_reason()
        if reason is not None and not self._restored:
            self.wrong.append(f"the ledger is frozen, though nothing was restored: {reason}")
            return
        if reason is not None:
            self._company.recover()
            self._backup, self._restored = None, False
        self.wrong += self._company.violations(WHILE_FLUSHES_DIE)

    def _live_calmly(self) -> None:
        """A flush that nothing happens to.  How long it takes is what the next kills are spread over."""
        if not self._life:
            # The very first one waits for the process that all are forked from.
            self._end(self._start())
        self._company.use(self._chance)
        began = time.monotonic()
        self._end(self._start())
        life = time.monotonic() - began
        self._life = (self._life + life) / 2 if self._life else life
        self._company.clock.pass_time(HOUR)

    def _back_up(self) -> None:
        self._company.server.back_up()
        self._backup = (self._company.clock.shift, self._company.attempts())

    def _moment(self) -> float:
        return self._chance.random() * self._life * LIFE_SPREAD

    def _start(self, **options: Any) -> Worker:
        self.flushes += 1
        usual = {
            "batch_size": self._chance.choice(BATCH_SIZES),
            CONTRACT: self._chance.random() < CONTRACT_SHARE,
        }
        return self._company.start_worker(**usual | options)

    def _start_several(self, workers: int) -> list[Worker]:
        """At once, and each with a lease of its own."""
        return [self._start(lock_key=f"flush-{number}") for number in range(workers)]

    def _end_all(self, workers: list[Worker]) -> None:
        for worker in workers:
            self._end(worker)

    def _end(self, worker: Worker, *, killed: bool = False) -> int:
        """Wait for a worker's end, which is never a traceback; returns its exit code."""
        try:
            code = worker.wait()
        except TimeoutError as exc:
            self.wrong.append(str(exc))
            return UNEXPECTED
        if code == UNEXPECTED or (code < 0 and not killed):
            self.wrong.append(f"a worker ended with {code}, see {self._company.log}: {self._company.last_words()}")
        return code
