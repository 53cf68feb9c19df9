"""Prints the schema of tables.py as plain SQL, as it goes into a migration.

The first migration was made with it: scripts/freeze_schema.py > .../versions/0001_ledger.sql
Until the first release that file may be made again; after it, every change is a migration of its own.
"""

import re
from itertools import groupby
from typing import Any

from sqlalchemy import create_mock_engine
from sqlalchemy.schema import CreateSchema

from billing_pipeline.database.tables import metadata

INDEX = re.compile(r"CREATE (UNIQUE )?INDEX")


def frozen_schema() -> str:
    """Every statement of `metadata.create_all`, except that of the schema itself: migrate() makes that."""
    statements: list[str] = []

    def collect(statement: Any, *_: Any) -> None:
        if not isinstance(statement, CreateSchema):
            # The compiler doubles % for the driver's parameters; the frozen text goes to the server as it is.
            text = str(statement.compile(dialect=engine.dialect)).replace("%%", "%")
            statements.append(text.strip().rstrip(";") + ";")

    engine = create_mock_engine("postgresql+psycopg://", collect)
    metadata.create_all(engine, checkfirst=False)
    # SQLAlchemy keeps a table's indexes in a set; sorted, the same schema gives the same text.
    for is_index, group in groupby(list(enumerate(statements)), key=lambda item: bool(INDEX.match(item[1]))):
        if is_index:
            places, indexes = zip(*group, strict=True)
            statements[places[0] : places[-1] + 1] = sorted(indexes)
    text = "\n\n".join(statements).replace("\t", "    ").replace("TIMESTAMP WITH TIME ZONE", "TIMESTAMPTZ")
    text = re.sub(r" +$", "", text, flags=re.MULTILINE)
    text = re.sub(r";\n\n(?=COMMENT ON|CREATE (UNIQUE )?INDEX)", ";\n", text)
    return f"-- The schema as of this migration, frozen; tables.py moves on.\n\n{text}\n"


if __name__ == "__main__":
    print(frozen_schema(), end="")
