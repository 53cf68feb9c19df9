"""What must hold for everything that Dagster's UI lists, whichever flow it is of: a stranger can tell what it is."""

import dagster as dg
import pytest

from billing_pipeline.definitions import defs

REPOSITORY = defs.get_repository_def()
ASSETS = sorted(REPOSITORY.asset_graph.asset_nodes, key=lambda node: node.key.to_user_string())
CHECKS = sorted(REPOSITORY.asset_graph.asset_check_keys, key=lambda key: key.to_user_string())
JOBS = [job for job in REPOSITORY.get_all_jobs() if not job.name.startswith("__")]
AUTOMATIONS = [*REPOSITORY.schedule_defs, *REPOSITORY.sensor_defs]
MAX_RUNTIME = "dagster/max_runtime"


def by_name(thing):
    return thing.to_user_string() if isinstance(thing, dg.AssetKey | dg.AssetCheckKey) else thing.name


def by_key(node):
    return node.key.to_user_string()


def is_said(description, words):
    """Some words, and a first line that is a sentence: lists show only that."""
    lines = (description or "").strip().splitlines()
    return bool(lines) and len(description.split()) >= words and lines[0].rstrip().endswith((".", "?", "!"))


@pytest.mark.parametrize("asset", ASSETS, ids=by_key)
def test_every_asset_says_what_it_is_where_it_belongs_and_whose_it_is(asset):
    assert is_said(asset.description, words=8), asset.description
    assert asset.owners
    assert asset.group_name not in (None, "default")
    assert asset.kinds
    assert asset.tags.get("billing/flow"), "the tag billing/flow says which flow the asset is of"


@pytest.mark.parametrize("check", CHECKS, ids=by_name)
def test_every_check_says_what_it_asks(check):
    assert is_said(REPOSITORY.asset_graph.get_check_spec(check).description, words=5)


@pytest.mark.parametrize("job", JOBS, ids=by_name)
def test_every_job_says_what_it_does_and_ends(job):
    assert is_said(job.description, words=8), job.description
    # A flush is due every hour; what hangs must not hold its place for the next.
    assert 0 < int(job.tags[MAX_RUNTIME]) <= 2700


@pytest.mark.parametrize("automation", AUTOMATIONS, ids=by_name)
def test_every_schedule_and_sensor_says_when_and_why(automation):
    assert is_said(automation.description, words=8), automation.description


@pytest.mark.parametrize("job", JOBS, ids=by_name)
def test_every_field_of_the_launchpad_is_explained(job):
    for path, field in fields_of(job):
        assert is_said(field.description, words=3), f"{path}: {field.description}"


def fields_of(job):
    """What a person gives in the Launchpad, of each step that takes anything."""
    for node in job.graph.nodes:
        schema = node.definition.config_schema
        fields = getattr(schema.config_type, "fields", {}) if schema else {}
        yield from ((f"{node.name}.{name}", field) for name, field in fields.items())


def test_all_of_it_was_looked_at():
    # Otherwise a change of Dagster's names would leave the tests above with nothing to ask.
    assert {"billable_events", "usage_reconciliation"} <= {by_key(asset) for asset in ASSETS}
    assert {"ledger_invariants_hold", "dagster_schedule"} <= {check.name for check in CHECKS}
    assert {"usage_flush", "smoke_organization"} <= {job.name for job in JOBS}
    assert "hourly_usage_flush" in {automation.name for automation in AUTOMATIONS}
    smoke = next(job for job in JOBS if job.name == "smoke_organization")
    assert "bill_one_organization.organization_id" in dict(fields_of(smoke))
