"""Runs `billing-pipeline` the way a person does: as a process, in a folder of its own, without our environment."""

import os
import subprocess
import sys
from pathlib import Path

from billing_pipeline_tests.fix_simulator import RunningSimulator

COMMAND = "import sys; from billing_pipeline.cli.main import app, run\n"


def environment(**settings: object) -> dict[str, str]:
    """Ours, which the fixtures have cleaned of settings, with these on top."""
    return os.environ | {name: str(value) for name, value in settings.items()}


def start(*arguments: str, folder: Path, before: str = "", **settings: object) -> subprocess.Popen[str]:
    """Start the command; `before` is Python to run first, for instance to register one more command."""
    return subprocess.Popen(
        [sys.executable, "-c", f"{COMMAND}{before}\nrun()", *arguments],
        cwd=folder,
        env=environment(**settings),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def billing_pipeline(*arguments: str, folder: Path, before: str = "", **settings: object) -> tuple[int, str, str]:
    """Run the command to its end; returns its exit code, stdout and stderr."""
    process = start(*arguments, folder=folder, before=before, **settings)
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def live_against(simulator: RunningSimulator, *, folder: Path, database_url: str) -> dict[str, object]:
    """Where to run a command, and the settings that let it bill in earnest, against the simulator."""
    return {
        "folder": folder,
        "DATABASE_URL": database_url,
        "BILLING_STATE_DIR": "state",
        "STRIPE_API_BASE": simulator.url,
        "STRIPE_SECRET_KEY": simulator.key,
        "ENABLE_BILLING": "true",
        "BILLING_MODE": "live",
    }
