"""The Dagster code location, nothing else.

The location's name `billing_pipeline` is part of every cursor, run key and on/off switch; it never changes.
Loading reads no setting and no secret, so a broken environment shows up in a run, with a sentence, not as a dead UI.
"""

import dagster as dg

from billing_pipeline.orchestration.checks import USAGE_CHECKS
from billing_pipeline.orchestration.close_periods import close_periods, invoice_adjustments, invoices_to_close
from billing_pipeline.orchestration.feed_assets import FEED_ASSETS, FEED_CHECKS, FEED_JOBS, FEED_SCHEDULES
from billing_pipeline.orchestration.jobs import JOBS, SCHEDULES
from billing_pipeline.orchestration.resources import BillingResource
from billing_pipeline.orchestration.usage_assets import USAGE_ASSETS
from billing_pipeline.orchestration.webhook_assets import WEBHOOK_ASSETS
from billing_pipeline.orchestration.webhook_checks import WEBHOOK_CHECKS
from billing_pipeline.orchestration.webhook_jobs import WEBHOOK_JOBS, WEBHOOK_SCHEDULES
from billing_pipeline.orchestration.webhook_sensors import WEBHOOK_SENSORS

defs = dg.Definitions(
    assets=[*USAGE_ASSETS, *WEBHOOK_ASSETS, invoice_adjustments, *FEED_ASSETS],
    asset_checks=[*USAGE_CHECKS, *WEBHOOK_CHECKS, *FEED_CHECKS],
    jobs=[*JOBS, *WEBHOOK_JOBS, close_periods, *FEED_JOBS],
    schedules=[*SCHEDULES, *WEBHOOK_SCHEDULES, *FEED_SCHEDULES],
    sensors=[*WEBHOOK_SENSORS, invoices_to_close],
    resources={"billing": BillingResource()},
    # Steps of one flush follow each other; a process per step would cost two seconds each and save nothing.
    executor=dg.in_process_executor,
)
