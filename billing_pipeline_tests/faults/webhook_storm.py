"""Deliveries of whole lives through real intakes that are killed again and again: is anything acknowledged and absent?

Two `serve` processes take what a few senders deliver as Stripe would: repeated, out of order, sent again until it is
answered, under secrets that are rolled, and some of it never.  Afterwards a sweep and a re-read find the rest.
The judge compares the rows with the simulated Stripe's own objects by plain code.
"""

from __future__ import annotations

import http.client
import queue
import random
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from billing_pipeline_tests.cli.command import environment
from billing_pipeline_tests.cli.test_up import free_port
from billing_pipeline_tests.fix_histories import MOVES, History, Step, play
from billing_pipeline_tests.signing import body_of, signature_header

SENDERS = 8
REACH = timedelta(days=28)
"""Only what is younger may be dropped: Stripe lists events for 30 days."""

BEHIND = timedelta(minutes=2)
"""What is younger is not dropped either: a sweep stays a minute behind Stripe's now, where the lives end."""

TROUBLES = ("kills", "worker_kills", "cuts", "restarts", "rolls")

QUIET = (0, 0, 0, 0, 0, 1, 60)
BUSY_MOVES = [move for move in MOVES if move not in ("next moment", "leave")]


def history_of(seed: int, events: int) -> History:
    """Lives of about so many events: a third of them over months, the rest within days."""
    dice = random.Random(seed)
    steps: list[Step] = []
    while len(steps) < events // 3:
        pause = dice.choice((0, 0, 0, 60, 3_600, 86_400))
        steps.append(Step(pause, dice.choice(list(MOVES)), dice.randrange(4), dice.randrange(60)))
    while len(steps) < events:
        steps.append(Step(dice.choice(QUIET), dice.choice(BUSY_MOVES), dice.randrange(4), dice.randrange(60)))
    return play(steps, old_percent=30, seed=seed)


@dataclass(frozen=True)
class Storm:
    """How bad it gets: parts of all deliveries, and how often what happens.

    An intake is killed, or the worker that only handles; the database cuts everybody off, or its server dies and comes
    back; the secret is rolled.
    """

    seed: int
    duplicated: float = 0.3
    reordered: float = 0.3
    dropped: float = 0.05
    kills: int = 5
    worker_kills: int = 0
    cuts: int = 3
    restarts: int = 0
    rolls: int = 3


@dataclass
class Account:
    """What happened, for the report and for the judge."""

    deliveries: int = 0
    happened: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    acknowledged: set[str] = field(default_factory=set)


def deliveries_of(history: History, storm: Storm) -> tuple[list[dict[str, Any]], int]:
    """The events as they will be sent, and how many never are."""
    dice = random.Random(storm.seed)
    newest = max(event["created"] for event in history.events)
    youth = newest - int(REACH.total_seconds())
    old = newest - int(BEHIND.total_seconds())
    kept = [e for e in history.events if not youth <= e["created"] < old or dice.random() >= storm.dropped]
    placed: list[tuple[float, dict[str, Any]]] = []
    for position, event in enumerate(kept):
        late = dice.uniform(0, 200) if dice.random() < storm.reordered else 0.0
        placed.append((position + late, event))
        if dice.random() < storm.duplicated:
            placed.append((position + dice.uniform(0, 300), event))
    placed.sort(key=lambda one: one[0])
    return [event for _, event in placed], len(history.events) - len(kept)


class Intakes:
    """Two `serve` processes on ports of their own; one may be killed and comes back with the secrets of then."""

    def __init__(self, folder: Path, settings: dict[str, object]) -> None:
        self._folder, self._settings = folder, settings
        self.secrets = ["whsec_secret0number0zero"]
        self.ports = [free_port(), free_port()]
        self._processes = [self._start(number) for number in (0, 1)]

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        secrets = ",".join(self.secrets[:2])
        settings = self._settings | {"BILLING_INTAKE_PORT": self.ports[number], "STRIPE_WEBHOOK_SECRET": secrets}
        command = [sys.executable, "-m", "billing_pipeline.cli", "serve"]
        with (self._folder / f"serve-{number}.log").open("ab") as log:
            return subprocess.Popen(
                command, cwd=self._folder, env=environment(**settings), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def kill(self, number: int) -> None:
        self._processes[number].kill()
        self._processes[number].wait()
        self._processes[number] = self._start(number)

    def roll(self) -> None:
        """A new secret, which signs beside the old one until the next; each intake learns it when it starts."""
        self.secrets.insert(0, f"whsec_secret0number0{len(self.secrets)}xyz")
        for number in (0, 1):
            self.kill(number)

    def stop(self) -> None:
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            process.wait(timeout=60)


@contextmanager
def running_intakes(folder: Path, settings: dict[str, object]) -> Iterator[Intakes]:
    intakes = Intakes(folder, settings)
    try:
        yield intakes
    finally:
        intakes.stop()


class DispatchWorker:
    """A process that only handles; killed and started again."""

    def __init__(self, folder: Path, settings: dict[str, object]) -> None:
        self._folder, self._settings = folder, settings
        self._start()

    def _start(self) -> None:
        command = [sys.executable, "-m", "billing_pipeline_tests.faults.dispatch_worker"]
        with (self._folder / "dispatch.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, env=environment(**self._settings), stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )

    def __enter__(self) -> DispatchWorker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()
        self._start()


def deliver(
    events: Sequence[dict[str, Any]], storm: Storm, intakes: Intakes, troubles: Mapping[str, Callable[[], None]]
) -> Account:
    """Send everything until it is answered 2xx, while the troubles strike in random order, evenly spread."""
    account, waiting = Account(deliveries=len(events)), queue.Queue[dict[str, Any]]()
    for event in events:
        waiting.put(event)
    senders = [threading.Thread(target=_send, args=(intakes, waiting, account, n)) for n in range(SENDERS)]
    with ExitStack() as stack:
        for sender in senders:
            sender.start()
            stack.callback(sender.join)
        _make_trouble(waiting, account, storm, troubles)
    return account


def _make_trouble(
    waiting: queue.Queue[dict[str, Any]], account: Account, storm: Storm, troubles: Mapping[str, Callable[[], None]]
) -> None:
    dice = random.Random(f"trouble {storm.seed}")
    order = [name for name in TROUBLES for _ in range(getattr(storm, name))]
    dice.shuffle(order)
    for number, name in enumerate(order):
        left = account.deliveries * (len(order) - number) // (len(order) + 1)
        while waiting.qsize() > left:
            time.sleep(0.01)
        troubles[name]()
        account.happened[name] += 1


def _send(intakes: Intakes, waiting: queue.Queue[dict[str, Any]], account: Account, number: int) -> None:
    dice = random.Random(number)
    while True:
        try:
            event = waiting.get_nowait()
        except queue.Empty:
            return
        if not _posted(intakes, event, dice.randrange(2), account):
            time.sleep(0.05)
            waiting.put(event)


def _posted(intakes: Intakes, event: dict[str, Any], intake: int, account: Account) -> bool:
    body = body_of(event)
    headers = {"Stripe-Signature": signature_header(body, *intakes.secrets[:2]), "Content-Type": "application/json"}
    client = http.client.HTTPConnection("127.0.0.1", intakes.ports[intake], timeout=30)
    try:
        client.request("POST", "/webhooks/stripe", body, headers)
        answer = client.getresponse()
        answer.read()
    except (OSError, http.client.HTTPException):
        return False
    finally:
        client.close()
    if answer.status in (200, 202):
        account.acknowledged.add(event["id"])
        return True
    account.refused += answer.status < 500
    return False
