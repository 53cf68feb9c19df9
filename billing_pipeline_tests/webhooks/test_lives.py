"""Whole lives of customers on a simulated Stripe end in rows that equal Stripe's, however their events arrive."""

import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from billing_pipeline.orchestration.webhook_parts import make_reader
from billing_pipeline.settings import load_settings
from billing_pipeline.webhooks.dispatch import Dispatcher
from billing_pipeline.webhooks.refetch import refetch_due
from billing_pipeline_tests.fix_histories import histories, random_history
from billing_pipeline_tests.fix_simulator import client_without_sockets
from billing_pipeline_tests.webhooks.events import store
from billing_pipeline_tests.webhooks.stripes_side import expected, found
from billing_pipeline_tests.webhooks.test_convergence import emptied

pytestmark = pytest.mark.slow


def lived(connection, history, deliveries):
    """Store the deliveries in this order, handle them in small batches, and ask Stripe until nothing is open."""
    emptied(connection)
    dispatcher = Dispatcher(connection, history.clock)
    for number, delivery in enumerate(deliveries):
        store(connection, [{**delivery, "id": f"evt_{number}"}], now=history.clock())
        if number % 7 == 6:
            dispatcher.run_once(limit=5)
    dispatcher.drain(events_max=100_000)
    read = make_reader(client_without_sockets(history.core), load_settings())
    for _ in range(10):
        history.clock.advance(seconds=3)
        if not any(
            (report.settled, report.waiting, report.failed) for report in [refetch_due(connection, read, history.clock)]
        ):
            break
    assert connection.execute("SELECT error, object_kind, reason FROM object_refetches").fetchall() == []
    assert connection.execute("SELECT error_class, processing_error FROM failed_stripe_events").fetchall() == []


@given(history=histories(), order=st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=40, suppress_health_check=list(HealthCheck))
def test_any_life_in_any_order_ends_as_stripe_has_it(connection, history, order):
    deliveries = [*history.events, *order.sample(history.events, len(history.events) // 3)]
    order.shuffle(deliveries)

    lived(connection, history, deliveries)

    assert found(connection) == expected(history.final)


@pytest.mark.parametrize("seed", range(3))
def test_a_long_life_ends_as_stripe_has_it(connection, seed):
    history = random_history(seed, 300)
    dice = random.Random(seed)
    deliveries = [*history.events, *dice.sample(history.events, len(history.events) // 3)]
    dice.shuffle(deliveries)
    assert len(deliveries) > 300

    lived(connection, history, deliveries)

    assert found(connection) == expected(history.final)
