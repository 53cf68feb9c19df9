"""The meter events that the stream rejected, gathered as Stripe reports them: per meter and 10 seconds.

Fed from the journal by `state`; listed by `core_events`.
A report keeps the number of errors of each code but only a sample of their identifiers, so an identifier that is
not in a report may have been rejected all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from billing_pipeline.stripe_simulator.journal import Record

VALIDATION_SECONDS = 10
"""The length of a validation window in every sample that Stripe shows."""


@dataclass(slots=True)
class ErrorTally:
    """The errors of one code: how many, and (identifier, message) of the first few."""

    count: int = 0
    samples: list[tuple[str, str]] = field(default_factory=list)


@dataclass(slots=True)
class ErrorReport:
    """What was rejected for one meter (None: no meter matched) from `start` to before `end`."""

    id: str
    meter: str | None
    start: datetime
    tallies: dict[str, ErrorTally] = field(default_factory=dict)

    @property
    def type(self) -> str:
        """The type of the thin event that tells of it."""
        return "v1.billing.meter.no_meter_found" if self.meter is None else "v1.billing.meter.error_report_triggered"

    @property
    def created(self) -> int:
        """When the event is made, in epoch seconds."""
        return int(self.end.timestamp())

    @property
    def end(self) -> datetime:
        """When the window closes, which is when the report appears."""
        return self.start + timedelta(seconds=VALIDATION_SECONDS)


class ErrorReports:
    """All reports by id; `samples_max` bounds the samples of each code, `digest` makes the ids."""

    def __init__(self, samples_max: int, digest: Callable[..., str]) -> None:
        self._samples_max = samples_max
        self._digest = digest
        self._reports: dict[tuple[str | None, int], ErrorReport] = {}
        self._by_id: dict[str, ErrorReport] = {}

    def add(self, record: Record) -> ErrorReport | None:
        """Take one rejected meter event into its report; the report, when this is its first."""
        judged_at = datetime.fromisoformat(record["judged_at"])
        start = int(judged_at.timestamp()) // VALIDATION_SECONDS * VALIDATION_SECONDS
        report = self._report(record["meter"], start)
        is_first = not report.tallies
        tally = report.tallies.setdefault(record["code"], ErrorTally())
        tally.count += 1
        if len(tally.samples) < self._samples_max:
            tally.samples.append((record["identifier"], record["message"]))
        return report if is_first else None

    def _report(self, meter: str | None, start: int) -> ErrorReport:
        report = self._reports.get((meter, start))
        if report is None:
            id = f"evt_test_{self._digest('error_report', meter, start)}"
            report = ErrorReport(id, meter, datetime.fromtimestamp(start, UTC))
            self._reports[meter, start] = self._by_id[id] = report
        return report

    def find(self, id: str) -> ErrorReport | None:
        """The report with this id, its window closed or not."""
        return self._by_id.get(id)

    def all(self) -> Iterator[ErrorReport]:
        """Every report, in no promised order."""
        return iter(self._by_id.values())
