"""The process in which `serve` handles what it has stored, and how the two talk.

Beside the intake in one interpreter, a thread that computes keeps each delivery waiting.  Here it has its own, at a
lower priority, so on a busy machine handling gives way to what is not stored yet.
Its standard input is held open by `serve` for as long as it is wanted, so it ends with a `serve` that was killed, and
tells it when deliveries crowd; on its standard output it says what to count.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import select
import signal
import sys
import threading
import time
from asyncio.subprocess import PIPE, Process
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from billing_pipeline.errors import BillingError
from billing_pipeline.settings import Settings, load_settings
from billing_pipeline.webhooks.metrics import RESULT_OF_OUTCOME, WebhookMetrics, WebhookResult

MODULE = "billing_pipeline.cli.handler_process"
"""By which it is started; there its own name is `__main__`."""

logger = logging.getLogger(MODULE)

NICENESS = 19
"""It gets the processor time that nobody else wants: what is stored can wait, and an answer cannot.  On a machine that
is busy for long, the Dagster job takes over what was not handled in time."""

TELL_SECONDS = 0.2
LOOK_SECONDS = 0.05
CROWDED, QUIET = b"c", b"q"
"""What `serve` says: the last one holds."""

PATIENCE_SECONDS = 20
"""How long the step under way may take at the end; what it had claimed lapses if it is killed."""

PAUSE_SECONDS = 2.0
"""Before it is started again."""

LINE_BYTES_MAX = 1 << 20

Count = tuple[str, str, int]
"""Event type, result, and how many."""


@asynccontextmanager
async def handling(database_url: str, metrics: WebhookMetrics, is_crowded: Callable[[], bool]) -> AsyncIterator[None]:
    """Keep the process running for as long as the block does; what it has handled is counted in `metrics`.

    While `is_crowded` says so, it mostly waits.
    """
    stopping = asyncio.Event()
    keeping = asyncio.create_task(_keep_running(database_url, metrics, is_crowded, stopping))
    try:
        yield
    finally:
        stopping.set()
        await keeping


async def _keep_running(
    database_url: str, metrics: WebhookMetrics, is_crowded: Callable[[], bool], stopping: asyncio.Event
) -> None:
    while not stopping.is_set():
        try:
            ended = await _run(database_url, metrics, is_crowded, stopping)
        except Exception as exc:
            ended = f"could not be started or watched ({type(exc).__name__})"
        if not stopping.is_set():
            logger.error("The handling of webhooks %s; what is stored waits for it or for the Dagster job.", ended)
            with suppress(TimeoutError):
                await asyncio.wait_for(stopping.wait(), PAUSE_SECONDS)


async def _run(
    database_url: str, metrics: WebhookMetrics, is_crowded: Callable[[], bool], stopping: asyncio.Event
) -> str:
    """Start it once, until it ends or is to stop; tells how it ended."""
    # Its settings come from the environment, as ours did; only where the database is may be something we made.
    environment = os.environ | {"DATABASE_URL": database_url}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", MODULE, stdin=PIPE, stdout=PIPE, env=environment, limit=LINE_BYTES_MAX
    )
    counting = asyncio.create_task(_count(process, metrics))
    holding = asyncio.create_task(_hold_back(process, is_crowded))
    stopped = asyncio.create_task(stopping.wait())
    await asyncio.wait({counting, stopped}, return_when=asyncio.FIRST_COMPLETED)
    for task in (stopped, holding):
        task.cancel()
    # It says nothing more where it has ended; otherwise this asks it to.
    await _end(process)
    await counting
    return f"ended with exit code {process.returncode}"


async def _hold_back(process: Process, is_crowded: Callable[[], bool]) -> None:
    assert process.stdin is not None
    told = False
    while True:
        if is_crowded() is not told:
            told = not told
            with suppress(OSError, RuntimeError):  # it has just ended
                process.stdin.write(CROWDED if told else QUIET)
        await asyncio.sleep(LOOK_SECONDS)


async def _count(process: Process, metrics: WebhookMetrics) -> None:
    assert process.stdout is not None
    with suppress(ValueError):  # the last line of one that was killed may be half
        async for line in process.stdout:
            for event_type, result, times in json.loads(line):
                metrics.count(WebhookResult(result), event_type, times)


async def _end(process: Process) -> None:
    assert process.stdin is not None
    process.stdin.close()
    try:
        await asyncio.wait_for(process.wait(), PATIENCE_SECONDS)
    except TimeoutError:
        process.kill()
        await process.wait()


class Tally:
    """What was handled and not told yet; its methods may be called from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[tuple[str, str]] = Counter()

    def add(self, event_type: str, result: str) -> None:
        """One more."""
        with self._lock:
            self._counts[event_type, result] += 1

    def take(self) -> list[Count]:
        """All of it, which then is told."""
        with self._lock:
            counts, self._counts = self._counts, Counter()
        return [(event_type, result, times) for (event_type, result), times in counts.items()]


def main() -> None:
    """Handle webhooks until standard input is closed; exits 1 where it cannot begin."""
    from billing_pipeline.cli.log import log_to_stderr

    # Ctrl-C and a supervisor's signal reach the whole group; `serve` decides when this ends.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.nice(NICENESS)
    log_to_stderr(milestones=True, gathering=True)
    try:
        _handle(load_settings())
    except BillingError as exc:
        logger.error("Webhooks are not handled: %s", exc)
        sys.exit(1)


def _handle(settings: Settings) -> None:
    from billing_pipeline.database.location import resolve_database_url
    from billing_pipeline.orchestration.webhook_parts import make_steps
    from billing_pipeline.stripe_api.client import make_client
    from billing_pipeline.webhooks.worker import working

    tally = Tally()
    steps = make_steps(
        make_client(settings),
        settings,
        on_handled=lambda event_type, outcome: tally.add(event_type, RESULT_OF_OUTCOME[outcome].value),
        on_told=tally.add,
    )
    crowded = threading.Event()
    url = resolve_database_url(settings)
    with working(url, steps, is_crowded=crowded.is_set, patience=PATIENCE_SECONDS - 1):
        _serve_the_intake(crowded, tally.take)
    _tell(tally.take())


def _serve_the_intake(crowded: threading.Event, take: Callable[[], list[Count]]) -> None:
    """Listen and tell until nobody wants it any more."""
    tell_at = time.monotonic()
    while True:
        if select.select([sys.stdin], [], [], TELL_SECONDS)[0]:
            if not (said := os.read(0, 1_024)):
                return
            (crowded.set if said.endswith(CROWDED) else crowded.clear)()
        if (now := time.monotonic()) >= tell_at:
            tell_at = now + TELL_SECONDS
            if not _tell(take()):
                return


def _tell(counts: list[Count]) -> bool:
    """Whether anybody listens still."""
    if counts:
        try:
            os.write(1, json.dumps(counts).encode() + b"\n")
        except BrokenPipeError:
            return False
    return True


if __name__ == "__main__":
    main()
