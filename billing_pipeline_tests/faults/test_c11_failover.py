"""C11: a promoted standby is another timeline, and may have lost the last attempts; nothing is sent from it unasked."""

from __future__ import annotations

import pytest

from billing_pipeline.errors import LedgerFrozen
from billing_pipeline.usage.flush import flush
from billing_pipeline_tests.builders import insert_events
from billing_pipeline_tests.faults.conftest import usage

pytestmark = pytest.mark.slow


def begin(drill):
    drill.set_up("acme")
    insert_events(drill.connection, *usage(["acme"], hours_ago=(4,)))
    flush(drill.flow)


def test_c11_a_promoted_standby_that_lost_attempts_sends_nothing(drill, tmp_path):
    begin(drill)
    drill.snapshot(tmp_path / "standby")
    late = usage(["acme"], hours_ago=(3,))
    insert_events(drill.connection, *late)
    assert flush(drill.flow).submit.accepted == 1
    drill.restore(tmp_path / "standby", as_standby=True)
    sent = drill.calls()
    insert_events(drill.connection, *late)

    for _ in range(2):
        with pytest.raises(LedgerFrozen, match="restored from a backup"):
            flush(drill.flow)
    assert drill.calls() == sent


def test_c11_a_promotion_that_lost_nothing_is_noticed_at_once_by_its_timeline(drill, tmp_path):
    begin(drill)
    # What the standby replays keeps its first checkpoint busy for minutes, and pg_control is of before until then.
    drill.connection.execute(
        "CREATE TABLE public.ballast AS SELECT g, repeat('x', 500) FROM generate_series(1, 20000) g"
    )
    drill.snapshot(tmp_path / "standby", at_a_crash=True)
    drill.restore(tmp_path / "standby", as_standby=True)
    sent = drill.calls()
    insert_events(drill.connection, *usage(["acme"], hours_ago=(3,)))

    with pytest.raises(LedgerFrozen, match="timeline changed from 1 to 2: restored or promoted"):
        flush(drill.flow)
    assert drill.calls() == sent
