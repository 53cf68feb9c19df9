"""The documents stay true: what they name exists, and what exists is named."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from typer.main import get_command

from billing_pipeline.cli.main import app
from billing_pipeline.definitions import defs
from billing_pipeline.domain.entries import TRANSITIONS, EntryState
from billing_pipeline.reconciliation.invariants import LEDGER_INVARIANTS

ROOT = Path(__file__).parents[2]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
README_LINES_MAX = 65


def text_of(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def name_of(document: Path) -> str:
    return str(document.relative_to(ROOT))


def test_the_readme_fits_a_screen():
    assert len(text_of("README.md").splitlines()) <= README_LINES_MAX


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_make_target_that_is_named_exists(document):
    targets = set(re.findall(r"^([a-z-]+):", text_of("Makefile"), re.MULTILINE))
    named = set(re.findall(r"(?:`|\$ )make ([a-z-]+)", document.read_text(encoding="utf-8")))

    assert not named - targets


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_command_that_is_named_exists(document):
    commands = set(get_command(app).commands)
    named = set(re.findall(r"billing-pipeline ([a-z][a-z-]+)", document.read_text(encoding="utf-8")))

    assert not named - commands


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_link_leads_somewhere(document):
    targets = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text(encoding="utf-8"))

    assert [target for target in targets if not (document.parent / target).exists()] == []


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_file_that_is_named_exists(document):
    named = re.findall(r"`([a-z_]+/[\w/.*]+\.(?:py|sql|toml))`", document.read_text(encoding="utf-8"))
    roots = (ROOT, ROOT / "billing_pipeline")

    assert [name for name in named if not any(list(root.glob(name)) for root in roots)] == []


def test_every_asset_is_in_the_architecture():
    keys = {key.to_user_string() for key in defs.resolve_asset_graph().get_all_asset_keys()}

    assert not [key for key in keys if f"`{key}`" not in text_of("docs/architecture.md")]


def test_every_state_and_arrow_is_in_the_architecture():
    drawn = set(re.findall(r"^    (\w+) --> (\w+):", text_of("docs/architecture.md"), re.MULTILINE))

    assert drawn == {(str(before), str(after)) for before, after in TRANSITIONS}
    assert all(f"| `{state}` |" in text_of("docs/architecture.md") for state in EntryState)


def test_every_decision_is_listed():
    records = {path.name for path in (ROOT / "docs/decisions").glob("0*.md")}

    assert records == set(re.findall(r"\((0\d+-[\w-]+\.md)\)", text_of("docs/decisions/README.md")))


def test_every_invariant_is_in_the_architecture():
    assert not [name for name in LEDGER_INVARIANTS if f"| `{name}` |" not in text_of("docs/architecture.md")]
