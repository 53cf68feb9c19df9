"""One storm from its lives to its verdict: deliver, heal as the hourly jobs do, and compare with Stripe.

A test runs a small one; `make prove` runs ten thousand deliveries at a time, on a server of its own that dies too.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from psycopg import Connection

from billing_pipeline.database.clock import DatabaseClock
from billing_pipeline.database.connection import connect
from billing_pipeline.orchestration.webhook_flow import WebhookFlow
from billing_pipeline.settings import load_settings
from billing_pipeline.webhooks.sweep import SweepReport
from billing_pipeline_tests.faults.webhook_storm import (
    Account,
    DispatchWorker,
    Storm,
    deliver,
    deliveries_of,
    history_of,
    running_intakes,
)
from billing_pipeline_tests.fix_histories import History
from billing_pipeline_tests.fix_simulator import KEY, running_simulator
from billing_pipeline_tests.prove.kill_server import KillServer
from billing_pipeline_tests.webhooks.stripes_side import expected, found

SLA_SECONDS, TIMEOUT_SECONDS = 10, 2
"""A claim that a killed worker left behind must lapse within the run."""
NEW_EVENTS = 1.235
"""Deliveries of an event, on average: a twentieth is never delivered, three in ten of the others twice."""
SHOWN = 3


@dataclass(frozen=True)
class StormRun:
    """What a storm came to; `wrong` is empty when everything was right."""

    seed: int
    deliveries: int
    events: int
    dropped: int
    happened: dict[str, int]
    acknowledged: int
    seconds: float
    wrong: tuple[str, ...]


def run_storm(seed: int, deliveries: int, folder: Path) -> StormRun:
    """A storm on a PostgreSQL of its own: five kills of each process for every ten thousand deliveries."""
    tens = max(1, round(deliveries / 10_000))
    storm = Storm(seed, kills=5 * tens, worker_kills=5 * tens, cuts=tens, restarts=tens, rolls=tens)
    with closing(KillServer(folder / "server")) as server:

        def restart() -> None:
            server.stop_immediately()
            server.start()

        return weather(storm, round(deliveries / NEW_EVENTS), folder, server.url, restart)


def weather(
    storm: Storm, events: int, folder: Path, database_url: str, restart: Callable[[], None] | None = None
) -> StormRun:
    """Let the storm pass over a migrated, empty database; `restart` kills its server and brings it back."""
    began = time.monotonic()
    history = history_of(storm.seed, events)
    sent, dropped = deliveries_of(history, storm)
    with running_simulator(history.core) as simulator:
        settings: dict[str, object] = {
            "DATABASE_URL": database_url,
            "BILLING_STATE_DIR": folder / "state",
            "STRIPE_API_BASE": simulator.url,
            "STRIPE_SECRET_KEY": KEY,
            "BILLING_DISPATCH_SLA_SECONDS": SLA_SECONDS,
            "STRIPE_TIMEOUT_SECONDS": TIMEOUT_SECONDS,
        }
        with running_intakes(folder, settings) as intakes, _worker(folder, settings, storm) as worker:
            dice = random.Random(f"intake {storm.seed}")
            troubles = {
                "kills": lambda: intakes.kill(dice.randrange(2)),
                "worker_kills": worker.kill,
                "cuts": lambda: _cut(database_url),
                "restarts": restart or _no_server,
                "rolls": intakes.roll,
            }
            account = deliver(sent, storm, intakes, troubles)
        with connect(database_url) as connection:
            _wait_for_claims(connection)
            chosen = load_settings(
                database_url=database_url,
                stripe_api_base=simulator.url,
                stripe_secret_key=KEY,
                billing_dispatch_sla_seconds=SLA_SECONDS,
                stripe_timeout_seconds=TIMEOUT_SECONDS,
            )
            flow = WebhookFlow(
                connection, chosen, simulator.client(), DatabaseClock(connection), lambda organizations: None
            )
            swept = _heal(flow, history)
            wrong = tuple(_complaints(connection, history, account, swept, dropped))
    return StormRun(
        storm.seed,
        len(sent),
        len(history.events),
        dropped,
        dict(account.happened),
        len(account.acknowledged),
        time.monotonic() - began,
        wrong,
    )


class _NoWorker:
    """Where only the intakes handle."""

    def __enter__(self) -> _NoWorker:
        return self

    def __exit__(self, *_: object) -> None: ...

    def kill(self) -> None:
        raise AssertionError("there is no worker to kill")


def _worker(folder: Path, settings: dict[str, object], storm: Storm) -> Any:
    return DispatchWorker(folder, settings) if storm.worker_kills else _NoWorker()


def _no_server() -> None:
    raise AssertionError("there is no server to restart")


def _cut(database_url: str) -> None:
    with connect(database_url) as connection:
        connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
            "WHERE datname = current_database() AND pid <> pg_backend_pid() AND backend_type = 'client backend'"
        )


def _wait_for_claims(connection: Connection[Any]) -> None:
    """Until what killed workers had claimed may be taken again."""
    connection.execute(
        "SELECT pg_sleep(greatest(extract(epoch FROM max(claimed_at) + make_interval(secs => %s) - clock_timestamp()),"
        " 0)) FROM event_dispatches",
        (SLA_SECONDS + 1,),
    )


def _heal(flow: WebhookFlow, history: History) -> SweepReport:
    """What the hourly jobs do: sweep, read again, and handle until nothing is left."""
    swept = flow.sweep()
    flow.reread()
    for _ in range(20):
        history.clock.advance(seconds=3)
        handled, asked = flow.dispatch()
        if not (handled.handled or asked.settled or asked.waiting or asked.failed):
            break
    return swept


def _complaints(
    connection: Connection[Any], history: History, account: Account, swept: SweepReport, dropped: int
) -> list[str]:
    stored = {id for (id,) in connection.execute("SELECT stripe_event_id FROM stripe_events")}
    unhandled = connection.execute(
        "SELECT error_class, count(*) FROM stripe_events WHERE processed_at IS NULL GROUP BY 1"
    ).fetchall()
    seen, wanted = found(connection), expected(history.final)
    complaints = {
        f"acknowledged and absent: {_some(account.acknowledged - stored)}": account.acknowledged - stored,
        f"never stored: {_some({event['id'] for event in history.events} - stored)}": (
            {event["id"] for event in history.events} - stored
        ),
        f"{account.refused} deliveries refused": account.refused,
        f"the sweep found {swept.missing.total()} events, {dropped} were never delivered": (
            swept.missing.total() != dropped
        ),
        f"not handled: {unhandled}": unhandled,
    }
    complaints |= {f"{name} differ from Stripe's": seen[name] != wanted[name] for name in wanted}
    return [what for what, is_wrong in complaints.items() if is_wrong]


def _some(ids: set[str]) -> str:
    return f"{len(ids)} ({', '.join(sorted(ids)[:SHOWN])})"
