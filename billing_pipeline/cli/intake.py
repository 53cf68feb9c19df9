"""The webhook intake as a part of `up`: `serve` in a process of its own, with a secret where none is configured.

A real Stripe's secret is known to its owner alone, so with a Stripe key and without a secret there is no intake.
The simulator takes any secret: one is made at random and kept in the state folder for whoever signs.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from billing_pipeline.cli.children import Child, child, wait_until_ready
from billing_pipeline.cli.local_stack import needs_simulator
from billing_pipeline.cli.state_lock import make_folder
from billing_pipeline.settings import Settings

START_SECONDS = 60


def serves_webhooks(settings: Settings) -> bool:
    """Whether `up` runs the intake: with a configured secret, or for the simulator."""
    return bool(settings.webhook_secrets) or needs_simulator(settings)


def secret_file(settings: Settings) -> Path:
    """Where the secret between the simulator and the intake is kept."""
    return settings.billing_state_dir / "webhook_secret"


def local_secret(settings: Settings) -> str:
    """The secret between the simulator and the intake of this machine, made when there is none; never shown."""
    make_folder(settings.billing_state_dir)
    path = secret_file(settings)
    if not path.exists():
        # Whole or not at all, and readable by us alone from its first byte.
        made = path.with_suffix(".new")
        made.unlink(missing_ok=True)
        with open(os.open(made, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
            file.write(f"whsec_{secrets.token_hex(24)}")
        made.rename(path)
    return path.read_text(encoding="ascii").strip()


@contextmanager
def running_intake(settings: Settings) -> Iterator[Child | None]:
    """`serve` as a child process, ready to store; None where it cannot know a secret."""
    if not serves_webhooks(settings):
        yield None
        return
    # By environment: arguments can be read by every user of the machine.
    environment = {} if settings.webhook_secrets else {"STRIPE_WEBHOOK_SECRET": local_secret(settings)}
    log = settings.billing_state_dir / "logs" / "webhook_intake.log"
    with child("The webhook intake", ["billing_pipeline.cli", "serve"], log=log, environment=environment) as started:
        wait_until_ready(started, f"http://127.0.0.1:{settings.billing_intake_port}/readyz", seconds=START_SECONDS)
        yield started
