"""The log of a command that cron runs: one line on stderr per event, its fields behind it as key=value.

Dagster keeps a log of its own; a shell has none, and these lines are what is looked for at 3 a.m.
"""

from __future__ import annotations

import json
import logging
import sys
import time

MILESTONES = "billing_pipeline.milestones"
_NO_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class _Lines(logging.Formatter):
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%dT%H:%M:%SZ")
        self.converter = time.gmtime

    def format(self, record: logging.LogRecord) -> str:
        fields = {name: value for name, value in vars(record).items() if name not in _NO_FIELDS}
        return " ".join([super().format(record), *(f"{name}={_value(value)}" for name, value in fields.items())])


def log_to_stderr(*, milestones: bool) -> None:
    """Warnings with their fields, and the milestones of a flush where wanted, until the process ends."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Lines())
    logging.getLogger("billing_pipeline").addHandler(handler)
    logging.getLogger(MILESTONES).setLevel(logging.INFO if milestones else logging.WARNING)


def _value(value: object) -> str:
    return value if isinstance(value, str) and " " not in value else json.dumps(value, default=str)
