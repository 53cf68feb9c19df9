"""The alerts and the dashboard in docs/monitoring ask for what the intake measures, with the limits of the checks."""

import json
import re
from pathlib import Path

import pytest
import yaml

from billing_pipeline.orchestration.webhook_checks import DUPLICATE_PERCENT, SIGNATURE_FAILURES_MAX, SUCCESS_PERCENT
from billing_pipeline.webhooks.metrics import WebhookMetrics, WebhookResult
from billing_pipeline.webhooks.receive import PATH

MONITORING = Path(__file__).parents[2] / "docs" / "monitoring"
RULES = {
    rule["alert"]: rule
    for group in yaml.safe_load((MONITORING / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    for rule in group["rules"]
}
PANELS = json.loads((MONITORING / "dashboard.json").read_text(encoding="utf-8"))["panels"]
EXPRESSIONS = {
    **{name: rule["expr"] for name, rule in RULES.items()},
    **{f"{panel['title']} {target['refId']}": target["expr"] for panel in PANELS for target in panel["targets"]},
}


def series():
    """Names of the time series of a process that has counted and timed something."""
    metrics = WebhookMetrics()
    metrics.count(WebhookResult.ACCEPTED, "invoice.paid")
    metrics.observe(PATH, 202, 0.01)
    return set(re.findall(r"^(\w+)[ {]", metrics.text().decode(), re.MULTILINE))


@pytest.mark.parametrize("name", EXPRESSIONS)
def test_it_asks_for_what_is_measured(name):
    expression = EXPRESSIONS[name]
    asked = set(re.findall(r"\b(?:stripe|billing)_\w+", expression))

    assert asked
    assert asked <= series()
    for results in re.findall(r'result=~?"([^"]+)"', expression):
        assert set(results.split("|")) <= {str(result) for result in WebhookResult}
    assert set(re.findall(r'route="([^"]+)"', expression)) <= {PATH}
    assert expression.count("(") == expression.count(")")


@pytest.mark.parametrize(
    ("name", "limit"),
    [
        ("StripeWebhookHandlingFails", (100 - SUCCESS_PERCENT) / 100),
        ("StripeWebhookRepetitions", DUPLICATE_PERCENT / 100),
        ("StripeWebhookSignaturesFail", SIGNATURE_FAILURES_MAX),
    ],
)
def test_an_alert_has_the_limit_of_its_check(name, limit):
    assert float(RULES[name]["expr"].rpartition("> ")[2]) == limit


@pytest.mark.parametrize("name", RULES)
def test_an_alert_says_what_to_do(name):
    rule = RULES[name]

    assert rule["labels"]["severity"] in ("page", "ticket")
    assert len(rule["annotations"]["summary"].split()) > 4
    assert len(rule["annotations"]["action"].split()) > 3
