"""Fixtures come from one plugin per concern; what every test has to leave as it was is looked at here."""

import logging

import hypothesis
import pytest

pytest_plugins = [
    "billing_pipeline_tests.fix_aggregation",
    "billing_pipeline_tests.fix_postgres",
    "billing_pipeline_tests.fix_simulator",
    "billing_pipeline_tests.fix_flow",
    "billing_pipeline_tests.fix_proxy",
    "billing_pipeline_tests.fix_trial",
    "billing_pipeline_tests.fix_pg_proxy",
    "billing_pipeline_tests.fix_renewal",
]

# How long an example takes says how busy the machine is; pytest's timeout ends what hangs.
hypothesis.settings.register_profile("without_deadline", deadline=None)
hypothesis.settings.load_profile("without_deadline")


@pytest.fixture(autouse=True)
def _the_log_stays_on():
    """A test that turned the log off for good would hide what the next one looks for."""
    yield
    assert logging.root.manager.disable == logging.NOTSET
