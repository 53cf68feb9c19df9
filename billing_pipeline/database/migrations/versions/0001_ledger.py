"""The first schema: the source's contract, usage windows, ledger entries, attempts, evidence and their guards."""

from pathlib import Path

from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    schema = Path(__file__).with_suffix(".sql").read_text(encoding="utf-8")
    # Through the driver: SQLAlchemy would read ':' and '%' in the text as parameters.
    op.get_bind().connection.cursor().execute(schema)
