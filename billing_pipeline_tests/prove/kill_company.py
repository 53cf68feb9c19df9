"""The company behind the kills: its usage, its ledger on a server of its own, its Stripe, and its two operators.

`kills.py` decides what goes wrong; here is everything that goes on meanwhile, and what must be right in the end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from hashlib import blake2b
from itertools import count
from pathlib import Path
from random import Random
from typing import Any

from billing_pipeline.database.connection import connect
from billing_pipeline.errors import GateClosed
from billing_pipeline.reconciliation.invariants import LEDGER_INVARIANTS, violations
from billing_pipeline.settings import load_settings
from billing_pipeline.stripe_api.catalogue import CANARY_EMAIL, set_up_catalogue
from billing_pipeline.stripe_api.customers import create_customers
from billing_pipeline.stripe_simulator.journal import FileJournal, Record
from billing_pipeline.usage.adopt import DEFAULT_SPAN, adopt, release, require_settled
from billing_pipeline.usage.aggregate import Scope
from billing_pipeline.usage.flow import UsageFlow
from billing_pipeline_tests.builders import billable_event, copy_events, map_customer
from billing_pipeline_tests.fix_simulator import make_core, running_simulator
from billing_pipeline_tests.prove.judge import Verdict, judge, truth
from billing_pipeline_tests.prove.kill_clock import MovedClock
from billing_pipeline_tests.prove.kill_server import KillServer
from billing_pipeline_tests.prove.kill_worker import Job, Worker, nothing
from billing_pipeline_tests.prove.witness import Witness

HOUR = timedelta(hours=1)
EVENT_TYPES = ("prompt_tokens", "api_request")
COUNTED = {"api_request"}
LATE_MAX = 72 * HOUR
LAG_MAX = timedelta(minutes=90)
PROCESSING = timedelta(milliseconds=3)
"""That a request takes at Stripe, so that kills meet requests under way."""
QUIET_HOURS_MAX = 120


class Company:
    """Organizations with steady usage; one clock for the workers and for Stripe."""

    def __init__(
        self,
        folder: Path,
        seed: int,
        organizations: int,
        stack: ExitStack,
        before: Callable[[], None] = nothing,
        *,
        lag_max: timedelta = LAG_MAX,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.seed, self.log, self._lag_max = seed, folder / "workers.log", lag_max
        self.clock = MovedClock(folder / "clock")
        stack.callback(self.clock.close)
        self.server = KillServer(folder / "state")
        stack.callback(self.server.close)
        self.witness = Witness(self.clock)
        self._journal = FileJournal(folder / "journal.jsonl")
        stack.callback(self._journal.close)
        core = make_core(self.clock, self._journal, lag=self._lag, fault=self.witness.at_the_door)
        self._simulator = stack.enter_context(running_simulator(core, processing=PROCESSING))
        given: dict[str, Any] = {
            "database_url": self.server.url,
            "billing_state_dir": folder / "state",
            "enable_billing": True,
            "billing_mode": "live",
            "stripe_secret_key": self._simulator.key,
            "stripe_api_base": self._simulator.url,
            "stripe_meter_events_per_second": 100_000,
            "stripe_max_concurrency": 4,
        }
        self.settings = load_settings(**given)
        self._job = Job(self.server.url, given, folder / "clock", self.log, before)
        self.rows: dict[str, dict[str, Any]] = {}
        self._numbers = count()
        names = [f"organization-{number}" for number in range(organizations)]
        with self.flow() as flow:
            set_up_catalogue(flow.stripe, self.settings, flow.catalogue)
            self.customers = create_customers(flow.stripe, self.settings, names)
            for name, customer in self.customers.items():
                map_customer(flow.connection, name, customer)

    def start_worker(self, lock_key: str = "usage-flush", batch_size: int | None = None, **settings: Any) -> Worker:
        """One flush in a process of its own; with another lock key it shares no lease."""
        given = self._job.settings | {"stripe_usage_flush_lock_key": lock_key} | settings
        job = self._job
        return Worker(Job(job.database_url, given, job.clock, job.log, job.before, batch_size))

    def last_words(self) -> str:
        """The last line that a worker wrote."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return lines[-1] if lines else "it said nothing"

    def use(self, chance: Random) -> None:
        """An hour's usage of everybody: some rows late, now and then one changed or deleted."""
        now = self.clock()
        new = [
            billable_event(
                event_id=f"{self.seed}-{next(self._numbers)}",
                organization_id=name,
                event_type=chance.choice(EVENT_TYPES),
                quantity=chance.randrange(1, 10**6),
                occurred_at=now - chance.random() * (LATE_MAX if chance.random() < 0.2 else HOUR),
                recorded_at=now,
            )
            for name in self.customers
            for _ in range(chance.randrange(1, 4))
        ]
        self.record(new)
        young = [row for row in self.rows.values() if row["occurred_at"] > now - 48 * HOUR]
        with connect(self.server.url) as connection:
            if chance.random() < 0.3:
                row = chance.choice(young)
                row |= {"quantity": chance.randrange(1, 10**6), "recorded_at": now}
                change = "UPDATE public.billable_events SET quantity = %s, recorded_at = %s WHERE event_id = %s"
                connection.execute(change, (row["quantity"], now, row["event_id"]))
            if chance.random() < 0.1:
                gone = chance.choice(young)["event_id"]
                del self.rows[gone]
                connection.execute("DELETE FROM public.billable_events WHERE event_id = %s", (gone,))

    def record(self, rows: list[dict[str, Any]]) -> None:
        """The product writes rows; the judge remembers them."""
        with connect(self.server.url) as connection:
            copy_events(connection, rows)
        self.rows |= {row["event_id"]: row for row in rows}

    def replay(self) -> None:
        """The source came back with the ledger's backup, so the product writes again what it knows."""
        with connect(self.server.url) as connection:
            connection.execute("TRUNCATE public.billable_events")
            # Recorded anew, so that the restored cutoff does not hide them.
            copy_events(connection, [row | {"recorded_at": self.clock()} for row in self.rows.values()])

    def attempts(self) -> int:
        """The highest attempt the ledger knows."""
        return self._number("SELECT coalesce(max(attempt_id), 0) FROM attempts")

    def mark(self) -> int:
        """The highest attempt that may have been sent, from outside the database."""
        with self.flow() as flow:
            stored = flow.mark.read()
        return stored.attempt_id if stored else 0

    def frozen_reason(self) -> str | None:
        """Why nothing is sent, or None."""
        with connect(self.server.url) as connection:
            row = connection.execute("SELECT frozen_reason FROM ledger_identity").fetchone()
        return row[0] if row else None

    def open_entries(self) -> int:
        """Entries that wait for being sent, or for being sent again."""
        return self._number("SELECT count(*) FROM open_entries WHERE retry_at IS DISTINCT FROM 'infinity'")

    def is_quiet(self) -> bool:
        """Nothing of the ledger is under way."""
        due = "SELECT count(*) FROM usage_windows WHERE cut_due AND hold_reason IS NULL AND ends_at < %s"
        unsettled = "SELECT count(*) FROM ledger_entries WHERE NOT settled"
        return not self._number(due, self.clock() - HOUR) and not self._number(unsettled)

    def recover(self) -> None:
        """Two people follow docs/architecture.md, "After a restore"."""
        with self.flow() as flow:
            for _ in range(QUIET_HOURS_MAX):
                flow.send_canaries_while_frozen()
                try:
                    require_settled(flow.connection, self.settings.protocol_times, now=flow.clock())
                    break
                except GateClosed:
                    self.clock.pass_time(HOUR)
            adopt(
                flow.connection,
                flow.summaries,
                catalogue=flow.catalogue,
                mark=flow.mark,
                since=flow.clock() - DEFAULT_SPAN,
                actor="Ann",
                reason="a restore",
                clock=flow.clock,
            )
            release(flow.connection, actor="Bob", reason="looked at the report", now=flow.clock())
            flow.aggregate(Scope.FULL)
            flow.give_lease_back()

    def read_witness(self) -> None:
        """Remember what the ledger says of its attempts, before it may be gone."""
        with connect(self.server.url) as connection:
            self.witness.read_ledger(connection)

    def violations(self, invariants: tuple[str, ...] = LEDGER_INVARIANTS) -> list[str]:
        """Offenders of the ledger's invariants."""
        with self.flow() as flow:
            mark = flow.mark.read()
            attempt_id = mark.attempt_id if mark else 0
            now = flow.clock()
            found = violations(flow.connection, settings=self.settings, mark=attempt_id, now=now, invariants=invariants)
        return [f"{violation.invariant}: {violation.offender}: {violation.detail}" for violation in found]

    def verdict(self) -> Verdict:
        """What the judge says now, from the rows written and the simulator's journal."""
        canaries = self._simulator.client().v1.customers.list({"email": CANARY_EMAIL}).data
        expected = truth(self.rows.values(), self.customers, COUNTED)
        return judge(expected, self._journal.read(), {canary.id for canary in canaries})

    @contextmanager
    def flow(self) -> Iterator[UsageFlow]:
        """A flow in this process, for what people do."""
        with connect(self.server.url) as connection:
            flow = UsageFlow(connection, self.server.url, self.settings, holder="a person")
            of_database = flow.clock
            flow.clock = lambda: of_database() + self.clock.shift
            yield flow

    def _lag(self, record: Record) -> timedelta:
        share = int.from_bytes(blake2b(record["identifier"].encode(), digest_size=4).digest()) / 2**32
        return self._lag_max * share

    def _number(self, question: Any, *params: object) -> int:
        with connect(self.server.url) as connection:
            row = connection.execute(question, params).fetchone()
        assert row is not None
        return int(row[0])
