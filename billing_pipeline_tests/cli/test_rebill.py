"""`billing-pipeline rebill` shows what it would change, does only that, and docs/operations.md shows it."""

from __future__ import annotations

import json
import re
import shlex
from datetime import timedelta
from decimal import Decimal
from pathlib import Path

import pytest

from billing_pipeline.domain.catalogue import parse_catalogue
from billing_pipeline_tests.builders import billable_event, insert_events
from billing_pipeline_tests.cli.command import billing_pipeline

DOCUMENT = Path(__file__).parents[2] / "docs/operations.md"
DAY = re.compile(r"\d{4}-\d\d-\d\d")
METERS = '[meters.prompt_tokens]\nevent_types = ["prompt_tokens"]\naggregation = "sum"\n'


@pytest.fixture
def stack(tmp_path, database_url, simulator):
    (tmp_path / "meters.toml").write_text(METERS)
    return {
        "folder": tmp_path,
        "DATABASE_URL": database_url,
        "BILLING_STATE_DIR": "state",
        "BILLING_METERS_FILE": "meters.toml",
        "STRIPE_API_BASE": simulator.url,
        "STRIPE_SECRET_KEY": simulator.key,
        "USER": "ada",
        "LOGNAME": "ada",
    }


@pytest.fixture
def since(stack, flow, bill):
    """Two organizations were counted by the first catalogue, and the second one doubles a token."""
    bill("acme", "globex")
    midnight = flow.clock().replace(hour=0, minute=0, second=0, microsecond=0) - timedelta(days=2)
    insert_events(
        flow.connection,
        *(
            billable_event(organization_id=organization_id, quantity=Decimal(units), occurred_at=midnight + at)
            for organization_id, units, at in (
                ("acme", 4200, timedelta(hours=9)),
                ("acme", 800, timedelta(hours=-1)),
                ("globex", 1300, timedelta(hours=10)),
            )
        ),
    )
    flow.catalogue = parse_catalogue(METERS, origin="meters.toml")
    flow.aggregate()
    (stack["folder"] / "meters.toml").write_text(METERS + "unit_scale = 2\n")
    return f"{midnight:%Y-%m-%dT%H:%M:%SZ}"


def test_the_document_shows_what_the_command_prints(stack, since):
    text = DOCUMENT.read_text(encoding="utf-8").split("## Billing old hours anew")[1].split("\n## ")[0]
    blocks = re.findall(r"^```text\n\$ billing-pipeline (.*)\n((?:.*\n)*?)```", text, re.MULTILINE)
    assert len(blocks) == 2

    for command, output in blocks:
        arguments = shlex.split(DAY.sub(since[:10], command))
        code, out, err = billing_pipeline(*arguments, **stack)
        assert (code, err) == (0, "")
        assert DAY.sub("DAY", out).strip() == DAY.sub("DAY", output).strip()


def test_programs_get_every_organization(stack, since):
    code, out, err = billing_pipeline("rebill", "--meter", "prompt_tokens", "--since", since, "--json", **stack)

    assert (code, err) == (0, "")
    told = json.loads(out)
    assert (told["applied"], told["difference"], told["sealed"]) == (False, "5500", "0")
    assert [(row["organization_id"], row["before"], row["after"]) for row in told["organizations"]] == [
        ("acme", "5000", "9200"),
        ("globex", "1300", "2600"),
    ]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--apply", "5500"], "error: --apply needs --reason"),
        (["--apply", "many", "--reason", "x"], "error: --apply many is not a number of units"),
        (["--apply", "sNaN", "--reason", "x"], "error: --apply sNaN is not a number of units"),
        (["--apply", "-5500", "--reason", "x"], "error: The difference is +5,500 units by now, not -5,500."),
        (["--apply", "5499", "--reason", "x"], "error: The difference is +5,500 units by now, not +5,499."),
        (["--meter", "promt"], "error: The catalogue has no meter promt; it has prompt_tokens."),
        (["--since", "yesterday"], "error: --since yesterday is not a time with an offset"),
    ],
)
def test_what_cannot_be_done_is_one_sentence_and_changes_nothing(stack, flow, since, arguments, words):
    code, out, err = billing_pipeline("rebill", "--meter", "prompt_tokens", "--since", since, *arguments, **stack)

    assert (code, out) == (2, "")
    assert words in err
    assert "Traceback" not in err
    assert flow.connection.execute("SELECT sum(target) FROM usage_windows").fetchone() == (6300,)
