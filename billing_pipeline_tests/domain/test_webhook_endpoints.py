"""An endpoint that would not hear of everything is named, with what it does not hear."""

from __future__ import annotations

from dataclasses import replace

import pytest

from billing_pipeline.domain.envelope import PayloadStyle
from billing_pipeline.domain.webhook_endpoints import NEEDED_TYPES, Endpoint, endpoint_faults
from billing_pipeline.webhooks.handlers import HANDLERS

URL = "https://billing.example.com/webhooks/stripe"
REPORTS = ("v1.billing.meter.error_report_triggered",)
SNAPSHOTS = Endpoint("we_1", URL, PayloadStyle.SNAPSHOT, enabled=True, livemode=True, event_types=("*",))
THIN = Endpoint("ed_1", URL, PayloadStyle.THIN, enabled=True, livemode=True, event_types=REPORTS)


def faults(*endpoints):
    return endpoint_faults(endpoints, URL, livemode=True, thin_types=REPORTS)


def test_every_type_to_our_address_in_the_keys_mode_is_right():
    named = replace(SNAPSHOTS, event_types=NEEDED_TYPES)

    assert faults(SNAPSHOTS, THIN) == faults(named, THIN) == ()


def test_types_may_be_divided_among_endpoints_of_one_address():
    half = len(NEEDED_TYPES) // 2
    first, second = (replace(SNAPSHOTS, event_types=types) for types in (NEEDED_TYPES[:half], NEEDED_TYPES[half:]))

    assert faults(first, second, THIN) == ()


@pytest.mark.parametrize(
    ("endpoints", "words"),
    [
        ((), f"Stripe sends nothing to {URL} in live mode; endpoints it has elsewhere: 0"),
        ((replace(SNAPSHOTS, url=URL + "/"),), "endpoints it has elsewhere: 1"),
        ((replace(SNAPSHOTS, livemode=False),), "nothing to"),
        ((replace(SNAPSHOTS, enabled=False), THIN), "we_1 is disabled"),
        ((replace(SNAPSHOTS, event_types=NEEDED_TYPES[:-1]), THIN), f"is sent {NEEDED_TYPES[-1]}"),
        ((SNAPSHOTS,), f"is sent {REPORTS[0]} as thin events"),
        ((SNAPSHOTS, replace(THIN, style=PayloadStyle.SNAPSHOT)), "as thin events"),
    ],
)
def test_what_is_not_sent_is_named(endpoints, words):
    assert words in "; ".join(faults(*endpoints))


def test_every_handler_hears_of_its_objects():
    heard = {kind: [name for name in NEEDED_TYPES if handler.takes(name)] for kind, handler in HANDLERS.items()}

    assert all(heard.values())
    assert {name for names in heard.values() for name in names} == set(NEEDED_TYPES)
