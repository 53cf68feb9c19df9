"""The jobs and schedules that drive the flows.

A flush follows the ledger's state, never "its hour": a missed tick is not caught up, because the next one does all
that is left.
"""

from typing import Any

import dagster as dg

from billing_pipeline.errors import SettingsError
from billing_pipeline.orchestration.contract_checks import usage_volume
from billing_pipeline.orchestration.explain_job import explain_usage
from billing_pipeline.orchestration.launch import QUEUE_TAG
from billing_pipeline.orchestration.preflight_checks import preflight_checks
from billing_pipeline.orchestration.schedules import utc_schedule
from billing_pipeline.orchestration.smoke_job import smoke_organization
from billing_pipeline.orchestration.usage_assets import USAGE_ASSETS, USAGE_FLUSH, billable_events
from billing_pipeline.settings import load_settings

# Standing apart from the assets' checks would let a hand-started run skip them; an asset job carries its checks along.
# Not the preflight's: the gate repeats what of it must hold, and its requests to Stripe once a day are enough.
usage_flush = dg.define_asset_job(
    USAGE_FLUSH,
    selection=dg.AssetSelection.assets(*USAGE_ASSETS) - dg.AssetSelection.checks(preflight_checks),
    description="Bill what was used since the last flush: check the source, count it by the hour, state what is new to "
    "the ledger, send it to Stripe, prove it with Stripe's summaries and compare all sides. Safe to run at any time: "
    "beside another flush it ends well and does nothing.",
    # Below the hourly period: a run whose process was killed must not hold its place for ever.
    tags={"dagster/max_runtime": "2700"},
)

validate_contract = dg.define_asset_job(
    "validate_contract",
    selection=(dg.AssetSelection.assets(billable_events) | dg.AssetSelection.checks(usage_volume))
    - dg.AssetSelection.checks(preflight_checks),
    description="Does the source keep the data contract? Asks every rule now; counts nothing and sends nothing.",
    tags={"dagster/max_runtime": "2700"},
)

preflight = dg.define_asset_job(
    "preflight",
    selection=dg.AssetSelection.checks(preflight_checks),
    description="Is everything in place that a flush needs: settings, database, Stripe, Dagster? Changes nothing.",
    tags={"dagster/max_runtime": "900"},
)


def _queue_tag() -> dict[str, str]:
    try:
        return {QUEUE_TAG: load_settings().stripe_billing_queue}
    except SettingsError:
        # A tick that fails starts nothing and is seen by few; the run says what is wrong with the settings.
        return {}


JOBS: list[Any] = [usage_flush, validate_contract, preflight, smoke_organization, explain_usage]
SCHEDULES = [
    utc_schedule(
        usage_flush,
        name="hourly_usage_flush",
        cron="13 * * * *",
        description="A flush, every hour at minute 13, when the hour before has closed and its stragglers had their "
        "grace.",
        tags=_queue_tag,
    ),
    utc_schedule(
        preflight,
        name="daily_preflight",
        cron="43 5 * * *",
        description="The preflight, every day before working hours and half an hour away from a flush.",
    ),
]
