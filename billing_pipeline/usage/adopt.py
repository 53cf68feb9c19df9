"""Recovery after a restore: adopt what Stripe shows, then let the cutter state the difference.

Run by a person on a frozen ledger.  Nothing is resent: every minute in which ledger and Stripe differ is settled by
what Stripe shows, the epoch is raised so that no identifier of the lost timeline is used again, and a second person
releases the ledger.  Running it again adopts nothing twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol

from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.domain.adoption import EntryAtMinute, Step, decide_adoption
from billing_pipeline.domain.catalogue import Catalogue
from billing_pipeline.domain.identifiers import adoption_identifier
from billing_pipeline.domain.protocol import ProtocolTimes
from billing_pipeline.domain.windows import HOUR, MINUTE, hour_of
from billing_pipeline.errors import GateClosed
from billing_pipeline.usage.gate import Identity, read_identity, rebind_database, record_operation
from billing_pipeline.usage.mark import HighWaterMark, Mark
from billing_pipeline.usage.read_again import note_lane


class Reader(Protocol):
    """What recovery needs of Stripe's summaries."""

    def hours(self, event_name: str, customer: str, start: datetime, end: datetime) -> dict[datetime, int]:
        """Units per UTC hour; hours without usage are absent."""
        ...

    def minute(self, event_name: str, customer: str, minute: datetime) -> int:
        """Units in one minute."""
        ...


@dataclass(frozen=True, slots=True)
class Adoption:
    """One minute that was not as the ledger had it."""

    stripe_customer_id: str
    event_name: str
    slot_at: datetime
    step: Step
    ledger_units: int
    stripe_units: int


@dataclass(frozen=True, slots=True)
class AdoptionReport:
    """The differences between the restored ledger and Stripe, minute by minute, and the new epoch."""

    epoch: int
    since: datetime
    adoptions: tuple[Adoption, ...]

    @property
    def conflicts(self) -> tuple[Adoption, ...]:
        """Minutes that a person must look into."""
        return tuple(adoption for adoption in self.adoptions if adoption.step is Step.CONFLICT)

    def count(self, *steps: Step) -> int:
        """How many minutes were settled by these steps."""
        return sum(adoption.step in steps for adoption in self.adoptions)


def require_settled(connection: Connection[Any], times: ProtocolTimes, *, now: datetime) -> None:
    """Raises `GateClosed` until everything sent before the freeze must show, by the clock and by the canaries."""
    identity = read_identity(connection)
    if identity.frozen_at is None:
        raise GateClosed("The ledger is not frozen; there is nothing to recover from.")
    ready_at = identity.frozen_at + times.absence_after
    if now < ready_at:
        raise GateClosed(
            f"Requests from before the freeze may still turn up at Stripe until {ready_at:%Y-%m-%d %H:%M} UTC. "
            "Run this again then."
        )
    blind = [
        row["event_name"]
        for row in queries.fetch_dicts(connection, "canary_lag")
        if row["visible_sent_at"] is None or row["visible_sent_at"] <= identity.frozen_at
    ]
    if blind:
        raise GateClosed(
            f"No canary sent after the freeze shows yet for {', '.join(blind)}; Stripe's summaries lag. Run this again."
        )


def adopt(
    connection: Connection[Any],
    reader: Reader,
    *,
    catalogue: Catalogue,
    mark: HighWaterMark,
    since: datetime,
    actor: str,
    reason: str,
    clock: Callable[[], datetime],
) -> AdoptionReport:
    """Bring the ledger to what Stripe shows from `since` on, raise the epoch, and leave the ledger frozen."""
    start, end = hour_of(since), hour_of(clock()) + HOUR
    meters = {meter.event_name: meter.name for meter in catalogue.meters}
    adoptions: list[Adoption] = []
    for lane in queries.fetch_dicts(connection, "lanes_to_adopt", {"event_names": list(meters)}):
        customer, event_name = lane["stripe_customer_id"], lane["event_name"]
        hours = _differing_hours(connection, reader, customer, event_name, start, end)
        found = list(_look_closely(connection, reader, customer, event_name, hours))
        _settle(connection, found, meters[event_name], read_identity(connection), clock())
        adoptions += [adoption for adoption, _ in found]
        if found:
            note_lane(connection, (customer, event_name), max(a.slot_at for a, _ in found), now=clock())
    _adopt_canaries(connection, reader, start, end, clock())
    with connection.transaction():
        stored = mark.read()
        passed = {"passed": stored.epoch if stored else 0}
        epoch = queries.fetch_dicts(connection, "raise_epoch", passed)[0]["epoch"]
        queries.fetch_dicts(connection, "pass_attempt_numbers", {"attempt_id": stored.attempt_id if stored else 0})
        rebind_database(connection)
        report = AdoptionReport(epoch, start, tuple(adoptions))
        record_operation(connection, "adopt", actor=actor, reason=reason, now=clock(), details=_details(report))
    identity = read_identity(connection)
    latest = queries.fetch_dicts(connection, "latest_attempt")[0]["attempt_id"]
    mark.replace_with(Mark(str(identity.ledger_id), latest, identity.epoch))
    return report


