"""The job that explains one hour's bill, for whoever has the UI and no shell; it changes nothing."""

from typing import Any

import dagster as dg
from pydantic import Field

from billing_pipeline.domain.given_hours import hour_given
from billing_pipeline.orchestration.launch import ORGANIZATION_TAG
from billing_pipeline.orchestration.resources import BillingResource
from billing_pipeline.usage.explain import Question, explain_hour
from billing_pipeline.usage.explain_page import page_of
from billing_pipeline.usage.page import as_markdown


class ExplainUsageConfig(dg.Config):
    """Which hour to explain."""

    organization_id: str = Field(description="The organization, as the source names it.")
    at: str = Field(description="A time in the hour, with its offset, or a UTC hour such as 2026-11-20T13.")
    meter: str | None = Field(default=None, description="Only this meter of the catalogue; left out: all of them.")
    events: int = Field(default=20, ge=0, le=1_000, description="How many event ids to name of each sum.")


@dg.op(out=dg.Out(dg.Nothing))
def explain_hour_of_usage(context: dg.OpExecutionContext, config: ExplainUsageConfig, billing: BillingResource) -> None:
    """Why an organization was billed what it was in an hour: the rows, the arithmetic, every attempt, what Stripe
    showed, and one plain line at the top."""
    context.instance.add_run_tags(context.run_id, {ORGANIZATION_TAG: config.organization_id})
    with billing.usage_flow() as flow:
        hour_at = hour_given(config.at, now=flow.clock())
        found = explain_hour(flow, Question(config.organization_id, hour_at, config.meter, config.events))
    told: dict[str, Any] = {
        "explanation": dg.MetadataValue.md(as_markdown(page_of(found))),
        "hour": dg.MetadataValue.timestamp(hour_at),
        "settled": found.verdict.is_settled,
    }
    context.add_output_metadata(told)


@dg.job(
    description="Why was this billed? Name an organization and a time in the Launchpad. "
    "The step's output tells the rows, the arithmetic, every attempt and what Stripe showed; nothing is changed.",
    tags={"dagster/max_runtime": "300"},
)
def explain_usage() -> None:
    """One hour, explained."""
    explain_hour_of_usage()
