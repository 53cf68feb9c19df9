"""The preflight says what the stream lacks, before a client is answered 503."""

import pytest

from billing_pipeline.domain.probes import Result
from billing_pipeline.settings import load_settings
from billing_pipeline.usage.preflight.about_feed import billing_stream
from billing_pipeline.usage.preflight.site import Site

AWAY = "redis://:hunter2@127.0.0.1:1"
TOKEN = "a-token-of-the-web-app-0123456789"


def found(**given):
    return billing_stream(Site(lambda: load_settings(**given)))


@pytest.mark.parametrize(
    ("given", "result", "said"),
    [
        ({}, Result.PASS, "off"),
        ({"enable_billing_stream": True}, Result.FAIL, "neither BILLING_EVENTS_REDIS_URL nor REDIS_URL is set"),
        ({"enable_billing_stream": True, "redis_url": AWAY}, Result.FAIL, "BILLING_ACCESS_TOKEN is not set"),
        (
            {"enable_billing_stream": True, "redis_url": AWAY, "billing_access_token": TOKEN},
            Result.WARN,
            "Redis does not answer (ConnectionError)",
        ),
    ],
)
def test_a_stream_that_lacks_something_is_told(given, result, said):
    finding = found(**given)

    assert finding.result is result
    assert said in finding.found
    assert "hunter2" not in finding.found


def test_a_stream_that_has_all_it_needs_passes(redis):
    finding = found(enable_billing_stream=True, redis_url=redis.url, billing_access_token=TOKEN)

    assert (finding.result, finding.found) == (Result.PASS, "on; Redis answers")
