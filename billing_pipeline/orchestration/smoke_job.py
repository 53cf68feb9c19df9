"""The job that bills one organization end to end in test mode, for whoever has the UI and no shell."""

from typing import Any

import dagster as dg
from pydantic import Field

from billing_pipeline.domain.probes import Finding
from billing_pipeline.orchestration.launch import ORGANIZATION_TAG
from billing_pipeline.orchestration.resources import BillingResource
from billing_pipeline.orchestration.usage_assets import STRIPE_POOL
from billing_pipeline.usage.smoke import Smoke, run_smoke


class SmokeOrganizationConfig(dg.Config):
    """Whom to bill."""

    organization_id: str = Field(description="The organization, as the source names it.")
    require_enabled: bool = Field(default=True, description="Whether a level below live is a failure.")
    validate_contract: bool = Field(default=True, description="Whether to validate the data contract first.")
    refresh_period: bool = Field(default=False, description="Whether to tell the billing periods that Stripe shows.")
    fail_closed: bool = Field(default=True, description="Whether the run fails when a step does.")


@dg.op(out=dg.Out(dg.Nothing), pool=STRIPE_POOL)
def bill_one_organization(
    context: dg.OpExecutionContext, config: SmokeOrganizationConfig, billing: BillingResource
) -> None:
    """Validates, counts, cuts, sends and proves one organization's usage; a live key is refused."""
    findings: list[tuple[str, Finding]] = []

    def tell(name: str, finding: Finding) -> None:
        findings.append((name, finding))
        context.log.info("%s  %s: %s", finding.result, name, finding.found)

    smoke = Smoke(
        config.organization_id,
        config.require_enabled,
        validate_contract=config.validate_contract,
        refresh_period=config.refresh_period,
    )
    # Before anything can fail: a failed run is the one that is looked for by its organization.
    context.instance.add_run_tags(context.run_id, {ORGANIZATION_TAG: config.organization_id})
    with billing.usage_flow(context.run_id, context.instance) as flow:
        passed = run_smoke(flow, smoke, tell)
    told: dict[str, Any] = {"passed": passed, "steps": _steps(findings), ORGANIZATION_TAG: config.organization_id}
    if not passed and config.fail_closed:
        failed = "; ".join(f"{name}: {finding.found}" for name, finding in findings if finding.result == "fail")
        raise dg.Failure(description=f"The smoke failed: {failed}", metadata=told, allow_retries=False)
    context.add_output_metadata(told)


@dg.job(
    description="Bill one organization end to end in test mode, and prove it with what Stripe shows. "
    "Name the organization in the Launchpad; a live key is refused.",
    tags={"dagster/max_runtime": "1800"},
)
def smoke_organization() -> None:
    """One organization, billed and proved."""
    bill_one_organization()


def _steps(findings: list[tuple[str, Finding]]) -> dg.MetadataValue[Any]:
    rows = [
        dg.TableRecord({"step": name, "result": str(found.result), "found": found.found, "next": found.remedy or ""})
        for name, found in findings
    ]
    return dg.MetadataValue.table(rows)
