"""C19 and C20: nothing is given up for having failed often, and after an outage the nearest deadline goes first."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal

import pytest

from billing_pipeline.domain.entries import Outcome
from billing_pipeline.domain.windows import hour_of
from billing_pipeline.settings import load_settings
from billing_pipeline.stripe_api.meter_events import Answer
from billing_pipeline.usage import submit as submit_stage
from billing_pipeline.usage.flow import UsageFlow
from billing_pipeline.usage.gate import read_identity
from billing_pipeline.usage.submit import SubmitContext, submit
from billing_pipeline_tests.builders import billable_event
from billing_pipeline_tests.faults.conftest import usage
from billing_pipeline_tests.fix_proxy import Mishap
from billing_pipeline_tests.fix_sink import StandInSink

FAILURES = 1_000


class BusySink(StandInSink):
    """Stripe's limiter: every request is answered 429."""

    async def send(self, events):
        return [Answer(Outcome.NOT_EXECUTED, 429, "rate_limit", "Too many requests")]


def cut(flow):
    flow.validate_contract()
    flow.aggregate()
    flow.cut()


@pytest.mark.slow
def test_c19_an_entry_that_failed_a_thousand_times_is_still_sent(world):
    flow = world.flow
    cut(flow)
    later = timedelta(0)
    start = flow.clock()
    context = SubmitContext(
        identity=read_identity(flow.connection),
        lease=flow.take_lease(),
        lease_ttl=timedelta(days=1),
        mark=flow.mark,
        times=flow.settings.protocol_times,
        concurrency=1,
        canary_customer=None,
        event_names=(),
    )
    for _ in range(FAILURES):
        report = submit(flow.connection, BusySink(), context, clock=lambda: start + later)  # noqa: B023
        assert report.not_executed == len(world.truth())
        later += timedelta(minutes=10, seconds=1)
    flow.give_lease_back()

    fences = flow.connection.execute("SELECT min(fence), max(fence) FROM ledger_entries").fetchone()
    assert fences == (FAILURES, FAILURES)
    world.pass_time(later)
    assert world.flush().submit.accepted == len(world.truth())
    world.require_truth()


def test_c20_after_an_outage_the_nearest_deadline_is_sent_first(world, proxy, monkeypatch):
    """Three deadlines: 20 h after a first attempt, 35 days after the slot, and, far off, neither."""
    connection = world.flow.connection
    proxy.mishap_of_send = dict.fromkeys(range(1, 10), Mishap.LOSE_REQUEST)
    cut(world.flow)
    through_proxy = load_settings(**world.settings.model_dump() | {"stripe_api_base": proxy.url})
    UsageFlow(connection, world.database_url, through_proxy, holder="test").submit()
    unknown = identifiers(connection)
    assert len(unknown) == 9
    # Usage of now, cut at the beginning of the outage ...
    world.record_usage(*usage(hours_ago=(6,)))
    cut(world.flow)
    fresh = identifiers(connection) - unknown
    world.pass_time(timedelta(hours=19, minutes=30))
    # ... and usage of long ago, cut at its end.
    long_ago = hour_of(world.flow.clock()) - timedelta(days=34, hours=20)
    world.record_usage(
        billable_event(
            quantity=Decimal(5), occurred_at=long_ago, recorded_at=world.flow.clock(), organization_id="acme"
        )
    )
    cut(world.flow)
    old = identifiers(connection) - unknown - fresh
    assert (len(fresh), len(old)) == (3, 1)
    # What is ambiguous was tried again all the time, the last time a minute ago.
    connection.execute(
        "UPDATE open_entries SET retry_at = %s WHERE retry_at IS NOT NULL",
        (world.flow.clock() - timedelta(minutes=1),),
    )
    monkeypatch.setattr(submit_stage, "BATCH_SIZE_MAX", 1)
    monkeypatch.setitem(world.flow.settings.__dict__, "stripe_max_concurrency", 1)

    world.flow.submit()

    arrived = [record["identifier"] for record in world.simulator.journal("meter_event")]
    ours = [identifier for identifier in arrived if identifier in unknown | old | fresh]
    assert len(ours) == 13
    assert [set(ours[:9]), set(ours[9:10]), set(ours[10:])] == [unknown, old, fresh]


def identifiers(connection):
    return {row[0] for row in connection.execute("SELECT identifier FROM ledger_entries")}
