"""Kills the flush of a simulated world at one of its steps, for good: nothing that follows is done.

A step is a statement, a request or a raise of the mark.  A death after a step is one before the next, except after a
request: Stripe has executed it and nobody has heard.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from billing_pipeline.database import queries
from billing_pipeline.usage import submit
from billing_pipeline.usage.mark import HighWaterMark
from billing_pipeline_tests.prove.direct import DirectHTTP

STATEMENTS = ("execute", "fetch", "fetch_dicts")


class InTurn(Executor):
    """Does at once what the product gives to its ledger thread, so that a seed runs the same way again."""

    def __init__(self, workers: int) -> None:
        assert workers == 1

    def submit(self, work: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        done: Future[Any] = Future()
        try:
            done.set_result(work(*args, **kwargs))
        except BaseException as exc:
            done.set_exception(exc)
        return done


class Crash(BaseException):
    """The process dies here; not an `Exception`, so that nothing of ours can handle it."""


@dataclass
class Death:
    """Where a flush shall die, and whether it came there.  `step` counts from 0; None lets it live."""

    step: int | None
    unheard: bool = False
    """At a request: when Stripe has executed it, instead of before."""
    died_at: str | None = None
    steps: Counter[str] = field(default_factory=Counter)
    _thread: int = field(default_factory=threading.get_ident)

    def __call__(self, name: str, act: Callable[[], Any]) -> Any:
        """Do a step, unless the process is dead or dies here."""
        if threading.get_ident() != self._thread:
            # What an earlier test left running in this process is no step of this flush.
            return act()
        if self.died_at:
            raise Crash
        if self.steps.total() == self.step:
            self.died_at = f"before {name}"
            if self.unheard and name == "request":
                self.died_at = "request executed, not heard"
                act()
            raise Crash
        self.steps[name] += 1
        return act()


@contextmanager
def dying(death: Death) -> Iterator[None]:
    """The product runs one step after the other, and dies where `death` says."""

    def of_statement(act: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: death(args[1], lambda: act(*args, **kwargs))

    def of_step(name: str, act: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args, **kwargs: death(name, lambda: act(*args, **kwargs))

    with ExitStack() as patched:
        patched.enter_context(patch.object(submit, "ThreadPoolExecutor", InTurn))
        for name in STATEMENTS:
            patched.enter_context(patch.object(queries, name, of_statement(getattr(queries, name))))
        patched.enter_context(patch.object(HighWaterMark, "raise_to", of_step("mark", HighWaterMark.raise_to)))
        patched.enter_context(patch.object(DirectHTTP, "begin", of_step("request", DirectHTTP.begin)))
        yield
