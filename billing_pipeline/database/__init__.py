"""The only SQL in the package.

`tables.py` (with `usage_tables.py` and `ledger_tables.py`) is the truth of the schema, and `schema/*.sql` holds what
SQLAlchemy cannot say (types, guards);
`migrations/` brings a database there; `sql/*.sql` holds the named statements that `queries.py` loads and runs;
`connection.py` opens connections and `location.py` says where; `embedded.py`, `cluster.py` and `wheel.py` run a
PostgreSQL of our own when none is configured.
Transactions are opened by the callers, so that a reader of a stage sees where they begin and end.
"""
