"""The document lets an endpoint send every type that something here handles."""

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest

from billing_pipeline.webhooks.handlers import HANDLERS

DOCUMENT = Path(__file__).parents[2] / "docs/operations.md"
HANDLED = sorted({name for handler in HANDLERS.values() for name in handler.types})


@pytest.mark.parametrize("event_type", HANDLED)
def test_the_endpoint_sends_what_is_handled(event_type):
    [asked_for] = re.findall(r"let the endpoint send (.*)\.$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)

    assert any(fnmatch(event_type, pattern) for pattern in re.findall(r"`([^`]+)`", asked_for))
