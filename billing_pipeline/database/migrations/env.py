"""Alembic runs this for every command; the connection and its transaction come from `migrate.py`."""

from alembic import context

from billing_pipeline.database.tables import SCHEMA, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table_schema=SCHEMA,
    include_schemas=True,
)
context.run_migrations()
