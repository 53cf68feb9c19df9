"""Table G as a whole: deliveries through intakes that die, and rows that equal Stripe's in the end."""

import pytest

from billing_pipeline_tests.faults import storm_run
from billing_pipeline_tests.faults.storm_run import weather
from billing_pipeline_tests.faults.webhook_storm import Storm

pytestmark = pytest.mark.slow


@pytest.mark.timeout(600)
def test_g_nothing_acknowledged_is_lost_and_the_rows_equal_stripes(tmp_path, database_url):
    run = weather(Storm(seed=1, worker_kills=3), 900, tmp_path, database_url)

    assert run.wrong == ()
    assert run.happened == {"kills": 5, "worker_kills": 3, "cuts": 3, "rolls": 3}
    assert run.deliveries > 700
    assert run.dropped > 10
    assert run.acknowledged == run.events - run.dropped


@pytest.mark.timeout(600)
def test_the_judge_sees_an_event_that_was_acknowledged_and_lost(tmp_path, database_url, monkeypatch):
    heal = storm_run._heal

    def loses_one(flow, history):
        swept = heal(flow, history)
        flow.connection.execute(
            "UPDATE subscriptions SET status = 'canceled' WHERE stripe_subscription_id = "
            "(SELECT min(stripe_subscription_id) FROM subscriptions WHERE status <> 'canceled')"
        )
        flow.connection.execute("ALTER TABLE stripe_events DISABLE TRIGGER USER")
        flow.connection.execute("DELETE FROM event_dispatches")
        flow.connection.execute(
            "DELETE FROM stripe_events WHERE stripe_event_id = (SELECT max(stripe_event_id) FROM stripe_events)"
        )
        return swept

    monkeypatch.setattr(storm_run, "_heal", loses_one)
    run = weather(Storm(seed=2, kills=0, cuts=0, rolls=0, dropped=0), 60, tmp_path, database_url)

    assert any(what.startswith("acknowledged and absent: 1 (evt_") for what in run.wrong)
    assert "subscriptions differ from Stripe's" in run.wrong
