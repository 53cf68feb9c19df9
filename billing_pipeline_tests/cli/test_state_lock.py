"""One holder per state folder; what a killed one left is stopped by the next, and nobody else's process ever is."""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from billing_pipeline.cli.state_lock import MARK, is_held, make_folder, only_one, stop_holder
from billing_pipeline.errors import UserError

HOLDER = """
import subprocess, sys, time
from pathlib import Path
from billing_pipeline.cli.state_lock import only_one

grandchild = "import signal, time; signal.signal(15, signal.SIG_IGN); print('up', flush=True); time.sleep(99)"
with only_one(Path(sys.argv[1])):
    child = subprocess.Popen([sys.executable, "-c", grandchild], stdout=subprocess.PIPE, start_new_session=True)
    child.stdout.readline()
    print(child.pid, flush=True)
    time.sleep(99)
"""


@pytest.fixture
def killed_holder(tmp_path):
    """The process that a killed holder of `tmp_path` left behind."""
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    leftover = psutil.Process(int(holder.stdout.readline()))
    assert is_held(tmp_path)
    holder.kill()
    holder.communicate()
    yield leftover
    if leftover.is_running():
        leftover.kill()


def sleeper(**environment: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(99)"], env=os.environ | environment)


@pytest.mark.slow
def test_the_next_holder_stops_what_a_killed_one_left(killed_holder, tmp_path):
    assert not is_held(tmp_path)
    assert killed_holder.is_running()

    with only_one(tmp_path) as stopped:
        assert stopped == 1
        assert not killed_holder.is_running()


@pytest.mark.slow
def test_down_stops_what_a_killed_one_left(killed_holder, tmp_path):
    assert stop_holder(tmp_path)

    assert not killed_holder.is_running()
    assert not stop_holder(tmp_path)


def test_a_process_without_our_mark_is_left_alone(tmp_path):
    others = [sleeper(), sleeper(**{MARK: str(tmp_path / "elsewhere")})]
    try:
        time.sleep(0.2)  # until the environment is that of the started program
        with only_one(tmp_path) as stopped:
            assert stopped == 0
        assert [other.poll() for other in others] == [None, None]
    finally:
        for other in others:
            other.kill()
            other.wait()


def test_two_holders_never_meet(tmp_path):
    with (
        only_one(tmp_path),
        pytest.raises(UserError, match=r"already running.*`make dev-down` stops it"),
        only_one(tmp_path),
    ):
        pytest.fail("it must not be held twice")

    assert MARK not in os.environ
    assert not is_held(tmp_path)


def test_a_folder_that_cannot_be_made_is_named_with_what_to_do(tmp_path: Path):
    (tmp_path / "file").touch()

    for use in (make_folder, lambda folder: only_one(folder).__enter__()):
        with pytest.raises(UserError, match=r"state folder .*file cannot be used: .*Set BILLING_STATE_DIR"):
            use(tmp_path / "file")
