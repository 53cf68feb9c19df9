"""Handles stored events until it is killed: what the Dagster job does, in a process of its own and without a pause."""

import sys
import time

from billing_pipeline.errors import Unavailable
from billing_pipeline.orchestration.webhook_flow import open_webhook_flow
from billing_pipeline.settings import load_settings

PAUSE_SECONDS = 0.02


def main() -> None:
    """Go on for ever, also when the database restarts."""
    settings = load_settings()
    assert settings.database_url is not None
    while True:
        try:
            with open_webhook_flow(settings, settings.database_url.get_secret_value()) as flow:
                while True:
                    flow.dispatch()
                    time.sleep(PAUSE_SECONDS)
        except Unavailable:
            time.sleep(PAUSE_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
