""".env.example shows every setting and nothing else, and copying it changes nothing."""

import os
import re
from itertools import pairwise
from pathlib import Path

from pydantic import AliasChoices

from billing_pipeline.settings import Settings

EXAMPLE = Path(__file__).parents[2] / ".env.example"


def environment_names() -> set[str]:
    names: set[str] = set()
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        choices = alias.choices if isinstance(alias, AliasChoices) else [alias or name.upper()]
        names.update(str(choice) for choice in choices)
    return names


def test_every_setting_is_in_the_example_with_a_comment_and_nothing_else():
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    shown = {line.partition("=")[0]: before for before, line in pairwise(lines) if re.match(r"[A-Z_]+=", line)}

    assert set(shown) == environment_names()
    assert [name for name, comment in shown.items() if not re.match(r"# \S+", comment)] == []


def test_copying_the_example_changes_no_setting():
    assert Settings(_env_file=EXAMPLE) == Settings()


def test_the_example_holds_no_value_of_a_secret():
    text = EXAMPLE.read_text(encoding="utf-8")

    for name, field in Settings.model_fields.items():
        if "Secret" in str(field.annotation):
            assert re.search(rf"^{name.upper()}=$", text, re.MULTILINE), name


def test_no_test_reads_a_persons_settings(tmp_path, monkeypatch):
    (tmp_path / ".env").write_text("DAGSTER_PORT=4000\n")
    monkeypatch.chdir(tmp_path)

    assert Settings() == Settings(_env_file=None)
    assert environment_names().isdisjoint(os.environ)
