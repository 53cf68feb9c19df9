"""Says whether the database has the schema that this version of the code was made for.

Asked whenever a flow is opened, by the command and by every Dagster step, because code on another schema could misread
money; so it costs one read and no Alembic.  `migrate.py` asks the same before it applies what is missing.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import resources
from typing import Any

from psycopg import Connection

from billing_pipeline.database import queries
from billing_pipeline.errors import UserError


@cache
def known_revisions() -> tuple[str, ...]:
    """Every revision of this version, oldest first: the numbers that the files in `migrations/versions` begin with."""
    files = resources.files("billing_pipeline.database").joinpath("migrations", "versions").iterdir()
    return tuple(sorted(found[1] for file in files if (found := re.fullmatch(r"(\d{4})_\w+\.py", file.name))))


def missing_revisions(current: str | None) -> list[str]:
    """What a database at revision `current` lacks, oldest first; None is a database without our schema.

    Raises `UserError` for a schema that a newer version made.
    """
    known = list(known_revisions())
    if current is None:
        return known
    if current not in known:
        raise UserError(
            f"The database is at schema {current}, which this version does not know (it ends at {known[-1]}). "
            "Install the version that made it, or a newer one."
        )
    return known[known.index(current) + 1 :]


def require_current_schema(connection: Connection[Any]) -> None:
    """Raises `UserError` when the database's schema is older or newer than this version's."""
    found = queries.fetch_dicts(connection, "schema_version")
    if missing := missing_revisions(found[0]["version_num"] if found else None):
        raise UserError(
            f"The database lacks the schema changes {', '.join(missing)}. Run `billing-pipeline migrate`; "
            "nothing was changed."
        )
