"""The ledger's tables in memory, for the state machine: rows, transactions, crashes, and what was committed when.

The stages of the usage flow run on it as they are; the named statements they ask for are looked up in `STATEMENTS`
(`memory_statements.py`, `memory_evidence.py`).  It stores and decides nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch
from uuid import UUID

from psycopg import OperationalError
from psycopg.pq import TransactionStatus

from billing_pipeline.database import queries
from billing_pipeline.usage import send, submit

Row = dict[str, Any]
Statement = Callable[["MemoryLedger", Mapping[str, Any]], list[Row]]
STATEMENTS: dict[str, Statement] = {}
FOREVER = datetime.max.replace(tzinfo=UTC)
TABLES = ("windows", "entries", "attempts", "canaries", "summaries", "lanes")
READING = {
    *("database_identity", "facts_for_cut", "lock_windows_due_for_cut"),
    *("lock_held_windows", "taken_back_by_meter", "added_by_meter", "windows_on_hold"),
}
"""A transaction of nothing but these needs no copy to go back to, which is what costs most."""


class Crash(BaseException):
    """The process dies here; not an `Exception`, so that nothing of the product can handle it."""


class ConstraintBroken(Exception):
    """What the database would refuse by a constraint."""


def statement(function: Statement) -> Statement:
    """Register a statement under its function's name, which is its name in `database/sql`."""
    STATEMENTS[function.__name__] = function
    return function


@dataclass
class Source:
    """The team's own rows and the mapping: nothing that a restore of the ledger takes back."""

    rows: dict[int, Row] = field(default_factory=dict)
    mappings: list[Row] = field(default_factory=list)

    def mapping_at(self, organization_id: str, at: datetime) -> Row:
        """Who is billed for an organization at an instant."""
        return next(
            m
            for m in self.mappings
            if m["organization_id"] == organization_id and m["valid_from"] <= at < m["valid_until"]
        )


@dataclass
class Witness:
    """What was committed, whatever became of the ledger since: attempts by identifier and fence, and every move."""

    committed: dict[tuple[str, int], datetime] = field(default_factory=dict)
    moves: list[tuple[str, str]] = field(default_factory=list)


class MemoryLedger:
    """A connection to one ledger; `restored` makes another one from a copy and closes this."""

    def __init__(self, source: Source, witness: Witness) -> None:
        self.source, self.witness = source, witness
        self.windows: dict[int, Row] = {}
        self.entries: dict[int, Row] = {}
        self.attempts: dict[int, Row] = {}
        self.canaries: dict[int, Row] = {}
        self.summaries: dict[Any, Row] = {}
        self.lanes: dict[Any, Row] = {}
        self.seals: list[Row] = []
        self.operations: list[Row] = []
        self.identity: Row = {
            "ledger_id": UUID(int=1),
            "stripe_account": "acct_memory",
            "livemode": False,
            "epoch": 0,
            "database_system_id": None,
            "database_timeline": None,
            "frozen_reason": None,
            "frozen_at": None,
        }
        self.attempt_number = 0
        self.info = SimpleNamespace(transaction_status=TransactionStatus.IDLE)
        self.isolation_level = None
        self.closed = False
        self._ids = count(1)
        self._steps_left: int | None = None
        self._depth = 0
        self._before: Row | None = None
        self._written: dict[tuple[str, int], datetime] = {}

    def new_id(self) -> int:
        """The next number of any table, never used again."""
        return next(self._ids)

    def write_attempt(self, identifier: str, fence: int, now: datetime) -> None:
        """Note an attempt, or a canary, for the witness; it counts from the commit on."""
        self._written[identifier, fence] = now

    def move(self, entry: Row, state: str) -> None:
        """Change an entry's state, in sight of the witness."""
        if entry["state"] != state:
            self.witness.moves.append((entry["state"], state))
        entry["state"] = state
        if state not in ("pending", "ambiguous"):
            entry["retry_at"] = FOREVER

    def run(self, name: str, params: Mapping[str, Any] | None) -> list[Row]:
        """Answer a named statement."""
        with self.step():
            if name not in READING:
                self.begin_to_write()
            rows = STATEMENTS[name](self, params or {})
            if self._depth == 0:
                self._commit()
        return rows

    @contextmanager
    def step(self) -> Iterator[None]:
        """One thing that is done wholly or not at all; the process may die before it or after it."""
        if self.closed:
            raise OperationalError("the connection is closed")
        last = self._steps_left == 0
        # Half of all deaths come when the deed is done and nobody has heard of it.
        if last and not self._dies_after:
            raise Crash
        yield
        if last:
            raise Crash
        if self._steps_left:
            self._steps_left -= 1

    @contextmanager
    def dying_at(self, step: int | None) -> Iterator[None]:
        """The process dies at its nth step (before it if even, after it if odd), if it comes so far."""
        self._steps_left, self._dies_after = (None, False) if step is None else (step // 2, step % 2 == 1)
        try:
            yield
        finally:
            self._steps_left = None

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All or nothing."""
        self._depth += 1
        try:
            yield
        except BaseException:
            if self._depth == 1 and self._before is not None:
                self._put_back(self._before)
                self._written.clear()
            raise
        finally:
            self._depth -= 1
            if self._depth == 0:
                self._before = None
        if self._depth == 0:
            self._commit()

    def begin_to_write(self) -> None:
        """Within a transaction, keep what was there before the first change of it."""
        if self._depth and self._before is None:
            self._before = self.copy()

    def copy(self) -> Row:
        """All that is stored."""
        stored = {name: {key: dict(row) for key, row in getattr(self, name).items()} for name in TABLES}
        plain = {"seals": list(self.seals), "operations": list(self.operations), "identity": dict(self.identity)}
        return stored | plain | {"attempt_number": self.attempt_number}

    def restored(self, stored: Row) -> MemoryLedger:
        """Another database with what was stored once; this one's connection is gone."""
        self.closed = True
        other = MemoryLedger(self.source, self.witness)
        other._ids = self._ids
        other._put_back(stored)
        other._put_back(other.copy())
        return other

    def _put_back(self, stored: Row) -> None:
        for name, value in stored.items():
            setattr(self, name, value)

    def _commit(self) -> None:
        self.witness.committed.update(self._written)
        self._written.clear()


class BootClock:
    """The clock that nobody can set, of whichever machine runs now."""

    read: Callable[[], int] = staticmethod(lambda: 0)


@contextmanager
def in_memory() -> Iterator[None]:
    """The product's named statements are answered by the connection itself, and its boot clock is the machine's."""

    def fetch(connection: MemoryLedger, name: str, row: Any, params: Any = None, *, parts: Any = None) -> list[Any]:
        return [row(**found) for found in connection.run(name, params)]

    def fetch_dicts(connection: MemoryLedger, name: str, params: Any = None, *, parts: Any = None) -> list[Row]:
        return connection.run(name, params)

    def execute(connection: MemoryLedger, name: str, params: Any = None, *, parts: Any = None) -> int:
        return len(connection.run(name, params))

    with ExitStack() as stack:
        for name, function in (("fetch", fetch), ("fetch_dicts", fetch_dicts), ("execute", execute)):
            stack.enter_context(patch.object(queries, name, function))
        for module in (send, submit):
            stack.enter_context(patch.object(module, "boot_nanoseconds", lambda: BootClock.read()))
        stack.callback(logging.disable, logging.root.manager.disable)
        logging.disable(logging.WARNING)
        yield
