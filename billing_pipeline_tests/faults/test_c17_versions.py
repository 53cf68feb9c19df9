"""C17: code meets only the schema it was made for; a newer, older or half-migrated one is refused before any work."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest
from alembic.script import ScriptDirectory

from billing_pipeline.database import migrate
from billing_pipeline.database.schema_version import known_revisions
from billing_pipeline.definitions import defs
from billing_pipeline_tests.acceptance.test_usage_is_billed_once import use_environment
from billing_pipeline_tests.fix_flow import counted_by_stripe

SCHEMAS = {
    "newer": ("UPDATE alembic_version SET version_num = '9999'", "9999, which this version does not know"),
    "older": ("DELETE FROM alembic_version", "lacks the schema changes 0001"),
}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_c17_a_flush_on_another_schema_refuses_and_sends_nothing(world, schema):
    change, words = SCHEMAS[schema]
    world.flow.connection.execute(change)

    worker = world.worker()
    _, err = worker.communicate(timeout=60)

    assert worker.returncode == 2
    assert words in err
    assert counted_by_stripe(world.simulator) == {}


@pytest.mark.parametrize("schema", SCHEMAS)
def test_c17_a_dagster_run_on_another_schema_refuses_and_sends_nothing(world, schema, monkeypatch):
    change, words = SCHEMAS[schema]
    world.flow.connection.execute(change)
    use_environment(monkeypatch, world.settings)

    with dg.DagsterInstance.ephemeral() as instance:
        result = defs.resolve_job_def("usage_flush").execute_in_process(instance=instance, raise_on_error=False)

    assert not result.success
    assert words in str(result.failure_data_for_node("billable_events").error)
    assert counted_by_stripe(world.simulator) == {}
    assert world.flow.connection.execute("SELECT count(*) FROM usage_windows").fetchone() == (0,)


def test_c17_the_revisions_known_without_alembic_are_alembics():
    scripts = ScriptDirectory(str(Path(migrate.__file__).with_name("migrations")))

    assert list(known_revisions()) == [script.revision for script in scripts.walk_revisions()][::-1]
