"""Brings a database from any released schema to this version's; run by `migrate.py`, forward only."""
