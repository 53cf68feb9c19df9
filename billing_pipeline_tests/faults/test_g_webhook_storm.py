"""Table G as a whole: deliveries through intakes that die, and rows that equal Stripe's in the end."""

import pytest

from billing_pipeline.database.clock import DatabaseClock
from billing_pipeline.orchestration.webhook_flow import WebhookFlow
from billing_pipeline.settings import load_settings
from billing_pipeline_tests.faults.webhook_storm import Storm, deliver, deliveries_of, history_of, running_intakes
from billing_pipeline_tests.fix_simulator import KEY, running_simulator
from billing_pipeline_tests.webhooks.stripes_side import expected, found

pytestmark = pytest.mark.slow


def heal(flow, clock):
    """What the hourly jobs do: sweep, read again, and handle until nothing is left."""
    swept = flow.sweep()
    flow.reread()
    for _ in range(20):
        clock.advance(seconds=3)
        handled, asked = flow.dispatch()
        if not (handled.handled or asked.settled or asked.waiting or asked.failed):
            break
    return swept


@pytest.mark.timeout(600)
def test_g_nothing_acknowledged_is_lost_and_the_rows_equal_stripes(tmp_path, database_url, connection):
    storm = Storm(seed=1)
    history = history_of(storm.seed, 900)
    events, dropped = deliveries_of(history, storm)
    assert len(events) > 700
    assert dropped > 10

    with running_simulator(history.core) as simulator:
        settings = {
            "DATABASE_URL": database_url,
            "BILLING_STATE_DIR": "state",
            "STRIPE_API_BASE": simulator.url,
            "STRIPE_SECRET_KEY": KEY,
            # A claim that a killed worker left behind must lapse within the test.
            "BILLING_DISPATCH_SLA_SECONDS": 10,
            "STRIPE_TIMEOUT_SECONDS": 2,
        }
        with running_intakes(tmp_path, settings) as intakes:
            account = deliver(intakes, events, storm, connection)
        chosen = load_settings(
            database_url=database_url,
            stripe_api_base=simulator.url,
            stripe_secret_key=KEY,
            billing_dispatch_sla_seconds=10,
            stripe_timeout_seconds=2,
        )
        wait_for_claims(connection)
        flow = WebhookFlow(
            connection, chosen, simulator.client(), DatabaseClock(connection), lambda organizations: None
        )
        swept = heal(flow, history.clock)

    stored = {id for (id,) in connection.execute("SELECT stripe_event_id FROM stripe_events")}
    unhandled = connection.execute(
        "SELECT error_class, count(*) FROM stripe_events WHERE processed_at IS NULL GROUP BY 1"
    ).fetchall()
    assert (account.kills, account.cuts, account.rolls) == (5, 3, 3)
    assert account.refused == 0
    assert account.acknowledged <= stored
    assert swept.missing.total() == dropped
    assert {event["id"] for event in history.events} <= stored
    assert unhandled == []
    assert found(connection) == expected(history.final)


def wait_for_claims(connection):
    """Until what killed workers had claimed may be taken again."""
    connection.execute(
        "SELECT pg_sleep(greatest(extract(epoch FROM max(claimed_at) + interval '11 s' - clock_timestamp()), 0))"
        " FROM event_dispatches"
    )
