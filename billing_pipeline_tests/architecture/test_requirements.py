"""docs/requirements.md points to tests that exist, and names every row once."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "requirements.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| ([A-Z]\d\d) \| (.+?) \| (.+) \|$", TEXT, re.MULTILINE)
GUIDE = [name for name, _, _ in ROWS if name.startswith("C")]
"""Rows of the billing operation guide, of which none is left out; of other documents those that are done."""
TESTS = ROOT / "billing_pipeline_tests"


def numbers(text: str) -> set[int]:
    """The rows that a sentence names: C03, or C11 to C15."""
    found = {int(number) for number in re.findall(r"C(\d\d)", text)}
    for first, last in re.findall(r"C(\d\d) to C(\d\d)", text):
        found |= set(range(int(first), int(last) + 1))
    return found


def test_every_row_is_there_once_or_told_to_be_missing():
    shown = [int(name[1:]) for name in GUIDE]
    missing = numbers(TEXT.partition("Not here yet")[2].partition("\n## ")[0])

    assert shown == sorted(set(shown))
    assert set(shown) | missing == set(range(1, 58))
    assert not set(shown) & missing


def test_rows_of_other_documents_are_there_once_and_in_order():
    others = [name for name, _, _ in ROWS if name not in GUIDE]

    assert others == sorted(set(others))


@pytest.mark.parametrize(("name", "shown_by"), [(name, shown_by) for name, _, shown_by in ROWS])
def test_a_row_points_to_tests_that_exist(name, shown_by):
    tests = re.findall(r"`([\w/]+\.py)::(test_\w+)`", shown_by)

    assert len(tests) == shown_by.count("`") // 2 > 0
    for path, test in tests:
        assert re.search(rf"^def {test}\(", (TESTS / path).read_text(encoding="utf-8"), re.MULTILINE), (
            name,
            path,
            test,
        )
