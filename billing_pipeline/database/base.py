"""What every table definition shares: the schema's name, the naming of constraints, and the types of columns.

Everything of ours lives in the PostgreSQL schema `billing_pipeline`, so that it never collides with the team's
own `customers` or `invoices`.
"""

from __future__ import annotations

from sqlalchemy import DateTime, MetaData, event, text
from sqlalchemy.schema import CreateSchema

SCHEMA = "billing_pipeline"

metadata = MetaData(
    schema=SCHEMA,
    naming_convention={
        "pk": "%(table_name)s_pkey",
        "uq": "%(table_name)s_%(column_0_N_name)s_key",
        "fk": "%(table_name)s_%(column_0_N_name)s_fkey",
        "ck": "%(table_name)s_%(constraint_name)s_check",
        "ix": "%(table_name)s_%(column_0_N_name)s_idx",
    },
)
source_metadata = MetaData(schema="public")
# Before any table or type is declared: listeners run in the order they were added, and a type adds its own.
event.listen(metadata, "before_create", CreateSchema(SCHEMA, if_not_exists=True))

Instant = DateTime(timezone=True)
DATABASE_NOW = text("clock_timestamp()")