def release(connection: Connection[Any], *, actor: str, reason: str, now: datetime) -> None:
    """Let the ledger send again.  Raises `GateClosed` unless somebody else has adopted since the freeze."""
    identity = read_identity(connection)
    if identity.frozen_at is None:
        raise GateClosed("The ledger is not frozen.")
    adopted = queries.fetch_dicts(connection, "latest_adoption", {"since": identity.frozen_at})
    if not adopted:
        raise GateClosed("Nobody has adopted what Stripe shows since the freeze. Run `billing-pipeline ledger adopt`.")
    if adopted[0]["actor"].strip().casefold() == actor.strip().casefold():
        raise GateClosed(f"{actor} has adopted; a second person must release.")
    with connection.transaction():
        queries.execute(connection, "release_ledger")
        record_operation(connection, "release", actor=actor, reason=reason, now=now)


def _differing_hours(
    connection: Connection[Any], reader: Reader, customer: str, event_name: str, start: datetime, end: datetime
) -> list[datetime]:
    shown = reader.hours(event_name, customer, start, end)
    params = {"stripe_customer_id": customer, "event_name": event_name, "start": start, "end": end}
    ledger = {row["hour_at"]: row for row in queries.fetch_dicts(connection, "settled_hours", params)}
    return sorted(
        hour
        for hour in shown.keys() | ledger.keys()
        if hour not in ledger or ledger[hour]["unsettled"] or ledger[hour]["settled"] != shown.get(hour, 0)
    )


def _look_closely(
    connection: Connection[Any], reader: Reader, customer: str, event_name: str, hours: Iterable[datetime]
) -> Iterator[tuple[Adoption, EntryAtMinute | None]]:
    lane = {"stripe_customer_id": customer, "event_name": event_name}
    seals = queries.fetch_dicts(connection, "seals_of_lane", lane)
    for hour in hours:
        params = lane | {"start": hour, "end": hour + HOUR}
        entries = {
            entry.slot_at: entry for entry in queries.fetch(connection, "entries_by_minute", EntryAtMinute, params)
        }
        for minute in (hour + number * MINUTE for number in range(60)):
            entry = entries.get(minute)
            shown = reader.minute(event_name, customer, minute)
            sealed = any(seal["starts_at"] <= minute < seal["ends_at"] for seal in seals)
            step = decide_adoption(entry, shown, sealed=sealed)
            if step is not Step.KEEP:
                yield Adoption(customer, event_name, minute, step, entry.value if entry else 0, shown), entry


def _settle(
    connection: Connection[Any],
    found: list[tuple[Adoption, EntryAtMinute | None]],
    meter: str,
    identity: Identity,
    now: datetime,
) -> None:
    def entry_ids(*steps: Step) -> list[int]:
        return [entry.entry_id for adoption, entry in found if entry is not None and adoption.step in steps]

    adopted = [adoption for adoption, _ in found if adoption.step in (Step.ADOPT, Step.REPLACE_AND_ADOPT)]
    with connection.transaction():
        queries.execute(
            connection, "settle_by_adoption", {"entry_ids": entry_ids(Step.CONFIRM), "state": "confirmed", "now": now}
        )
        queries.execute(
            connection,
            "settle_by_adoption",
            {"entry_ids": entry_ids(Step.REPLACE, Step.REPLACE_AND_ADOPT), "state": "replaced", "now": now},
        )
        for adoption in adopted:
            params = {
                "customer": adoption.stripe_customer_id,
                "event_name": adoption.event_name,
                "meter": meter,
                "slot_at": adoption.slot_at,
                "hour_at": hour_of(adoption.slot_at),
                "value": adoption.stripe_units,
                "epoch": identity.epoch,
                "identifier": adoption_identifier(
                    str(identity.ledger_id), adoption.event_name, adoption.stripe_customer_id, adoption.slot_at
                ),
                "now": now,
            }
            queries.execute(connection, "ensure_window_for_adoption", params)
            queries.execute(connection, "insert_adopted_entry", params)


def _adopt_canaries(connection: Connection[Any], reader: Reader, start: datetime, end: datetime, now: datetime) -> None:
    """Canaries of the lost timeline become ours, or they would freeze the ledger for ever."""
    for lane in queries.fetch_dicts(connection, "canary_lanes"):
        customer, event_name = lane["stripe_customer_id"], lane["event_name"]
        known = Counter(hour_of(row["slot_at"]) for row in queries.fetch_dicts(connection, "canary_slots", lane))
        shown = reader.hours(event_name, customer, start, end)
        for hour in (hour for hour, units in shown.items() if units > known[hour]):
            minutes = [hour + number * MINUTE for number in range(60)]
            slots = [minute for minute in minutes if reader.minute(event_name, customer, minute)]
            params = lane | {
                "slots": slots,
                "identifiers": [adoption_identifier("canary", event_name, customer, slot) for slot in slots],
                "now": now,
            }
            queries.execute(connection, "adopt_canaries", params)


def _details(report: AdoptionReport) -> dict[str, Any]:
    return {
        "since": report.since.isoformat(),
        "epoch": report.epoch,
        "steps": Counter(str(adoption.step) for adoption in report.adoptions),
        "units_adopted": sum(
            adoption.stripe_units
            for adoption in report.adoptions
            if adoption.step in (Step.ADOPT, Step.REPLACE_AND_ADOPT)
        ),
    }


DEFAULT_SPAN = timedelta(days=34)
"""How far back recovery looks by default: all that Stripe still takes corrections for."""
