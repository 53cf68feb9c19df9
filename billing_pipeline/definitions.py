"""The Dagster code location, nothing else.

The location's name `billing_pipeline` is part of every cursor, run key and on/off switch; it never changes.
Loading reads no setting and no secret, so a broken environment shows up in a run, with a sentence, not as a dead UI.
"""

import dagster as dg

from billing_pipeline.orchestration.checks import USAGE_CHECKS
from billing_pipeline.orchestration.jobs import JOBS, SCHEDULES
from billing_pipeline.orchestration.resources import BillingResource
from billing_pipeline.orchestration.usage_assets import USAGE_ASSETS

defs = dg.Definitions(
    assets=USAGE_ASSETS,
    asset_checks=USAGE_CHECKS,
    jobs=JOBS,
    schedules=SCHEDULES,
    resources={"billing": BillingResource()},
    # Steps of one flush follow each other; a process per step would cost two seconds each and save nothing.
    executor=dg.in_process_executor,
)
