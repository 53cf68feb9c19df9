"""C14, the restore drill: a database brought back from a snapshot sends nothing twice and loses nothing.

Flush, snapshot the server's files, flush more, put the snapshot back, start again.
"""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest

from billing_pipeline.domain.adoption import Step
from billing_pipeline.errors import GateClosed, LedgerFrozen
from billing_pipeline.stripe_simulator.faults import Fault, FaultKind
from billing_pipeline.usage.adopt import adopt, release, require_settled
from billing_pipeline.usage.aggregate import Scope
from billing_pipeline.usage.flush import flush
from billing_pipeline_tests.builders import billable_event, copy_events, insert_events
from billing_pipeline_tests.fix_flow import counted_by_stripe

THIS_HOUR = datetime.now(UTC).replace(minute=0, second=0, microsecond=0)
HOUR = timedelta(hours=1)
ORGANIZATIONS = ("acme", "globex")


def usage(numbers, *, hours_ago, tag):
    return [
        billable_event(
            event_id=f"{tag}-{organization_id}-{number}-{hour}",
            organization_id=organization_id,
            quantity=Decimal(number + hour),
            occurred_at=THIS_HOUR - hour * HOUR + timedelta(minutes=number % 60),
            recorded_at=datetime.now(UTC),
        )
        for organization_id in ORGANIZATIONS
        for number in numbers
        for hour in hours_ago
    ]


def adopt_what_stripe_shows(drill):
    return adopt(
        drill.connection,
        drill.flow.summaries,
        catalogue=drill.flow.catalogue,
        mark=drill.flow.mark,
        since=THIS_HOUR - timedelta(days=2),
        actor="Ann",
        reason="disk failure",
        clock=drill.flow.clock,
    )


def recover(drill):
    """What two people do once the freeze has lasted long enough; returns the first one's report."""
    drill.pass_time(timedelta(hours=9, minutes=1))
    drill.flow.send_canaries_while_frozen()
    report = adopt_what_stripe_shows(drill)
    release(drill.connection, actor="Bob", reason="looked at the report", now=drill.flow.clock())
    return report


@pytest.mark.slow
def test_c14_a_restored_ledger_is_noticed_before_the_first_send_and_recovers_to_the_truth(drill, tmp_path):
    customers = drill.set_up(*ORGANIZATIONS)
    before = usage(range(3), hours_ago=(2, 3, 4), tag="before")
    insert_events(drill.connection, *before)
    flush(drill.flow)
    unsent = usage(range(3), hours_ago=(5,), tag="unsent")
    insert_events(drill.connection, *unsent)
    drill.flow.aggregate()
    drill.flow.cut()
    drill.snapshot(tmp_path / "snapshot")

    # The timeline that will be lost: it sends what was cut, late rows for old hours, and a new hour.
    after = usage(range(5), hours_ago=(2, 4), tag="late") + usage(range(2), hours_ago=(6,), tag="new")
    insert_events(drill.connection, *after)
    flush(drill.flow)
    assert drill.calls() > 0
    drill.restore(tmp_path / "snapshot")

    # Noticed before the first send, whoever tries.
    sent_before = drill.calls()
    for attempt in (flush, lambda flow: flow.submit(), lambda flow: flow.cut()):
        with pytest.raises(LedgerFrozen, match="restored from a backup"):
            attempt(drill.flow)
    assert drill.calls() == sent_before

    # Recovery waits for what may still be under way, and for a canary sent after the freeze.
    drill.flow.send_canaries_while_frozen()
    with pytest.raises(GateClosed, match="may still turn up"):
        require_settled(drill.connection, drill.settings.protocol_times, now=drill.flow.clock())
    drill.pass_time(timedelta(hours=9, minutes=1))
    with pytest.raises(GateClosed, match="Nobody has adopted"):
        release(drill.connection, actor="Ann", reason="x", now=drill.flow.clock())
    drill.flow.send_canaries_while_frozen()
    require_settled(drill.connection, drill.settings.protocol_times, now=drill.flow.clock())

    report = adopt_what_stripe_shows(drill)
    assert report.conflicts == ()
    assert report.count(Step.ADOPT, Step.REPLACE_AND_ADOPT) > 0
    with pytest.raises(GateClosed, match="a second person"):
        release(drill.connection, actor=" ann ", reason="mine", now=drill.flow.clock())
    with pytest.raises(LedgerFrozen):
        flush(drill.flow)
    release(drill.connection, actor="Bob", reason="looked at the report", now=drill.flow.clock())

    # The source was restored with the ledger, so the product replays what it recorded since.
    copy_events(drill.connection, after)
    drill.flow.aggregate(Scope.FULL)
    flush(drill.flow)
    flush(drill.flow)

    truth = Counter()
    for event in (*before, *unsent, *after):
        hour = event["occurred_at"].replace(minute=0)
        truth[(customers[event["organization_id"]], "prompt_tokens", hour)] += int(event["quantity"])
    assert counted_by_stripe(drill.simulator) == dict(truth)
    minutes = Counter(
        (record["customer"], record["event_name"], record["timestamp"])
        for record in drill.simulator.journal("meter_event")
    )
    assert max(minutes.values()) == 1, "no minute was ever counted twice"
    identifiers = [record["identifier"] for record in drill.simulator.journal("meter_event")]
    assert len(identifiers) == len(set(identifiers))


