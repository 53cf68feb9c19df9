"""What the demo runs on: an emptied sandbox, a simulator of its own and a Dagster, on free ports.

The embedded PostgreSQL is a sandbox that `make up` shows afterwards.  With DATABASE_URL the demo makes a database of
its own beside the named one, which it never touches.  A live key is refused before anything starts.
"""

from __future__ import annotations

import json
import os
import socket
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from rich.console import Console

from billing_pipeline.cli.local_stack import running_simulator, simulator_journal
from billing_pipeline.cli.state_lock import only_one
from billing_pipeline.cli.up import prepare_dagster, project_folder, running_dagster
from billing_pipeline.database import queries
from billing_pipeline.database.connection import connect, describe
from billing_pipeline.database.location import resolve_database_url, sibling, with_database
from billing_pipeline.database.migrate import migrate, start_over
from billing_pipeline.domain.source_columns import DEFAULT_RELATION
from billing_pipeline.errors import UserError
from billing_pipeline.settings import SIMULATOR_KEY, Settings, load_settings

DEMO_TAGS = {"billing/demo": "1", "dagster/max_retries": "0"}
"""What the demo's runs are found by in Dagster's UI, and by the next demo.

They are not retried: the daemon of the next demo would start a killed run again and bill beside it.
"""


@dataclass(frozen=True, slots=True)
class DemoStack:
    """What is running: settings that point at it, and the database's URL."""

    settings: Settings
    database_url: str

    def counted_meter_events(self, group: str) -> list[dict[str, Any]]:
        """What the simulator's journal says it counted, summed by `group`."""
        request = urllib.request.Request(
            f"{self.settings.stripe_base_addresses['api']}/_journal/meter_events?group={group}",
            headers={"Authorization": f"Bearer {self.settings.stripe_key}"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            rows: list[dict[str, Any]] = json.load(answer)["data"]
        return rows


@contextmanager
def demo_stack(settings: Settings, *, fresh: bool, console: Console) -> Iterator[DemoStack]:
    """Everything the demo needs, started on free ports and stopped afterwards.

    Raises `UserError` beside a live key, beside a running `up`, or when the sandbox holds other usage.
    """
    if settings.livemode:
        raise UserError("The demo does not run beside a live Stripe key. Unset STRIPE_SECRET_KEY for it.")
    project = project_folder()
    with ExitStack() as running:
        if running.enter_context(only_one(_state_dir(settings))):
            console.print("What a killed run had left behind was stopped.", style="dim")
        with console.status("Starting PostgreSQL, the Stripe simulator and Dagster ..."):
            database_url = _empty_database(settings, fresh=fresh)
            environment = _environment(settings, database_url)
            demo = load_settings(**{name.lower(): value for name, value in environment.items()})
            for remains in (simulator_journal(demo), demo.billing_state_dir / "high_water_mark.json"):
                remains.unlink(missing_ok=True)
            _cancel_interrupted_runs(demo, project)
            running.enter_context(running_simulator(demo))
            running.enter_context(running_dagster(demo, project, environment))
        yield DemoStack(demo, database_url)


def _state_dir(settings: Settings) -> Path:
    return settings.billing_state_dir if settings.database_url is None else settings.billing_state_dir / "demo"


def _cancel_interrupted_runs(demo: Settings, project: Path) -> None:
    """Before the daemon is up, which would start what is still queued, and so bill beside this demo."""
    from billing_pipeline.orchestration.launch import cancel_unfinished

    own = prepare_dagster(demo, project)
    before = {name: os.environ.get(name) for name in own}
    os.environ.update(own)  # dagster.yaml takes the database's address from there only
    try:
        cancel_unfinished(Path(own["DAGSTER_HOME"]), DEMO_TAGS)
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def _environment(settings: Settings, database_url: str) -> dict[str, str]:
    """Every setting that a person's environment could bend, as the demo's processes shall see it."""
    simulator_port, dagster_port = _free_ports(2)
    stripe = f"http://127.0.0.1:{simulator_port}"
    state_dir = _state_dir(settings)
    packaged = resources.files("billing_pipeline.usage") / "default_meters.toml"
    return {
        "DATABASE_URL": database_url,
        "DAGSTER_DATABASE_URL": with_database(database_url, sibling(database_url, "dagster", setting="DATABASE_URL")),
        "BILLING_STATE_DIR": str(state_dir.absolute()),
        "BILLING_SOURCE_RELATION": DEFAULT_RELATION,
        # Not empty, which a .env file could fill: it maps nothing.
        "BILLING_SOURCE_COLUMNS": "event_id=event_id",
        "BILLING_METERS_FILE": str(packaged),
        # The sample ends with the last full hour, so that every window of it has closed.
        "BILLING_WINDOW_GRACE_SECONDS": "0",
        "ENABLE_BILLING": "true",
        "STRIPE_BILLING_ENABLED": "true",
        "BILLING_MODE": "live",
        "STRIPE_SECRET_KEY": SIMULATOR_KEY,
        "STRIPE_API_BASE": stripe,
        "STRIPE_METER_EVENTS_BASE": stripe,
        "STRIPE_METER_SINK": "v1",
        # A sandbox's 25 a second would make a minute of the first flush; the simulator has no such limit.
        "STRIPE_METER_EVENTS_PER_SECOND": "1000",
        "STRIPE_BILLING_CONTRACT_LOOKBACK_DAYS": "30",
        "STRIPE_BILLING_CONTRACT_FAIL_CLOSED": "false",
        "BILLING_MARK_URL": (state_dir.absolute() / "high_water_mark.json").as_uri(),
        "SIMULATOR_PORT": str(simulator_port),
        "DAGSTER_PORT": str(dagster_port),
    }


def _free_ports(count: int) -> list[int]:
    with ExitStack() as probes:
        sockets = [probes.enter_context(socket.socket()) for _ in range(count)]
        for probe in sockets:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in sockets]


def _empty_database(settings: Settings, *, fresh: bool) -> str:
    url = resolve_database_url(settings)
    if settings.database_url is not None:
        url = with_database(url, sibling(url, "demo", setting="DATABASE_URL"))
    migrate(url, create_source=True)
    with connect(url) as connection:
        source = {"source": queries.relation(DEFAULT_RELATION)}
        foreign = queries.fetch_dicts(connection, "foreign_rows", parts=source)[0]["rows"]
    if foreign and not fresh:
        raise UserError(
            f"The sandbox {describe(url)} holds {foreign:,} events that the demo did not make. "
            "Run `billing-pipeline demo --fresh` to drop them, or set BILLING_STATE_DIR to another folder."
        )
    start_over(url)
    return url
