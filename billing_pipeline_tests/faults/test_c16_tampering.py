"""C16: an amount that somebody changes or removes by hand is refused, and where the guards are taken away, named.

The guards themselves are proved one by one in `database/test_guards.py`.
"""

from __future__ import annotations

import pytest
from psycopg.errors import IntegrityConstraintViolation

from billing_pipeline.reconciliation.invariants import violations
from billing_pipeline.reconciliation.reconcile import reconcile


def take_guards_away(connection):
    """What the owner of the tables can always do."""
    connection.execute("ALTER TABLE ledger_entries DISABLE TRIGGER USER")
    connection.execute("ALTER TABLE attempts DISABLE TRIGGER USER")
    connection.execute("ALTER TABLE evidence DISABLE TRIGGER USER")


def named(world):
    mark = world.flow.mark.read().attempt_id
    now = world.flow.clock()
    found = violations(world.flow.connection, settings=world.settings, mark=mark, now=now)
    faults = reconcile(world.flow.connection, settings=world.settings, now=now).faults
    return {violation.invariant for violation in found} | {f"reconcile {fault.kind}" for fault in faults}


@pytest.mark.parametrize(
    "edit",
    [
        "UPDATE ledger_entries SET value = value + 1",
        "UPDATE ledger_entries SET state = 'pending'",
        "DELETE FROM ledger_entries",
        "UPDATE attempts SET outcome = 'rejected'",
        "DELETE FROM attempts",
        "UPDATE evidence SET observed = observed + 1",
        "DELETE FROM evidence",
    ],
)
def test_c16_an_edit_of_the_ledger_by_hand_is_refused(world, edit):
    world.flush()

    with pytest.raises(IntegrityConstraintViolation):
        world.flow.connection.execute(edit)

    assert named(world) == set()


@pytest.mark.parametrize(
    "edit",
    [
        "UPDATE ledger_entries SET value = value + 1 WHERE entry_id = %(entry_id)s",
        "UPDATE ledger_entries SET value = value + 1 WHERE entry_id = %(entry_id)s;"
        " UPDATE evidence SET observed = observed + 1 WHERE entry_id = %(entry_id)s",
        "DELETE FROM attempts WHERE entry_id = %(entry_id)s",
        "DELETE FROM evidence WHERE entry_id = %(entry_id)s",
        "DELETE FROM evidence WHERE entry_id = %(entry_id)s; DELETE FROM attempts WHERE entry_id = %(entry_id)s;"
        " DELETE FROM ledger_entries WHERE entry_id = %(entry_id)s",
    ],
)
def test_c16_an_edit_behind_the_guards_is_named(world, edit):
    world.flush()
    connection = world.flow.connection
    entry_id = connection.execute("SELECT max(entry_id) FROM ledger_entries").fetchone()[0]
    take_guards_away(connection)

    for statement in edit.split(";"):
        connection.execute(statement, {"entry_id": entry_id})

    assert named(world) != set()
