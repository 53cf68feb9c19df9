"""Within a run only what did not answer is tried again, and Stripe sees no more than the documented number of sends."""

import dagster as dg
import pytest

from billing_pipeline.errors import (
    BillingError,
    CatalogueError,
    DatabaseUnavailable,
    LedgerFrozen,
    StripeRefused,
    StripeUnavailable,
)
from billing_pipeline.orchestration.resources import BillingResource
from billing_pipeline.orchestration.usage_assets import USAGE_ASSETS
from billing_pipeline.usage.resubmit import ATTEMPTS, PAUSES_SECONDS, submit_until_answered
from billing_pipeline.usage.submit import SubmitReport


@pytest.mark.parametrize("asset", USAGE_ASSETS, ids=lambda asset: asset.key.to_user_string())
def test_every_stage_may_be_tried_three_times(asset):
    policy = asset.op.retry_policy

    assert (policy.max_retries, policy.backoff) == (2, dg.Backoff.EXPONENTIAL)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "again"),
    [
        (DatabaseUnavailable, True),
        (StripeUnavailable, True),
        (StripeRefused, False),
        (LedgerFrozen, False),
        (CatalogueError, False),
    ],
)
def test_only_a_service_that_did_not_answer_is_asked_again(
    database_url, tmp_path, monkeypatch, error: type[BillingError], again
):
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.setenv("BILLING_STATE_DIR", str(tmp_path))

    with pytest.raises(dg.Failure) as failure, BillingResource().usage_flow():
        raise error("What is wrong. Do this.")

    assert failure.value.allow_retries is again
    assert f"What is wrong. Do this. See docs/troubleshooting.md#{error.anchor}." in failure.value.description


@pytest.mark.parametrize(
    ("unanswered", "sends"), [([0], 1), ([2, 0], 2), ([2, 1, 0], 3), ([2, 2, 2], 3), ([2, 2, 2, 2], 3)]
)
def test_a_flush_sends_until_stripe_has_answered_and_three_times_at_most(unanswered, sends):
    reports = [SubmitReport(attempts=left + 1, accepted=1, unanswered=left) for left in unanswered]
    slept: list[int] = []

    together = submit_until_answered(iter(reports).__next__, sleep=slept.append)

    assert (together.accepted, together.unanswered) == (sends, unanswered[sends - 1])
    assert together.attempts == sum(left + 1 for left in unanswered[:sends])
    assert len(slept) == sends - 1 <= ATTEMPTS - 1
    assert all(pause >= least for pause, least in zip(slept, PAUSES_SECONDS, strict=False))
