"""No amount ever becomes a float: not in Python, not in a frame, not in SQL.  What is allowed is no amount."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import billing_pipeline

ROOT = Path(billing_pipeline.__file__).parent
MONEY_PARTS = ("domain", "usage", "reconciliation", "database", "stripe_api")
"""Whatever an amount passes on its way from the source to Stripe and back."""

ALLOWED = {
    ("database/cluster.py", "/"): "paths",
    ("database/cluster.py", "0.3"): "seconds to sleep",
    ("database/embedded.py", "/"): "paths",
    ("database/tables.py", "/"): "paths",
    ("database/transactions.py", "1.0"): "seconds to sleep",
    ("database/transactions.py", "2.0"): "seconds to sleep",
    ("database/transactions.py", "float"): "seconds to sleep",
    ("domain/source_columns.py", "double precision"): "a type that is refused",
    ("domain/source_columns.py", "real"): "a type that is refused",
    ("domain/volume.py", "/"): "exact fractions, shown to a person",
    ("stripe_api/http.py", "float"): "seconds to sleep, as the SDK declares them",
    ("stripe_api/meter_events.py", "0.0"): "the machine's monotonic clock",
    ("stripe_api/pace.py", "/"): "requests per second",
    ("stripe_api/pace.py", "0.1"): "requests per second",
    ("stripe_api/pace.py", "1.0"): "requests per second",
    ("stripe_api/pace.py", "float"): "requests per second",
    ("stripe_api/summaries.py", "float"): "what JSON may hold; refused unless whole and below 2^53",
    ("usage/catalogue.py", "/"): "paths",
    ("usage/submit.py", "total_seconds"): "how many events a batch has, not how much they are",
}
"""(module, what) -> why no amount passes there."""

NAMES = {"float", "complex", "round", "Float", "Double", "REAL", "DOUBLE_PRECISION"}
ATTRIBUTES = re.compile(
    r"float\d*|double(_precision)?|decimal128|to_numeric|truediv|total_seconds|fsum"
    r"|DOUBLE(_PRECISION)?|REAL|Float|Double"
)
TYPE_NAMES = re.compile(r"(?i)float\d*(\[pyarrow\])?|double( precision)?(\[pyarrow\])?|real")
SQL_FLOAT = re.compile(
    r"(?i)\b(float\d?|double\s+precision|real|random|round|avg|stddev|sqrt|percentile_cont|to_number)\b"
)


def modules(*parts: str) -> list[Path]:
    return sorted(module for part in parts for module in (ROOT / part).rglob("*.py"))


def inexact(module: Path) -> Iterator[str]:
    """Everything in a module by which a number could lose a digit."""
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        match node:
            case ast.BinOp(op=ast.Div()) | ast.AugAssign(op=ast.Div()):
                yield "/"
            case ast.Constant(value=float() | complex() as number):
                yield str(number)
            case ast.Name(id=name) if name in NAMES:
                yield name
            case ast.Attribute(attr=name) if ATTRIBUTES.fullmatch(name):
                yield name
            case ast.Constant(value=str(text)) if TYPE_NAMES.fullmatch(text):
                yield text


def name_of(module: Path) -> str:
    return str(module.relative_to(ROOT))


@pytest.mark.parametrize("module", modules(*MONEY_PARTS), ids=name_of)
def test_money_modules_are_exact(module):
    assert {found for found in inexact(module) if (name_of(module), found) not in ALLOWED} == set()


def test_nothing_is_allowed_that_is_not_there():
    found = {(name_of(module), what) for module in modules(*MONEY_PARTS) for what in inexact(module)}

    assert set(ALLOWED) - found == set()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("units = 0.5", "0.5"),
        ("units = float(text)", "float"),
        ("units = round(exact)", "round"),
        ("share = units / whole", "/"),
        ("units /= 2", "/"),
        ("frame['units'].astype('float64')", "float64"),
        ("frame.astype('double[pyarrow]')", "double[pyarrow]"),
        ("pyarrow.float64()", "float64"),
        ("pyarrow.decimal128(38, 12)", "decimal128"),
        ("Column('units', Float)", "Float"),
        ("Column('units', sqlalchemy.Float)", "Float"),
        ("pd.to_numeric(frame['units'])", "to_numeric"),
    ],
)
def test_each_way_to_lose_a_digit_is_seen(tmp_path, line, told):
    module = tmp_path / "module.py"
    module.write_text(f"def f(text, exact, units, whole, frame, pyarrow, pd, sqlalchemy, Column, Float):\n    {line}\n")

    assert told in set(inexact(module))


@pytest.mark.parametrize("file", sorted((ROOT / "database").rglob("*.sql")), ids=name_of)
def test_sql_is_exact(file):
    code = re.sub(r"--.*|'[^']*'", "", file.read_text(encoding="utf-8"))

    assert SQL_FLOAT.findall(code) == []


def test_every_amount_in_the_schema_is_numeric(connection):
    inexact_columns = connection.execute(
        "SELECT table_name, column_name FROM information_schema.columns "
        "WHERE table_schema = 'billing_pipeline' AND data_type IN ('real', 'double precision', 'money')"
    ).fetchall()

    assert inexact_columns == []
