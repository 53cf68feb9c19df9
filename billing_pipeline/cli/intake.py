"""The webhook intake as a part of `up`: `serve` in a process of its own, and the simulator told to send to it.

A real Stripe's secret is known to its owner alone, so with a Stripe key and without a secret there is no intake.
The simulator shows its secrets when the address is registered; they are kept in the state folder.
"""

from __future__ import annotations

import os
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
    """Where the secrets between the simulator and the intake are kept, separated by commas."""
    return settings.billing_state_dir / "webhook_secret"


def simulators_secrets(settings: Settings) -> str:
    """What the simulator signs with, having been told where the intake is; never shown."""
    from billing_pipeline.stripe_api.client import make_client
    from billing_pipeline.stripe_api.webhook_endpoints import is_registered, register

    url = f"http://127.0.0.1:{settings.billing_intake_port}/webhooks/stripe"
    client, path = make_client(settings), secret_file(settings)
    if not path.exists() or not is_registered(client, settings, url):
        # Secrets of an address that it had before stay good: what was signed with them may still be under way.
        before = path.read_text(encoding="ascii").split(",") if path.exists() else []
        _keep(path, [*register(client, settings, url), *before])
    return path.read_text(encoding="ascii")


def _keep(path: Path, secrets: list[str]) -> None:
    # Whole or not at all, and readable by us alone from its first byte.
    make_folder(path.parent)
    made = path.with_suffix(".new")
    made.unlink(missing_ok=True)
    with open(os.open(made, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600), "w") as file:
        file.write(",".join(secrets))
    made.rename(path)


@contextmanager
def running_intake(settings: Settings) -> Iterator[Child | None]:
    """`serve` as a child process, ready to store; None where it cannot know a secret.

    Raises `StripeUnavailable` where the simulator does not answer.
    """
    if not serves_webhooks(settings):
        yield None
        return
    # By environment: arguments can be read by every user of the machine.
    environment = {} if settings.webhook_secrets else {"STRIPE_WEBHOOK_SECRET": simulators_secrets(settings)}
    log = settings.billing_state_dir / "logs" / "webhook_intake.log"
    with child("The webhook intake", ["billing_pipeline.cli", "serve"], log=log, environment=environment) as started:
        wait_until_ready(started, f"http://127.0.0.1:{settings.billing_intake_port}/readyz", seconds=START_SECONDS)
        yield started
