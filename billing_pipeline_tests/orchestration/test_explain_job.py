"""The job `explain_usage` puts the explanation where somebody without a shell finds it."""

from __future__ import annotations

from datetime import timedelta

import dagster as dg
import pytest

from billing_pipeline.definitions import defs
from billing_pipeline.usage.flush import flush
from billing_pipeline_tests.builders import billable_event, insert_events

OP = "explain_hour_of_usage"


@pytest.fixture(autouse=True)
def _environment(settings, monkeypatch):
    """A run reads its settings from the environment, as a worker of its own would."""
    monkeypatch.setenv("DATABASE_URL", settings.database_url.get_secret_value())
    monkeypatch.setenv("BILLING_STATE_DIR", str(settings.billing_state_dir))
    monkeypatch.setenv("STRIPE_SECRET_KEY", settings.stripe_key)
    monkeypatch.setenv("STRIPE_API_BASE", settings.stripe_api_base)
    monkeypatch.setenv("ENABLE_BILLING", "1")
    monkeypatch.setenv("BILLING_MODE", "live")


def run(**config):
    job = defs.resolve_job_def("explain_usage")
    return job.execute_in_process(run_config={"ops": {OP: {"config": config}}}, raise_on_error=False)


def test_the_output_holds_the_page_as_markdown(flow, bill):
    bill("acme")
    at = flow.clock().replace(minute=0, second=0, microsecond=0) - timedelta(hours=5)
    insert_events(flow.connection, billable_event(event_id="evt-1", quantity=4217, occurred_at=at))
    flush(flow)

    result = run(organization_id="acme", at=f"{at:%Y-%m-%dT%H}", meter="prompt_tokens")

    assert result.success
    [output] = [event for event in result.all_events if event.is_successful_output]
    metadata = output.step_output_data.metadata
    page = metadata["explanation"]
    assert isinstance(page, dg.MarkdownMetadataValue)
    assert page.value.startswith(f"### acme, the hour of {at:%Y-%m-%d %H:%M} UTC\n\n**Stated 4,217 units; Stripe shows")
    assert "- **entry 1** sequence 0, +4,217 units, confirmed" in page.value
    assert metadata["settled"].value is True


def test_a_run_is_found_by_its_organization_also_when_it_fails(flow):
    with dg.instance_for_test() as instance:
        job = defs.resolve_job_def("explain_usage")
        config = {"ops": {OP: {"config": {"organization_id": "acme", "at": "2026-11-20T13:00"}}}}
        failed = job.execute_in_process(run_config=config, instance=instance, raise_on_error=False)
        assert not failed.success
        assert instance.get_run_by_id(failed.run_id).tags["organization_id"] == "acme"


def test_a_wrong_hour_fails_with_its_sentence_and_is_not_tried_again(flow):
    result = run(organization_id="acme", at="2026-11-20T13:00")

    assert not result.success
    [failed] = result.get_step_failure_events()
    assert "has no offset" in failed.step_failure_data.user_failure_data.description


def test_the_launchpad_says_what_to_give():
    fields = defs.resolve_job_def("explain_usage").run_config_schema.config_type.fields["ops"].config_type.fields[OP]
    config = fields.config_type.fields["config"].config_type.fields

    assert {name for name, field in config.items() if field.is_required} == {"organization_id", "at"}
    assert all(field.description for field in config.values())
