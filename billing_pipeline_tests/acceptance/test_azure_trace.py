"""Real usage, from a file to confirmed meter events: Stripe's journal equals sums made from the file alone.

The trace is Azure's public LLM inference trace of November 2023 (CC-BY 4.0); it is not part of this repository.
"""

from __future__ import annotations

import csv
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from billing_pipeline.usage.flush import flush
from billing_pipeline.usage.import_events import import_events
from billing_pipeline.usage.import_mapping import EventRule, ImportMapping
from billing_pipeline_tests.fix_flow import counted_by_stripe

TRACE = Path(__file__).parents[3] / "shared" / "usage" / "AzureLLMInferenceTrace_conv.csv"
ORGANIZATIONS = 7
METERS = {"ContextTokens": "prompt_tokens", "GeneratedTokens": "generated_tokens"}
MAPPING = ImportMapping(
    time_column="TIMESTAMP",
    timezone="UTC",
    id_prefix="azure",
    row_modulo=ORGANIZATIONS,
    events=tuple(EventRule(event_type=meter, quantity_column=column) for column, meter in METERS.items()),
)


def sums_from_the_file(end_at: datetime) -> Counter[tuple[str, str, datetime]]:
    """Units per organization, meter and hour, by csv and integers: nothing of the package."""
    with TRACE.open(newline="") as file:
        rows = [(parse(row["TIMESTAMP"]), row) for row in csv.DictReader(file)]
    shift = end_at - max(at for at, _ in rows)
    totals: Counter[tuple[str, str, datetime]] = Counter()
    for number, (at, row) in enumerate(rows):
        hour = (at + shift).replace(minute=0, second=0, microsecond=0)
        for column, meter in METERS.items():
            totals[(f"org-{number % ORGANIZATIONS + 1:04d}", meter, hour)] += int(row[column])
    return totals


def parse(text: str) -> datetime:
    # Seven fractional digits; a microsecond has six.
    return datetime.fromisoformat(text[:26]).replace(tzinfo=UTC)


@pytest.mark.slow
@pytest.mark.skipif(
    not TRACE.parents[1].exists(), reason="the folder shared/ with the trace is not beside this project"
)
def test_the_azure_trace_is_billed_to_the_unit_per_organization_meter_and_hour(flow, bill, simulator):
    # Three hours back, and off the hour, so that the trace's hour falls into two closed windows.
    end_at = datetime.now(UTC).replace(minute=40, second=0, microsecond=0) - timedelta(hours=3)
    result = import_events(
        flow.connection,
        TRACE,
        MAPPING,
        relation=flow.settings.billing_source_relation,
        shift_to_end_at=end_at,
        skip_conflicts=False,
        progress=lambda rows: None,
    )
    customers = bill(*(f"org-{number:04d}" for number in range(1, ORGANIZATIONS + 1)))

    report = flush(flow)

    organization = {customer: organization_id for organization_id, customer in customers.items()}
    counted = {
        (organization[customer], meter, hour): units
        for (customer, meter, hour), units in counted_by_stripe(simulator).items()
    }
    assert result.added == 2 * 19_366
    assert counted == dict(sums_from_the_file(end_at))
    assert report.confirm.confirmed == report.cut.entries == len(counted)
    assert (report.submit.unknown, report.confirm.waiting) == (0, 0)
