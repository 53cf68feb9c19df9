"""One simulated company, hour by hour: usage comes in, a flush runs, things break, backups are put back.

The flush, the SQL and the decisions are the product's own, on a real PostgreSQL; only the network and the time are
simulated.  A crash stops everything the flush would still have done, at any of its statements, requests or marks.
"""

from __future__ import annotations

import gc
import logging
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Any, LiteralString

from billing_pipeline.database.connection import connect
from billing_pipeline.errors import BillingError, GateClosed, LedgerFrozen
from billing_pipeline.reconciliation.invariants import Violation, violations
from billing_pipeline.settings import load_settings
from billing_pipeline.stripe_api.catalogue import CANARY_EMAIL, set_up_catalogue
from billing_pipeline.stripe_api.client import make_client
from billing_pipeline.stripe_api.customers import create_customers
from billing_pipeline.stripe_api.meter_events import make_sink
from billing_pipeline.stripe_simulator.core import SimulatedStripe
from billing_pipeline.stripe_simulator.faults import FaultKind
from billing_pipeline.stripe_simulator.journal import MemoryJournal
from billing_pipeline.stripe_simulator.wire import Request
from billing_pipeline.usage.adopt import adopt, release, require_settled
from billing_pipeline.usage.aggregate import Scope
from billing_pipeline.usage.flow import UsageFlow
from billing_pipeline.usage.flush import flush
from billing_pipeline_tests.builders import copy_events, map_customer
from billing_pipeline_tests.fix_postgres import create_database, drop_database
from billing_pipeline_tests.fix_simulator import SimulatorClock
from billing_pipeline_tests.prove.crash import Crash, Death, dying
from billing_pipeline_tests.prove.direct import DirectHTTP
from billing_pipeline_tests.prove.judge import Verdict, judge
from billing_pipeline_tests.prove.plan import CALM, HOUR, MINUTE, Chances, Plan, identifiers_of
from billing_pipeline_tests.prove.product import Product

START = datetime(2026, 3, 1, tzinfo=UTC)
ORGANIZATIONS = ("acme", "globex", "initech")
RESTORE_AGE_MAX = 78 * HOUR
DRAIN_HOURS_MAX = 90
DAY = 24 * HOUR
CERTAIN_WITHIN_HOURS = 36
STEPS_MAX = 150
"""A crash is drawn among this many statements, requests and marks of a flush; past its end it does not happen."""


@dataclass
class Tally:
    """What a run came to."""

    hours: int = 0
    flushes: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    crashes: Counter[str] = field(default_factory=Counter)
    outages: int = 0
    restores: int = 0
    restores_that_lost: int = 0
    undetected: int = 0
    unwitnessed: int = 0
    requests: int = 0


@dataclass(frozen=True)
class Place:
    """Where worlds are made: a server's superuser URL and its migrated template."""

    server_url: str
    template: str


