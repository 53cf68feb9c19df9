"""Each table has one writer: a part of the package, for the projections of Stripe's objects one function.

What writes is read from the statements themselves; who runs a statement, from the names in the modules.
"""

from __future__ import annotations

import ast
import re
from collections import Counter, defaultdict
from pathlib import Path

import billing_pipeline
from billing_pipeline.database import queries
from billing_pipeline.database.tables import PROJECTIONS, metadata
from billing_pipeline.webhooks.handlers import HANDLERS

ROOT = Path(billing_pipeline.__file__).parent
WRITES = re.compile(
    r"\b(?:INSERT\s+INTO|UPDATE|DELETE\s+FROM|MERGE\s+INTO|TRUNCATE(?:\s+TABLE)?)\s+(?:ONLY\s+)?"
    r"(?:billing_pipeline\.)?\"?([a-z_]+)"
)
TABLES = {table.name for table in metadata.tables.values()}
DERIVED = {"entitlements", "customer_organizations"}

SHARED = {
    # The completion of an event leaves what it is about, in its transaction; the feed takes it away (decision 0040).
    "feed_candidates": {"webhooks", "feed"},
    # Leases are by name: the flush's, and a rebuild's of its shadow tables.
    "flush_leases": {"usage", "database"},
}


def texts(module):
    """Every piece of text in a module: names of statements, SQL and docstrings."""
    return {
        node.value
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }


def written_by(module):
    """The tables that a module writes, by statements that it names and by SQL of its own."""
    named = {name: re.sub(r"--.*", "", text) for name, text in queries.statements().items()}
    own = texts(module)
    sql = [named[text] for text in own & named.keys()] + [text for text in own if "\n" not in text]
    return {table for text in sql for table in WRITES.findall(text)} & TABLES


def writers():
    found = defaultdict(set)
    for module in ROOT.rglob("*.py"):
        part = module.relative_to(ROOT).parts[0]
        if part not in ("stripe_simulator", "cli"):
            for table in written_by(module):
                found[table].add(module.relative_to(ROOT))
    return found


def test_d06_each_table_is_written_by_one_part():
    parts = {table: {module.parts[0] for module in modules} for table, modules in writers().items()}
    several = {table: found for table, found in parts.items() if len(found) > 1}

    assert len(parts) > 30
    assert several == SHARED


def test_d06_the_projections_are_written_by_one_function_each_table_for_one_handler():
    kept = {table.name for table in PROJECTIONS}
    callers = {
        str(module.relative_to(ROOT))
        for module in ROOT.rglob("*.py")
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "keep_greatest"
    }

    assert Counter(handler.table for handler in HANDLERS.values()) == Counter(kept)
    assert not kept & writers().keys()
    assert callers == {"webhooks/apply.py", "webhooks/rebuild.py"}


def test_d06_what_follows_from_them_is_decided_in_one_module():
    found = writers()

    assert {str(module) for table in DERIVED for module in found[table]} == {"webhooks/entitle.py"}
