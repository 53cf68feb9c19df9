"""Everything the simulator knows, as the fold of its journal.

`State.apply` is the only place that changes it, and it takes nothing but a journal record; the resource
modules only read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import datetime, timedelta

from billing_pipeline.errors import UserError
from billing_pipeline.stripe_simulator.counted import CountedMeterEvents
from billing_pipeline.stripe_simulator.due import DueMoments
from billing_pipeline.stripe_simulator.error_reports import ErrorReports
from billing_pipeline.stripe_simulator.idempotency import KEPT_V1, KEPT_V2, SavedAnswers
from billing_pipeline.stripe_simulator.journal import Journal, Record
from billing_pipeline.stripe_simulator.sessions import StreamSessions
from billing_pipeline.stripe_simulator.snapshots import Snapshots
from billing_pipeline.stripe_simulator.webhook_deliveries import Deliveries
from billing_pipeline.stripe_simulator.webhook_weather import FAIR, Trouble, WebhookWeather
from billing_pipeline.stripe_simulator.wire import Body


class State:
    """The account, its objects by kind and id, its meter events with what became of them, and its saved answers."""

    def __init__(
        self, identifier_horizon: timedelta, error_samples_max: int, webhook_weather: WebhookWeather = FAIR
    ) -> None:
        self.line = 0
        self.meter_events = CountedMeterEvents(identifier_horizon)
        self.error_reports = ErrorReports(error_samples_max, self.digest)
        self.sessions = StreamSessions()
        self.saved_answers = {"v1": SavedAnswers(KEPT_V1), "v2": SavedAnswers(KEPT_V2)}
        self.active_meters: dict[str, Body] = {}
        self.events = Snapshots(self.digest)
        self.due = DueMoments()
        self.deliveries = Deliveries(webhook_weather)
        self._objects: dict[str, dict[str, Body]] = {}
        self._owned: dict[tuple[str, str], dict[str, None]] = {}

    def apply(self, record: Record) -> None:
        """Take one journal record into account."""
        received_at = datetime.fromisoformat(record["received_at"])
        match record["kind"]:
            case "meter_event":
                self.meter_events.add(record, received_at)
            case "meter_event_lost":
                self.meter_events.lose(record, received_at)
            case "meter_event_cancelled":
                self.meter_events.cancel(record)
            case "meter_event_rejected":
                report = self.error_reports.add(record)
                if report is not None:
                    self.deliveries.add(report)
            case "webhook_attempt":
                self.deliveries.answered(record["object"], int(received_at.timestamp()))
            case "refusal" | "meter_event_dropped_duplicate":
                pass  # they are told, and change nothing
            case kind:
                self._change(kind, record, received_at)
        if record.get("idempotency_key"):
            self.saved_answers[record.get("api", "v1")].add(record, received_at)
        self.line = record["line"]

    def _change(self, kind: str, record: Record, received_at: datetime) -> None:
        before = self.find(kind, record["object"]["id"]) or record.get("before")
        self._put(kind, record["object"])
        self.due.note(kind, record["object"])
        if "events" in record:
            for event in self.events.add(record, before, received_at):
                self.deliveries.add(event)

    def _put(self, kind: str, body: Body) -> None:
        self._objects.setdefault(kind, {})[body["id"]] = body
        owner = owner_of(kind, body)
        if owner is not None:
            self._owned.setdefault((kind, owner), {})[body["id"]] = None
        if kind == "meter_event_session":
            self.sessions.add(body)
        elif kind == "webhook_endpoint":
            self.deliveries.put_endpoint(body)
        elif kind == "meter" and body["status"] == "active":
            self.active_meters[body["event_name"]] = body
        elif kind == "meter" and self.active_meters.get(body["event_name"], {}).get("id") == body["id"]:
            del self.active_meters[body["event_name"]]

    def account_id(self) -> str:
        """The one account, whose record opens the journal; every other id is derived from it."""
        return next(iter(self._objects["account"]))

    def find(self, kind: str, id: str) -> Body | None:
        """An object as it was last recorded, deleted ones included; never change it in place."""
        return self._objects.get(kind, {}).get(id)

    def live(self, kind: str, id: str) -> Body | None:
        """Like `find`, but a deleted object is not there."""
        body = self.find(kind, id)
        return None if body is None or body.get("deleted") else body

    def newest_first(self, kind: str) -> Iterator[Body]:
        """All objects of a kind that are not deleted, the last created first."""
        return (body for body in reversed(self._objects.get(kind, {}).values()) if not body.get("deleted"))

    def webhook_troubles(self) -> dict[Trouble, int]:
        """How often each trouble of the webhook weather really happened."""
        return dict(+(self.events.troubles + self.deliveries.troubles))

    def has(self, kind: str) -> bool:
        """Whether there ever was an object of this kind."""
        return kind in self._objects

    def owned(self, kind: str, owner: str) -> Iterator[Body]:
        """An owner's objects of a kind that are not deleted, the last created first."""
        bodies = (self._objects[kind][id] for id in reversed(self._owned.get((kind, owner), {})))
        return (body for body in bodies if not body.get("deleted"))

    def invoices_of(self, subscription: str) -> int:
        """How many invoices a subscription ever had."""
        return len(self._owned.get(("invoice", subscription), ()))

    def new_id(self, kind: str, prefix: str) -> str:
        """The id of the next object of a kind; the same history always gives the same ids."""
        return f"{prefix}_{self.digest(kind, len(self._objects.get(kind, {})) + 1)}"

    def digest(self, *parts: object) -> str:
        """24 characters that stand for these parts within this account."""
        text = "/".join(map(str, (self.account_id(), *parts)))
        return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()


def owner_of(kind: str, body: Body) -> str | None:
    """The object that this one is found by, where that is asked for: a deleted one no longer says."""
    match kind:
        case "subscription":
            return str(body["customer"])
        case "invoice" if body.get("parent"):
            return str(body["parent"]["subscription_details"]["subscription"])
        case "product_feature" if "_product" in body:
            return str(body["_product"])
    return None


def rebuilt(journal: Journal, state: State) -> State:
    """The state after every record of the journal.  Raises `UserError` for a damaged journal."""
    for number, record in enumerate(journal.read(), start=1):
        try:
            if record["line"] != number:
                raise ValueError("a line is missing")
            state.apply(record)
        except (KeyError, TypeError, ValueError):
            raise UserError(
                f"Line {number} of the journal is damaged or missing, so the account cannot be rebuilt. "
                "Start with another journal file."
            ) from None
    return state
