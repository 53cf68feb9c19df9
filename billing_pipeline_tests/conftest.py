"""Fixtures come from one plugin per concern."""

pytest_plugins = [
    "billing_pipeline_tests.fix_aggregation",
    "billing_pipeline_tests.fix_postgres",
    "billing_pipeline_tests.fix_simulator",
    "billing_pipeline_tests.fix_flow",
    "billing_pipeline_tests.fix_proxy",
    "billing_pipeline_tests.fix_trial",
    "billing_pipeline_tests.fix_pg_proxy",
]