@pytest.mark.slow
def test_c14_what_the_lost_timeline_billed_a_former_customer_is_taken_back(drill, tmp_path):
    customers = drill.set_up("acme", "later")
    former, later = customers["acme"], customers["later"]
    drill.snapshot(tmp_path / "snapshot")
    sent = usage(range(3), hours_ago=(4,), tag="sent")[:3]
    insert_events(drill.connection, *sent)
    flush(drill.flow)
    drill.restore(tmp_path / "snapshot")

    # Before anybody recovers, the organization is given to another customer, for the lost hours too.
    drill.connection.execute("DELETE FROM customer_mappings WHERE organization_id = 'later'")
    drill.connection.execute(
        "UPDATE customer_mappings SET valid_during = tstzrange(NULL, %s) WHERE organization_id = 'acme'",
        (THIS_HOUR - 8 * HOUR,),
    )
    drill.connection.execute(
        "INSERT INTO customer_mappings (organization_id, stripe_customer_id, valid_during)"
        " VALUES ('acme', %s, tstzrange(%s, NULL))",
        (later, THIS_HOUR - 8 * HOUR),
    )
    with pytest.raises(LedgerFrozen):
        flush(drill.flow)
    recover(drill)
    copy_events(drill.connection, sent)
    flush(drill.flow, scope=Scope.FULL)
    flush(drill.flow, scope=Scope.FULL)

    counted = counted_by_stripe(drill.simulator)
    billed = dict.fromkeys((former, later), 0)
    for (customer, _, _), units in counted.items():
        billed[customer] += units
    assert billed == {former: 0, later: sum(int(event["quantity"]) for event in sent)}


@pytest.mark.slow
def test_c14_what_the_lost_timeline_took_back_within_the_hour_proves_nothing_that_is_sent_later(
    drill, tmp_path, monkeypatch
):
    customers = drill.set_up("acme")
    kept, event = usage([3, 7], hours_ago=(4,), tag="again")[:2]
    insert_events(drill.connection, kept)
    flush(drill.flow)
    drill.snapshot(tmp_path / "snapshot")
    insert_events(drill.connection, event)
    flush(drill.flow)
    drill.connection.execute("DELETE FROM billable_events WHERE event_id = %s", (event["event_id"],))
    # What is taken back waits until what was billed is confirmed.
    for _ in range(2):
        flush(drill.flow, scope=Scope.FULL)
        drill.pass_time(HOUR)
    cell = (customers["acme"], "prompt_tokens", event["occurred_at"].replace(minute=0))
    assert counted_by_stripe(drill.simulator)[cell] == int(kept["quantity"])
    drill.restore(tmp_path / "snapshot")
    with pytest.raises(LedgerFrozen):
        flush(drill.flow)
    recover(drill)

    # The row was right after all, and Stripe drops what it accepted: the minute of before must not stand for it.
    copy_events(drill.connection, [event])
    lost = Fault(FaultKind.ASYNC_SILENT_DROP)
    with monkeypatch.context() as bad_hour:
        bad_hour.setattr(
            drill.simulator.core._faults, "_plan", lambda _, sent: lost if sent.path.endswith("meter_events") else None
        )
        flush(drill.flow, scope=Scope.FULL)
    for _ in range(3):
        drill.pass_time(timedelta(hours=9, minutes=1))
        flush(drill.flow)

    assert counted_by_stripe(drill.simulator)[cell] == int(kept["quantity"] + event["quantity"])
    assert drill.connection.execute("SELECT frozen_reason FROM ledger_identity").fetchall() == [(None,)]


@pytest.mark.slow
def test_c14_the_same_backup_is_noticed_again_though_nothing_was_sent_since_its_recovery(drill, tmp_path):
    drill.set_up(*ORGANIZATIONS)
    insert_events(drill.connection, *usage(range(3), hours_ago=(2, 3), tag="before"))
    flush(drill.flow)
    drill.snapshot(tmp_path / "snapshot")
    insert_events(drill.connection, *usage(range(3), hours_ago=(4,), tag="after"))
    flush(drill.flow)
    drill.restore(tmp_path / "snapshot")
    with pytest.raises(LedgerFrozen, match="restored from a backup"):
        flush(drill.flow)
    drill.flow.send_canaries_while_frozen()
    first = recover(drill)

    # Longer than canaries are watched.
    drill.pass_time(timedelta(days=8))
    drill.restore(tmp_path / "snapshot")
    sent_before = drill.calls()

    with pytest.raises(LedgerFrozen, match="recovery 1 was made, but the ledger knows only 0"):
        drill.flow.submit()
    assert (first.epoch, drill.calls()) == (1, sent_before)
