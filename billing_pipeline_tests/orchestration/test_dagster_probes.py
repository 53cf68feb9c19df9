"""The command asks Dagster's webserver, as it is, and takes nothing else for it."""

from __future__ import annotations

import os
import socket
import threading
import time
from contextlib import contextmanager

import dagster as dg
import pytest
import uvicorn
from dagster._core.workspace.context import WorkspaceProcessContext
from dagster._core.workspace.load_target import ModuleTarget
from dagster._daemon.types import DaemonHeartbeat
from dagster_webserver.webserver import DagsterWebserver

from billing_pipeline.domain.probes import PROBES
from billing_pipeline.orchestration.dagster_probes import LOCATION, SCHEDULE, dagster_asks, state_by_graphql
from billing_pipeline.settings import load_settings
from billing_pipeline.usage.preflight.ask import ASKS, ask
from billing_pipeline.usage.preflight.site import Site
from billing_pipeline_tests.cli.command import billing_pipeline

NAMES = {name for name in PROBES if name.startswith("dagster")}


@contextmanager
def served(application):
    """An application on a free port; yields the port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(application, log_config=None, ws="none", lifespan="off"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        try:
            yield listener.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join()


@contextmanager
def webserver(folder, module, location=LOCATION, config="telemetry: {enabled: false}\nrun_monitoring: {enabled: true}"):
    """Dagster's webserver with one code location; yields its port, its instance and its workspace."""
    (folder / "dagster.yaml").write_text(config)
    with (
        dg.DagsterInstance.from_config(os.fspath(folder)) as instance,
        WorkspaceProcessContext(instance, ModuleTarget(module, None, None, location), dg.__version__) as workspace,
        served(DagsterWebserver(workspace).create_asgi_app()) as port,
    ):
        yield port, instance, workspace
    # Dagster ends its code servers without waiting for them; collected later, they would fail whichever test runs then.
    workspace._grpc_server_registry.wait_for_processes()


def asked(port, *, require_enabled=False):
    site = Site(lambda: load_settings(dagster_port=port), require_enabled=require_enabled)
    found = ask(site, NAMES, {**ASKS, **dagster_asks(state_by_graphql)})
    return {probe.name: (str(finding.result), finding.found) for probe, finding in found}


@pytest.mark.slow
def test_daemons_and_schedule_are_told_as_they_are(tmp_path):
    with webserver(tmp_path, "billing_pipeline.definitions") as (port, instance, workspace):
        found = asked(port)
        assert found["dagster"] == ("pass", f"Dagster {dg.__version__} at port {port} of this machine")
        assert found["dagster_location"] == ("pass", "billing_pipeline is loaded")
        assert found["dagster_daemons"][0] == "fail"
        assert "MONITORING has not been heard of ever" in found["dagster_daemons"][1]
        assert found["dagster_schedule"] == ("warn", "hourly_usage_flush is off, so no flush runs by itself")
        assert asked(port, require_enabled=True)["dagster_schedule"][0] == "fail"

        location = workspace.create_request_context().get_code_location(LOCATION)
        [repository] = location.get_repositories().values()
        instance.start_schedule(repository.get_schedule(SCHEDULE))
        for daemon in instance.get_required_daemon_types():
            instance.add_daemon_heartbeat(DaemonHeartbeat(time.time(), daemon, "test", []))
        found = asked(port, require_enabled=True)
        assert {name: result for name, (result, _) in found.items()} == dict.fromkeys(NAMES, "pass")

        # The same switch, as a run of the job sees it.
        from billing_pipeline.orchestration.preflight_checks import state_of_instance

        state = state_of_instance(Site(load_settings), instance)
        assert (state.schedule_is_on, state.location_fault) == (True, None)

        instance.add_daemon_heartbeat(DaemonHeartbeat(time.time() - 3600, "SENSOR", "test", []))
        assert asked(port)["dagster_daemons"][1].startswith("SENSOR has not been heard of since ")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Error loading repository location:UserWarning")
def test_a_location_that_does_not_load_is_told_without_its_words(tmp_path, monkeypatch):
    (tmp_path / "broken_definitions.py").write_text("raise ValueError('planted-secret')\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    with webserver(tmp_path, "broken_definitions", config="telemetry: {enabled: false}") as (port, _, _):
        found = asked(port)

    assert found["dagster"][0] == "pass"
    assert found["dagster_location"][0] == "fail"
    assert found["dagster_location"][1].startswith("it does not load: ")
    assert found["dagster_schedule"] == ("skip", "not asked, because of dagster_location")
    assert "planted" not in str(found)


@pytest.mark.slow
def test_a_workspace_without_our_location_is_told(tmp_path):
    with webserver(tmp_path, "billing_pipeline.definitions", location="another") as (port, _, _):
        found = asked(port)["dagster_location"]

    assert found == ("fail", "it is not among those of the workspace (another)")


@pytest.mark.slow
def test_a_flush_is_not_queued_where_no_daemon_would_start_it(tmp_path):
    with webserver(tmp_path, "billing_pipeline.definitions") as (port, instance, _):
        code, out, err = billing_pipeline("enqueue-hourly", folder=tmp_path, DAGSTER_PORT=port, BILLING_MODE="shadow")

        assert (code, out) == (1, "")
        assert err.startswith(f"error: Dagster on port {port} runs without its daemon (")
        assert "Nothing was queued" in err
        assert instance.get_runs_count() == 0


def test_a_dagster_that_is_not_there_is_told_and_the_rest_is_skipped():
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        port = nobody.getsockname()[1]
        found = asked(port)

    assert found.pop("dagster") == ("warn", f"Dagster does not answer at port {port} of this machine")
    assert set(found.values()) == {("skip", "not asked, because of dagster")}


@pytest.mark.parametrize(
    ("status", "body"),
    [(404, b"{}"), (200, b"<html>"), (200, b"{}"), (200, b'{"data": null}'), (200, b'{"data": {"version": "1"}}')],
)
def test_whatever_else_answers_is_not_taken_for_dagster(status, body):
    async def something_else(scope, receive, send):
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": body})

    with served(something_else) as port:
        result, words = asked(port)["dagster"]

    assert (result, words.startswith("what answers at port")) == ("warn", True)


def test_a_dagster_without_run_monitoring_is_told():
    from billing_pipeline.orchestration.dagster_probes import Daemon, DagsterState

    daemons = tuple(
        Daemon(name, required=name != "MONITORING", healthy=True, last_heartbeat=None)
        for name in ("SCHEDULER", "QUEUED_RUN_COORDINATOR", "MONITORING", "SENSOR")
    )
    asks = dagster_asks(lambda site: DagsterState("here", None, daemons, schedule_is_on=True))
    found = asks["dagster_daemons"](Site(load_settings))

    assert (str(found.result), found.found) == ("warn", "dagster.yaml does not ask for MONITORING")
