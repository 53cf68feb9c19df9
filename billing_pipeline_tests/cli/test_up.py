"""`billing-pipeline up` brings the whole stack up, says where it is, and leaves nothing behind."""

import json
import shutil
import signal
import socket
import threading
import time
import urllib.request
from pathlib import Path

import psutil
import pytest

from billing_pipeline.cli.intake import local_secret, serves_webhooks
from billing_pipeline.cli.local_stack import listens
from billing_pipeline.cli.state_lock import is_held
from billing_pipeline.database.connection import connect
from billing_pipeline.orchestration.dagster_probes import state_at
from billing_pipeline.settings import load_settings
from billing_pipeline_tests.cli.command import billing_pipeline, start
from billing_pipeline_tests.fix_postgres import drop_database
from billing_pipeline_tests.signing import SECRET
from billing_pipeline_tests.webhooks.conftest import Intake

REPOSITORY = Path(__file__).parents[2]

DEFINITIONS = """
import dagster

@dagster.asset
def one() -> int:
    return 1

usage_flush = dagster.define_asset_job("usage_flush", selection=[one])
defs = dagster.Definitions(assets=[one], jobs=[usage_flush], executor=dagster.in_process_executor)
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def stack(tmp_path, database_url, server_url):
    """A folder to run `up` in, with a code location of one asset, and the settings to run it with."""
    shutil.copy(REPOSITORY / "dagster.yaml", tmp_path)
    (tmp_path / "one_asset.py").write_text(DEFINITIONS)
    (tmp_path / "workspace.yaml").write_text(
        "load_from: [{python_file: {relative_path: one_asset.py, location_name: billing_pipeline}}]"
    )
    yield {
        "folder": tmp_path,
        "DATABASE_URL": database_url,
        "BILLING_STATE_DIR": "state",
        "DAGSTER_PORT": free_port(),
        "SIMULATOR_PORT": free_port(),
        "BILLING_INTAKE_PORT": free_port(),
    }
    with connect(database_url) as connection:
        name = connection.info.dbname
    drop_database(server_url, f"{name}_dagster")


@pytest.fixture
def running(stack):
    """`up`, ready; whatever a test does, nothing of it survives."""
    process = start("up", **stack)
    impatience = threading.Timer(150, process.kill)
    impatience.start()
    for line in process.stdout:
        if line.startswith("Ctrl-C"):
            break
    else:
        pytest.fail(process.stderr.read())
    family = psutil.Process(process.pid).children(recursive=True)
    yield process, family
    impatience.cancel()
    for member in [process, *family]:
        if psutil.pid_exists(member.pid):
            member.kill()
    process.communicate()


def ask(port: int, question: str) -> dict:
    """What Dagster's webserver answers to a GraphQL question."""
    body = json.dumps({"query": question}).encode()
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/graphql", data=body, headers={"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request) as response:
        return json.load(response)["data"]


def wait_for_daemons(port: int) -> None:
    """Their first heartbeat comes some seconds after `up` is ready."""
    deadline = time.monotonic() + 60
    while any(daemon.required and not daemon.healthy for daemon in state_at(port).daemons):
        assert time.monotonic() < deadline
        time.sleep(0.5)


def left(family: list[psutil.Process]) -> list[str]:
    return [" ".join(member.cmdline()) for member in family if member.is_running()]


@pytest.mark.slow
def test_up_serves_dagster_and_stripe_and_ctrl_c_leaves_nothing(stack, running):
    process, family = running
    with urllib.request.urlopen(f"http://127.0.0.1:{stack['DAGSTER_PORT']}/server_info") as response:
        assert "dagster_webserver_version" in json.load(response)
    assert listens(stack["SIMULATOR_PORT"])
    intake = Intake(f"http://127.0.0.1:{stack['BILLING_INTAKE_PORT']}")
    kept = stack["folder"] / "state" / "webhook_secret"
    assert kept.stat().st_mode & 0o777 == 0o600
    assert intake.deliver("evt_1", kept.read_text()).status == 202
    assert intake.deliver("evt_2").status == 400
    assert kept.read_text() not in str([member.cmdline() for member in family])
    assert is_held(stack["folder"] / "state")

    code, _, err = billing_pipeline("up", **stack)
    assert (code, err.startswith("error: `make up` or a demo is already running")) == (2, True)

    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert "Stopping" in out
    assert left(family) == []
    assert not listens(stack["DAGSTER_PORT"])
    assert not listens(stack["SIMULATOR_PORT"])
    assert not listens(stack["BILLING_INTAKE_PORT"])
    assert not is_held(stack["folder"] / "state")


