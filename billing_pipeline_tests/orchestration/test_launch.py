"""An interrupted demo leaves no run that a later daemon would start."""

import os
from uuid import uuid4

import dagster as dg
import pytest

from billing_pipeline.orchestration.launch import cancel_unfinished

TAGS = {"billing/demo": "1"}


@pytest.fixture
def instance(tmp_path):
    (tmp_path / "dagster.yaml").write_text("telemetry: {enabled: false}\n")
    with dg.DagsterInstance.from_config(os.fspath(tmp_path)) as instance:
        yield instance


def run_in(instance, status, **tags):
    return instance.add_run(dg.DagsterRun(job_name="usage_flush", run_id=str(uuid4()), status=status, tags=tags)).run_id


def test_unfinished_runs_with_the_tags_are_canceled_and_no_others(instance, tmp_path):
    status = dg.DagsterRunStatus
    theirs = [run_in(instance, found, **TAGS) for found in (status.NOT_STARTED, status.STARTING, status.STARTED)]
    kept = {
        run_in(instance, status.SUCCESS, **TAGS): status.SUCCESS,
        run_in(instance, status.STARTED): status.STARTED,
    }

    assert cancel_unfinished(tmp_path, TAGS) == 3
    assert {instance.get_run_by_id(run_id).status for run_id in theirs} == {status.CANCELED}
    assert {run_id: instance.get_run_by_id(run_id).status for run_id in kept} == kept
    assert cancel_unfinished(tmp_path, TAGS) == 0


def test_a_killed_runs_place_in_a_pool_is_free_again(instance, tmp_path):
    storage = instance.event_log_storage
    storage.set_concurrency_slots("stripe", 1)
    killed = run_in(instance, dg.DagsterRunStatus.FAILURE, **TAGS)
    assert storage.claim_concurrency_slot("stripe", killed, "meter_events").is_claimed

    cancel_unfinished(tmp_path, TAGS)
    assert storage.claim_concurrency_slot("stripe", "the next run", "meter_events").is_claimed
