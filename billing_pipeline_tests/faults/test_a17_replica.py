"""A17: a replica lags, so a source that is read there would be counted short; a flush goes to the primary."""

from __future__ import annotations

import pytest

from billing_pipeline.database import embedded
from billing_pipeline.database.connection import connect
from billing_pipeline.errors import DatabaseUnavailable
from billing_pipeline.usage.flow import open_flow

pytestmark = pytest.mark.slow


def test_a17_a_standby_is_refused_because_its_source_may_lag(drill):
    drill.stop()
    (drill.state_dir / "postgres" / "standby.signal").touch()
    url = embedded.ensure_running(drill.state_dir).url()
    try:
        with connect(url) as connection:
            assert connection.execute("SELECT pg_is_in_recovery()").fetchone() == (True,)
        with (
            pytest.raises(
                DatabaseUnavailable, match=r"is a standby: .*may lag.*on the primary; point DATABASE_URL there"
            ),
            open_flow(drill.settings, url, holder="test"),
        ):
            pass
        with open_flow(drill.settings, url, holder="test", only_reads=True) as flow:
            assert flow.read_source().shape is not None
    finally:
        drill.start()