@pytest.mark.slow
def test_a_flush_is_queued_in_the_running_dagster_and_runs_there(stack, running):
    wait_for_daemons(stack["DAGSTER_PORT"])

    code, out, err = billing_pipeline("enqueue-hourly", "--json", **stack, STRIPE_BILLING_QUEUE="billing")

    assert (code, err) == (0, "")
    told = json.loads(out)
    assert told["page"] == f"http://127.0.0.1:{stack['DAGSTER_PORT']}/runs/{told['run_id']}"
    question = f'{{ runOrError(runId: "{told["run_id"]}") {{ ... on Run {{ status tags {{ key value }} }} }} }}'
    deadline = time.monotonic() + 120
    while (run := ask(stack["DAGSTER_PORT"], question)["runOrError"])["status"] != "SUCCESS":
        assert time.monotonic() < deadline, run
        time.sleep(0.5)
    assert {"key": "billing/queue", "value": "billing"} in run["tags"]


@pytest.mark.slow
def test_when_a_part_dies_the_rest_is_stopped_and_named(stack, running):
    process, family = running
    next(member for member in family if "billing_pipeline.stripe_simulator" in member.cmdline()).kill()
    _, err = process.communicate(timeout=30)

    assert process.returncode == 1
    assert err.startswith("error: The Stripe simulator ended with exit code -9")
    assert err.count("\n") == 1
    assert left(family) == []


@pytest.mark.slow
def test_down_stops_up(stack, running):
    process, family = running

    assert billing_pipeline("down", **stack)[:2] == (0, "Stopped.\n")
    process.communicate(timeout=5)
    assert process.returncode == 128 + signal.SIGTERM
    assert left(family) == []
    assert billing_pipeline("down", **stack)[:2] == (0, "Nothing was running.\n")


@pytest.mark.slow
def test_down_stops_what_a_killed_up_left(stack, running):
    process, family = running
    process.kill()
    process.communicate()
    assert left(family) != []

    assert billing_pipeline("down", **stack)[:2] == (0, "Stopped.\n")
    assert left(family) == []
    assert not listens(stack["DAGSTER_PORT"])
    assert not listens(stack["SIMULATOR_PORT"])


def test_a_state_folder_that_cannot_be_used_is_one_sentence(stack):
    (stack["folder"] / "state").touch()
    code, out, err = billing_pipeline("up", **stack)

    assert (code, out) == (2, "")
    assert err.startswith("error: The state folder state cannot be used: File exists. Set BILLING_STATE_DIR")
    assert err.count("\n") == 1


@pytest.mark.parametrize("setting", ["DAGSTER_PORT", "SIMULATOR_PORT", "BILLING_INTAKE_PORT"])
def test_a_port_in_use_is_named_before_anything_starts(stack, setting):
    with socket.create_server(("127.0.0.1", stack[setting])):
        code, out, err = billing_pipeline("up", **stack)

    assert (code, out) == (2, "")
    assert err == (
        f"error: Port {stack[setting]} is in use. Stop the program that uses it, or set {setting} to a free port.\n"
    )
    assert not (stack["folder"] / "state" / "logs").exists()


def test_without_a_secret_of_the_real_stripe_there_is_no_intake_and_its_port_is_free_to_others():
    with_key = load_settings(stripe_secret_key="sk_test_0123456789abcdef")

    assert not serves_webhooks(with_key)
    assert serves_webhooks(load_settings())
    assert serves_webhooks(load_settings(stripe_secret_key="sk_test_0123456789abcdef", stripe_webhook_secret=SECRET))


def test_the_secret_of_this_machine_is_made_once(tmp_path):
    settings = load_settings(billing_state_dir=tmp_path / "state")
    made = local_secret(settings)

    assert local_secret(settings) == made
    assert len(made.removeprefix("whsec_")) == 48
    assert local_secret(load_settings(billing_state_dir=tmp_path / "other")) != made
    load_settings(stripe_webhook_secret=made)


def test_a_code_location_has_the_name_that_its_history_hangs_on():
    import yaml

    workspace = yaml.safe_load((REPOSITORY / "workspace.yaml").read_text())

    assert workspace["load_from"][0]["python_module"]["location_name"] == "billing_pipeline"
