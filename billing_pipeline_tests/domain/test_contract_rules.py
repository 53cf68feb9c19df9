"""A reason code means the same everywhere: one list has them all, in code, in SQL and in the documents."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import billing_pipeline
from billing_pipeline.domain.contract_rules import RULES, SAMPLES_MAX, Part, Severity, fault, rules_of
from billing_pipeline.usage.row_contract import ROW_RULES

PACKAGE = Path(billing_pipeline.__file__).parent
DOCUMENT = PACKAGE.parent / "docs/contract.md"
REASON = re.compile(
    r"[a-z_]+_(?:missing|wrong|unique|empty|absent|unmapped|jumped|stopped|dropped|finite|negative|digits|range|"
    r"future|old|unknown|changed|narrowed|remapped|widened)"
)


def test_the_row_rules_are_those_of_pandera_in_their_order():
    assert tuple(rule.reason for rule in rules_of(Part.ROW)) == ROW_RULES


def test_the_row_rules_are_those_of_the_database_and_the_catalogues():
    in_sql = re.findall(r"THEN '(\w+)'", (PACKAGE / "database/schema/contract.sql").read_text(encoding="utf-8"))

    # Only the catalogue, which the database does not have, knows the event types.
    assert (*in_sql, "event_type_unknown") == ROW_RULES


def test_the_document_lists_exactly_the_codes_with_their_severity():
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*) \| (.*) \|$", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)

    assert rows == [(rule.reason, str(rule.severity), rule.meaning, rule.remedy) for rule in RULES.values()]


@pytest.mark.parametrize("module", ["contract", "row_contract", "source_contract", "table_contract"])
def test_no_module_knows_a_code_that_is_not_listed(module):
    tree = ast.parse((PACKAGE / f"usage/{module}.py").read_text(encoding="utf-8"))
    constants = {
        node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }

    assert {text for text in constants if REASON.fullmatch(text)} <= set(RULES)


@pytest.mark.parametrize("rule", RULES.values(), ids=lambda rule: rule.reason)
def test_every_rule_says_what_is_wrong_and_what_to_do(rule):
    assert REASON.fullmatch(rule.reason)
    assert rule.meaning.endswith(".")
    assert rule.remedy.endswith(".")
    assert (rule.severity is Severity.ROW) == (rule.part is Part.ROW)
    assert rule.part is not Part.SOURCE or rule.severity is Severity.TABLE


def test_a_fault_shows_a_few_samples_only():
    assert fault("quantity_negative", 9, tuple("abcdefghi")).samples == tuple("abcde")[:SAMPLES_MAX]
