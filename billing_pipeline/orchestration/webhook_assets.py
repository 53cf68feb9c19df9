"""The webhooks' assets: Stripe's events as they arrive, and what is kept of the objects that they show.

`billing-pipeline serve` handles events within a second of their arrival; materializing an asset handles what it left,
asks Stripe where events could not decide, and says what the table holds.
Any number of workers may do that at once, so nothing here takes a lease.
"""

from collections.abc import Callable
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from typing import Any

import dagster as dg

from billing_pipeline.database import queries
from billing_pipeline.orchestration.metadata import states_table
from billing_pipeline.orchestration.resources import BillingResource
from billing_pipeline.orchestration.usage_assets import RETRIES
from billing_pipeline.orchestration.webhook_flow import WebhookFlow

GROUP = "webhooks"
FRESHNESS = dg.FreshnessPolicy.time_window(warn_window=timedelta(minutes=90), fail_window=timedelta(hours=3))
"""They are due every hour, whatever `serve` does in between."""

webhook_asset = partial(
    dg.asset,
    group_name=GROUP,
    owners=["team:billing"],
    tags={"billing/flow": GROUP},
    retry_policy=RETRIES,
    freshness_policy=FRESHNESS,
    kinds={"postgres", "stripe"},
)

stripe_events = dg.AssetSpec(
    "stripe_events",
    description="Every webhook event of Stripe's, stored with its raw body before it was answered, once and for ever."
    "\n\n"
    "`billing-pipeline serve` writes it, and the hourly sweep adds what was never delivered; each sweep reports here "
    "how far the inbox is complete.",
    group_name=GROUP,
    owners=["team:billing"],
    tags={"billing/flow": GROUP},
    kinds={"postgres", "stripe"},
    freshness_policy=dg.FreshnessPolicy.time_window(warn_window=timedelta(hours=2), fail_window=timedelta(hours=6)),
)


def _materialize(
    billing: BillingResource, rows_by_state: str, further: Callable[[WebhookFlow], dict[str, Any]] = lambda flow: {}
) -> dg.MaterializeResult[Any]:
    with billing.webhook_flow() as flow:
        handled, asked = flow.dispatch()
        told = further(flow)
        states = queries.fetch_dicts(flow.connection, rows_by_state)
    return dg.MaterializeResult(
        metadata={
            "dagster/row_count": sum(int(row["rows"]) for row in states),
            "states": states_table(states),
            **{f"events_{name}": count for name, count in asdict(handled).items()},
            **{f"objects_{name}": count for name, count in asdict(asked).items()},
            **told,
        }
    )


@webhook_asset(deps=[stripe_events])
def subscriptions(billing: BillingResource) -> dg.MaterializeResult[Any]:
    """Stripe's subscriptions with their items, each as the latest event or answer of Stripe's shows it."""
    return _materialize(billing, "subscriptions_by_status")


@webhook_asset(deps=[stripe_events])
def invoices(billing: BillingResource) -> dg.MaterializeResult[Any]:
    """Stripe's invoices with their lines, each in its latest state; a state that is for ever is never left."""
    return _materialize(billing, "invoices_by_status")


@webhook_asset(deps=[subscriptions])
def entitlements(billing: BillingResource) -> dg.MaterializeResult[Any]:
    """What each organization may use: `saas`, the workspace gate, from subscriptions, and Stripe's own features.

    Everybody is decided anew, because a mapping that a person adds or ends changes it and no event tells of that.
    """

    def decide(flow: WebhookFlow) -> dict[str, Any]:
        report = flow.decide_all()
        return {"customers_looked_at": report.customers, "organizations_changed": len(report.changed)}

    return _materialize(billing, "entitlements_by_feature", decide)


WEBHOOK_ASSETS: list[dg.AssetSpec | dg.AssetsDefinition] = [stripe_events, subscriptions, invoices, entitlements]
