"""Every row of the failure model's tables C, D and E is a promise with a test.

A test belongs to a row by its name: `test_d07_...`.  Of some rows a part is not tested; why is in
`docs/decisions/0013-faults-not-tested.md`.
"""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROWS = [
    *(f"C{number}" for number in range(1, 21)),
    *(f"D{number}" for number in range(1, 21)),
    *(f"E{number}" for number in range(1, 8)),
]
NAME = re.compile(r"test_([cde])(\d\d)_\w+")


def rows_with_a_test() -> set[str]:
    modules = (ROOT / "billing_pipeline_tests").rglob("test_*.py")
    names = (
        node.name
        for module in modules
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    )
    return {f"{found[1].upper()}{int(found[2])}" for name in names if (found := NAME.fullmatch(name))}


def rows_with_a_reason() -> set[str]:
    record = (ROOT / "docs/decisions/0013-faults-not-tested.md").read_text(encoding="utf-8")
    return set(re.findall(r"^\| ([CDE]\d+) \| \S", record, re.MULTILINE))


TESTED, EXPLAINED = rows_with_a_test(), rows_with_a_reason()


@pytest.mark.parametrize("row", ROWS)
def test_every_fault_has_a_test(row):
    assert row in TESTED


def test_no_test_and_no_reason_names_a_row_that_is_not_there():
    assert set(ROWS) >= TESTED | EXPLAINED