class World:
    """A ledger, a Stripe, a product that writes usage, and the people who mend things."""

    adopt = staticmethod(adopt)
    """What recovery does before a second person releases; one control leaves it out."""
    looks_at_everything = True
    """Whether a day ends with a look at every row; one control leaves it out."""

    def __init__(
        self,
        place: Place,
        name: str,
        state_dir: Path,
        seed: int,
        chances: Chances = Chances(),  # noqa: B008 # frozen
        **settings: Any,
    ) -> None:
        self.plan = Plan(seed, chances)
        self.time = SimulatorClock(START)
        self.core = SimulatedStripe(self.time, MemoryJournal(), lag=self.plan.lag, fault=self.plan.fault)
        self.tally = Tally()
        self._server_url, self._name = place.server_url, f"{place.template}_{name}"
        self._snapshot: tuple[datetime, int] | None = None
        self._requests_when_frozen = 0
        self._restored_at: list[datetime] = []
        self._hours_of_trouble: set[datetime] = set()
        self._down_until = self._outage_until = START
        self.url = create_database(place.server_url, self._name, place.template)
        self.settings = load_settings(
            database_url=self.url,
            billing_state_dir=state_dir,
            enable_billing=True,
            billing_mode="live",
            stripe_secret_key="sk_test_of_the_proof",
            stripe_api_base="http://simulated.invalid",
            stripe_meter_events_per_second=100_000,
            stripe_billing_validate_contract_before_flush=False,
            **settings,
        )
        self._open()
        with self.calm():
            set_up_catalogue(self.flow.stripe, self.settings, self.flow.catalogue)
            self.customers = create_customers(self.flow.stripe, self.settings, ORGANIZATIONS)
        for organization_id, customer in self.customers.items():
            map_customer(self.connection, organization_id, customer)
        self.product = Product(self.plan, self.time, self.customers, START)

    def close(self) -> None:
        """Leave nothing behind."""
        self._close()
        for name in (self._name, self._snapshot_name):
            drop_database(self._server_url, name)

    @contextmanager
    def calm(self) -> Iterator[None]:
        """Nothing goes wrong in this block."""
        plan = self.plan
        kept = plan.chances, plan.outage, plan.unreadable
        plan.chances, plan.outage, plan.unreadable = CALM, None, set()
        try:
            yield
        finally:
            plan.chances, plan.outage, plan.unreadable = kept

    def live_an_hour(self) -> None:
        """Usage, perhaps a disaster, perhaps a flush; then the hour is over."""
        hour = self.tally.hours
        chance = self.plan.random("hour", hour)
        self.product.record(self.connection, self.product.new_rows(chance))
        self.product.change_rows(self.connection, chance)
        committed_late = [
            row for row in self.product.new_rows(chance) if chance.random() < self.plan.chances.late_commit
        ]
        self._begin_trouble(chance)
        if chance.random() < self.plan.chances.snapshot:
            self._take_snapshot()
        if self._snapshot is not None and chance.random() < self.plan.chances.restore:
            self._restore()
        elif self.time() >= self._down_until and chance.random() >= self.plan.chances.idle_hour:
            self.flush(self._death(chance))
        # Their transaction began before the flush and commits after it.
        late = [row | {"recorded_at": row["recorded_at"] - 5 * MINUTE} for row in committed_late]
        self.product.record(self.connection, late)
        self.pass_time(HOUR)
        self.tally.hours += 1

    def pass_time(self, duration: timedelta) -> None:
        """The one clock of the run goes on."""
        self.time.advance(seconds=duration.total_seconds())

    def drain(self) -> None:
        """Without any more faults or usage, hourly flushes until nothing is unsettled or owed."""
        with self.calm():
            self.pass_time(HOUR)
            if self.looks_at_everything:
                # What was deleted is found by the daily look at everything only.
                self.flow.aggregate(Scope.FULL)
            for _ in range(DRAIN_HOURS_MAX):
                self.flush()
                self.pass_time(HOUR)
                self.tally.hours += 1
                if self.is_quiet():
                    return

    def is_quiet(self) -> bool:
        """Nothing of the ledger is under way."""
        due = "SELECT count(*) FROM usage_windows WHERE cut_due AND hold_reason IS NULL AND ends_at < %s"
        open_entries = "SELECT count(*) FROM ledger_entries WHERE NOT settled"
        return not self._number(due, self.time() - HOUR) and not self._number(open_entries)

    def has_failed(self) -> bool:
        """Whether something has happened that no drain can mend."""
        return bool(self.tally.undetected or self.tally.unwitnessed or self.verdict().excess)

    def complaints(self) -> tuple[str, ...]:
        """What is wrong besides the units that Stripe counted."""
        found = []
        if doubled := self.verdict().doubled:
            found.append(f"{doubled} minutes were counted more than once")
        if self.tally.undetected:
            found.append(f"{self.tally.undetected} restores were not noticed before the next send")
        if self.tally.unwitnessed:
            found.append(f"{self.tally.unwitnessed} meter events were sent before their attempts were committed")
        if not self.is_quiet():
            found.append("the ledger never came to rest")
        elif (hours := self.hours_to_certainty()) > CERTAIN_WITHIN_HOURS:
            found.append(f"an entry was in doubt for {hours} hours, not counting outages")
        return (*found, *(f"{v.invariant}: {v.offender}: {v.detail}" for v in self.violations()))

    def verdict(self) -> Verdict:
        """What the judge says now."""
        with self.calm():
            canaries = self.flow.stripe.v1.customers.list({"email": CANARY_EMAIL}).data
        nobody = {canary.id for canary in canaries}
        return judge(self.product.truth(), self.core.journal.read(), nobody, self.product.highest)

    def flush(self, death: Death | None = None) -> None:
        """One flush, which may die."""
        self.tally.flushes += 1
        self.core.deliver_due()
        death = death or Death(None)
        try:
            with dying(death):
                flush(self.flow)
        except (Crash, BaseExceptionGroup) as exc:
            if isinstance(exc, BaseExceptionGroup) and exc.split(Crash)[1] is not None:
                raise
            self.tally.crashes[str(death.died_at)] += 1
            # A process that is gone gives nothing back: no lease, no transaction.
            self._transport.hang_up()
            self._reopen()
        except LedgerFrozen:
            self.tally.refused["frozen"] += 1
            self._requests_when_frozen = self.tally.requests
            self._recover()
        except BillingError as exc:
            self.tally.refused[type(exc).__name__] += 1

    def _death(self, chance: Random) -> Death:
        if chance.random() >= self.plan.chances.crash:
            return Death(None)
        return Death(chance.randrange(STEPS_MAX), unheard=chance.random() < 0.5)

    def _begin_trouble(self, chance: Random) -> None:
        now = self.time()
        if chance.random() < self.plan.chances.downtime:
            self._down_until = now + chance.randrange(5, 41) * HOUR
        for kind, likely in (
            (FaultKind.LOSE_REQUEST, self.plan.chances.outage),
            (FaultKind.KEY_EXPIRED_401, self.plan.chances.refused_key),
        ):
            if chance.random() < likely:
                self.plan.outage = kind
                self._outage_until = now + chance.randrange(1, 41) * HOUR
                self.tally.outages += 1
                self.plan.unreadable = (
                    set(self.customers.values()) if chance.random() < self.plan.chances.blind else set()
                )
        if now >= self._outage_until:
            self.plan.outage, self.plan.unreadable = None, set()
        if self.plan.outage is not None or now < self._down_until:
            self._hours_of_trouble.add(now)

    def _take_snapshot(self) -> None:
        self._close()
        drop_database(self._server_url, self._snapshot_name)
        create_database(self._server_url, self._snapshot_name, self._name)
        self._open()
        self._snapshot = (self.time(), self.attempts())

    def _restore(self) -> None:
        """Put the backup back; the product then replays its own rows, and the ledger must notice before it sends."""
        assert self._snapshot is not None
        taken_at, attempts_then = self._snapshot
        if self.time() - taken_at > RESTORE_AGE_MAX:
            return
        # What the mark names may have been sent; attempts beyond it died before their requests left.
        mark = self.flow.mark.read()
        lost = 0 if mark is None else mark.attempt_id - attempts_then
        self._close()
        drop_database(self._server_url, self._name)
        create_database(self._server_url, self._name, self._snapshot_name)
        self._open()
        self.connection.execute("TRUNCATE public.billable_events")
        copy_events(self.connection, self.product.rows.values())
        # Recorded anew, so that the restored cutoff does not hide them.
        self.connection.execute("UPDATE public.billable_events SET recorded_at = %s", (self.time(),))
        self.tally.restores += 1
        self._restored_at.append(self.time())
        requests, frozen = self.tally.requests, self.tally.refused["frozen"]
        if lost > 0:
            self.tally.restores_that_lost += 1
            with self.calm():
                self._try_to_flush_restored()
            if self._requests_when_frozen > requests or self.tally.refused["frozen"] == frozen:
                self.tally.undetected += 1

    def _try_to_flush_restored(self) -> None:
        # The dead timeline's lease came back with the backup; it runs out like any other.
        self.connection.execute("DELETE FROM flush_leases")
        self.flush()

    def _recover(self) -> None:
        """Two people follow the operations guide."""
        with self.calm():
            for _ in range(DRAIN_HOURS_MAX):
                self.core.deliver_due()
                self.flow.send_canaries_while_frozen()
                try:
                    require_settled(self.connection, self.settings.protocol_times, now=self.flow.clock())
                    break
                except GateClosed:
                    self.pass_time(HOUR)
                    self.tally.hours += 1
            self.adopt(
                self.connection,
                self.flow.summaries,
                catalogue=self.flow.catalogue,
                mark=self.flow.mark,
                since=max(START, self.time() - 30 * 24 * HOUR),
                actor="Ann",
                reason="a restore",
                clock=self.flow.clock,
            )
            release(self.connection, actor="Bob", reason="looked at the report", now=self.flow.clock())
            self.flow.aggregate(Scope.FULL)

    def violations(self) -> list[Violation]:
        """Offenders of the ledger's invariants."""
        mark = self.flow.mark.read()
        attempt_id = mark.attempt_id if mark else 0
        return violations(self.connection, settings=self.settings, mark=attempt_id, now=self.time())

    def hours_to_certainty(self) -> int:
        """The longest that anything was in doubt: from an entry's first attempt to the answer or the evidence that
        settled it, in hours in which somebody flushed and Stripe could be reached.
        """
        spans = self.connection.execute(
            "SELECT min(a.started_at), least(min(a.finished_at) FILTER (WHERE a.outcome IN ('ok', 'duplicate')), "
            "(SELECT min(v.observed_at) FROM evidence v WHERE v.entry_id = a.entry_id)) "
            "FROM attempts a GROUP BY a.entry_id"
        ).fetchall()
        longest = 0
        for attempted, end in spans:
            # A restore brings a doubt back that had been settled.
            start = max([attempted, *(at for at in self._restored_at if at <= end)])
            trouble = sum(start <= hour < end for hour in self._hours_of_trouble) if end - start > DAY else 0
            longest = max(longest, (end - start) // HOUR - trouble)
        return longest

    def cutoff(self) -> datetime | None:
        """The last aggregation's."""
        row = self.connection.execute("SELECT max(cutoff_at) FROM aggregations").fetchone()
        return row[0] if row else None

    @property
    def _snapshot_name(self) -> str:
        return f"{self._name}_snapshot"

    def _open(self) -> None:
        self._transport = DirectHTTP(self.core, self._witness)
        self._context = ExitStack()
        self.connection = self._context.enter_context(connect(self.url))
        self._other_connection = self._context.enter_context(connect(self.url))
        self.flow = UsageFlow(self.connection, self.url, self.settings, holder=f"flush-{self.tally.flushes}")
        self.flow.clock = self.time
        self.flow.stripe = make_client(self.settings, self._transport)
        self.flow.new_sink = lambda: make_sink(self.settings, self._transport)

    def _close(self) -> None:
        self._context.close()

    def _reopen(self) -> None:
        self._close()
        self._open()

    def _witness(self, request: Request) -> None:
        """The write-ahead rule, seen by another connection: what is sent has its attempt committed."""
        if identifiers := sorted(identifiers_of(request)):
            self.tally.requests += 1
            row = self._other_connection.execute(
                "SELECT count(*) FROM unnest(%s::text[]) AS sent (identifier) WHERE NOT EXISTS "
                "(SELECT FROM attempts a JOIN ledger_entries e USING (entry_id) "
                "WHERE e.identifier = sent.identifier AND a.outcome IS NULL) "
                "AND NOT EXISTS (SELECT FROM canaries c WHERE c.identifier = sent.identifier)",
                (identifiers,),
            ).fetchone()
            assert row is not None
            self.tally.unwitnessed += row[0]

    def attempts(self) -> int:
        """The highest attempt the ledger knows."""
        return self._number("SELECT coalesce(max(attempt_id), 0) FROM attempts")

    def sent(self) -> int:
        """Meter events that Stripe has judged, the canaries among them."""
        return sum(record["kind"].startswith("meter_event") for record in self.core.journal.read())

    def _number(self, statement: LiteralString, *params: object) -> int:
        row = self.connection.execute(statement, params).fetchone()
        assert row is not None
        return int(row[0])


@contextmanager
def opened_world(place: Place, name: str, seed: int, chances: Chances, **settings: Any) -> Iterator[World]:
    """A fresh world, without a log, and nothing left of it."""
    with tempfile.TemporaryDirectory(prefix="billing-prove-") as folder, ExitStack() as kept:
        kept.callback(logging.disable, logging.root.manager.disable)
        logging.disable(logging.ERROR)
        kept.callback(gc.collect)  # asyncio logs what a crash left unawaited when it is collected
        world = World(place, name, Path(folder), seed, chances, **settings)
        try:
            yield world
        finally:
            world.close()
