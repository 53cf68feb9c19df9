"""What happens when: every choice of a run is a pure function of its seed, so a run can be run again.

Asked by the world for each simulated hour and by the simulator for each call.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from datetime import timedelta
from hashlib import blake2b
from random import Random

from billing_pipeline.stripe_simulator.faults import NOT_EXECUTED, Fault, FaultKind
from billing_pipeline.stripe_simulator.journal import Record
from billing_pipeline.stripe_simulator.wire import Channel, Request

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
STREAM = "/v2/billing/meter_event_stream"

CALL_FAULTS = (
    FaultKind.LOSE_REQUEST,
    FaultKind.LOSE_ANSWER,
    FaultKind.ERROR_500_BEFORE,
    FaultKind.ERROR_500_AFTER,
    FaultKind.RATE_LIMITED_429,
    FaultKind.CONFLICT_409,
    FaultKind.HTML_200,
    FaultKind.TRUNCATED_JSON,
    FaultKind.RESET_MID_BODY,
    FaultKind.DUPLICATED_DELIVERY,
    FaultKind.LATE_DELIVERY,
)
"""Slow drips are left out: simulated time does not wait.  A silent drop and a refused key have chances of their own."""
ONLY_OF = {Channel.V1: FaultKind.WRONG_MODE, Channel.STREAM: FaultKind.SESSION_EXPIRED_401}
"""The stream tells no mode, and v1 has no session."""
KNOWN = ("fresh", "in doubt", "counted")
"""What became of an entry's earlier attempts: there were none, nobody could know, or Stripe has counted it."""


def possible_cells() -> set[tuple[str, str]]:
    """Every kind of fault in every state of the entry that it can meet."""
    kinds = {*CALL_FAULTS, *ONLY_OF.values(), FaultKind.ASYNC_SILENT_DROP, FaultKind.KEY_EXPIRED_401}
    # Nothing is dropped that was counted before: a repeat is refused as a duplicate.
    return {(str(kind), known) for kind in kinds for known in KNOWN} - {(str(FaultKind.ASYNC_SILENT_DROP), "counted")}


@dataclass(frozen=True, slots=True)
class Chances:
    """How likely each misfortune is."""

    call_fault: float = 0.25  # of a meter event's call
    read_fault: float = 0.002  # of any other call
    silent_drop: float = 0.003  # accepted and never counted
    late_delivery: timedelta = 59 * MINUTE  # at the most
    late_row: float = 0.10
    late_commit: float = 0.10  # recorded before a flush, seen only after it
    changed_row: float = 0.05
    deleted_row: float = 0.02
    idle_hour: float = 0.40  # nobody flushes
    downtime: float = 0.003  # nobody flushes for 5 to 40 hours
    outage: float = 0.008  # every meter event is lost, executed unheard, or late, for 1 to 40 hours
    blind: float = 0.3  # of outages: the customers' summaries cannot be read either
    refused_key: float = 0.003  # no meter event is taken for 1 to 40 hours
    crash: float = 0.25
    snapshot: float = 0.03
    restore: float = 0.004


CALM = Chances(
    call_fault=0,
    read_fault=0,
    silent_drop=0,
    late_row=0,
    late_commit=0,
    changed_row=0,
    deleted_row=0,
    idle_hour=0,
    downtime=0,
    outage=0,
    blind=0,
    refused_key=0,
    crash=0,
    snapshot=0,
    restore=0,
)
"""For the drain at the end: nothing goes wrong any more."""


class Plan:
    """The faults of one run, by call, and the outages that the world declares."""

    def __init__(self, seed: int, chances: Chances) -> None:
        self.seed = seed
        self.chances = chances
        self.outage: FaultKind | None = None
        """What spoils meter events for hours: `LOSE_REQUEST` with lost answers and late ones, or `KEY_EXPIRED_401`."""
        self.unreadable: set[str] = set()
        """Customers whose summaries cannot be read."""
        self.forced: FaultKind | None = None
        """What every meter event's call meets, instead of chance."""
        self.cells: Counter[tuple[str, str]] = Counter()
        self._in_doubt: set[str] = set()
        self._counted: set[str] = set()

    def random(self, *place: object) -> Random:
        """Chance for one place of the run, the same whenever it is asked."""
        return Random("/".join(map(str, (self.seed, *place))))

    def fault(self, number: int, request: Request) -> Fault | None:
        """The simulator's seam."""
        identifiers = identifiers_of(request)
        fault = self._chosen(self.random("call", number), request, sends=bool(identifiers))
        if fault is not None and identifiers:
            self.cells[(str(fault.kind), self._known(identifiers))] += 1
            if fault.kind not in NOT_EXECUTED or fault.kind is FaultKind.LOSE_REQUEST:
                self._in_doubt.update(identifiers)
        return fault

    def lag(self, record: Record) -> timedelta:
        """How long a meter event stays out of the summaries: up to six hours, mostly minutes."""
        self._counted.add(record["identifier"])
        if self.chances == CALM:
            return timedelta(0)
        share = int.from_bytes(blake2b(f"{self.seed}{record['identifier']}".encode(), digest_size=4).digest()) / 2**32
        return timedelta(hours=6) * share**3

    def _known(self, identifiers: set[str]) -> str:
        if identifiers & self._counted:
            return "counted"
        return "in doubt" if identifiers & self._in_doubt else "fresh"

    def _chosen(self, chance: Random, request: Request, *, sends: bool) -> Fault | None:
        if request.path.endswith("/event_summaries") and request.params.get("customer") in self.unreadable:
            return Fault(FaultKind.ERROR_500_BEFORE)
        if not sends:
            return Fault(chance.choice(CALL_FAULTS[:4])) if chance.random() < self.chances.read_fault else None
        if self.forced is not None:
            return Fault(self.forced, delay=59 * MINUTE)
        if self.outage is FaultKind.KEY_EXPIRED_401:
            return Fault(self.outage)
        if self.outage is not None:
            kinds = (self.outage, FaultKind.LOSE_ANSWER, FaultKind.LATE_DELIVERY)
            return Fault(chance.choice(kinds), delay=chance.random() * self.chances.late_delivery)
        if chance.random() < self.chances.silent_drop:
            return Fault(FaultKind.ASYNC_SILENT_DROP)
        if chance.random() < self.chances.call_fault:
            kinds = (*CALL_FAULTS, ONLY_OF[Channel.STREAM if request.path == STREAM else Channel.V1])
            return Fault(chance.choice(kinds), delay=chance.random() * self.chances.late_delivery)
        return None


def identifiers_of(request: Request) -> set[str]:
    """The meter events that a request would count."""
    if request.path == "/v1/billing/meter_events":
        return {str(request.params.get("identifier"))}
    if request.path == STREAM:
        return {str(event["identifier"]) for event in request.params.get("events", ())}
    return set()
