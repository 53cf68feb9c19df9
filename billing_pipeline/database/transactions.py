"""Runs one whole transaction again when PostgreSQL breaks it off for the sake of another.

A deadlock (40P01) or a serialization failure (40001) undoes everything since BEGIN, so the retry begins there too and
the work reads everything anew.  Used wherever transactions of the pipeline may meet.
`all_or_nothing` makes the transactions of several stages one, for a plan, which undoes it, and for whoever keeps to it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, TypeVar
from weakref import WeakSet

from psycopg import Connection, IsolationLevel
from psycopg.errors import DeadlockDetected, SerializationFailure
from psycopg.pq import TransactionStatus

from billing_pipeline.errors import DatabaseUnavailable

Result = TypeVar("Result")

TRIES_MAX = 5
PAUSE_SECONDS_MAX = 1.0
"""Longest pause between tries; the first is at most an eighth of it."""

_joined: WeakSet[Connection[Any]] = WeakSet()
"""Connections inside `all_or_nothing`."""


def in_transaction(
    connection: Connection[Any],
    work: Callable[[], Result],
    *,
    name: str,
    isolation: IsolationLevel | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Result:
    """What `work` returns, committed; `name` says in the error what could not be done.

    `work` runs up to five times, so it must do nothing that a rollback does not undo.  With `isolation`, the
    transaction has that level instead of the server's.
    Raises `DatabaseUnavailable` when other writers break off every try, and `RuntimeError` inside a transaction,
    where beginning again is not possible.  Inside `all_or_nothing` the work is a part of that, done once.
    """
    return _until_it_holds(connection, partial(_once, connection, work, isolation), work, name, sleep)


def in_statement(connection: Connection[Any], work: Callable[[], Result], *, name: str) -> Result:
    """What `work` returns, committed, where it is a single statement: that needs no BEGIN and no COMMIT to wait for.

    Otherwise like `in_transaction`.
    """
    return _until_it_holds(connection, work, work, name, time.sleep)


@contextmanager
def all_or_nothing(
    connection: Connection[Any], *, name: str, isolation: IsolationLevel | None = None
) -> Iterator[None]:
    """One transaction of everything in the block; an exception undoes all of it.

    Raises `DatabaseUnavailable` when another writer breaks it off: the block cannot be run again from here.
    """
    usual = connection.isolation_level
    connection.isolation_level = isolation or usual
    _joined.add(connection)
    try:
        with connection.transaction():
            yield
    except (SerializationFailure, DeadlockDetected):
        raise DatabaseUnavailable(f"{name} met concurrent changes; nothing was changed. Run it again.") from None
    finally:
        _joined.discard(connection)
        if not connection.closed:
            connection.isolation_level = usual


def _until_it_holds(
    connection: Connection[Any],
    once: Callable[[], Result],
    joined: Callable[[], Result],
    name: str,
    sleep: Callable[[float], None],
) -> Result:
    if connection in _joined:
        return joined()
    # A connection that was lost has no status, and says so itself.
    if connection.info.transaction_status not in (TransactionStatus.IDLE, TransactionStatus.UNKNOWN):
        raise RuntimeError(f"{name} is a transaction of its own and cannot run inside another one")
    for number in range(TRIES_MAX):
        if number:
            # At random, so that two that met do not meet again in step.
            sleep(random.uniform(0, PAUSE_SECONDS_MAX * 2.0 ** (number - TRIES_MAX + 1)))
        try:
            return once()
        except (SerializationFailure, DeadlockDetected):
            continue
    raise DatabaseUnavailable(
        f"{name} met concurrent changes {TRIES_MAX} times in a row; nothing was changed. Run it again."
    )


def _once(connection: Connection[Any], work: Callable[[], Result], isolation: IsolationLevel | None) -> Result:
    usual = connection.isolation_level
    connection.isolation_level = isolation or usual
    try:
        with connection.transaction():
            return work()
    finally:
        if not connection.closed:
            connection.isolation_level = usual
