"""A person who opens Dagster's pages after a flush finds what they came for: names, descriptions, plots, verdicts.

The pages are opened in a real browser, because what is stored is not yet what is seen: Dagster cuts, hides and refuses.
"""

from __future__ import annotations

import shutil
import signal
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from urllib.parse import quote

import psutil
import pytest

from billing_pipeline.definitions import defs
from billing_pipeline.orchestration.jobs import JOBS, SCHEDULES
from billing_pipeline.orchestration.launch import launch_job, wait_for_run
from billing_pipeline.orchestration.usage_assets import FLUSH_TAG, USAGE_ASSETS
from billing_pipeline_tests.browser import browser, installed
from billing_pipeline_tests.builders import billable_event, insert_events
from billing_pipeline_tests.cli.command import live_against, start
from billing_pipeline_tests.cli.test_up import free_port
from billing_pipeline_tests.fix_postgres import drop_database

REPOSITORY = Path(__file__).parents[2]
CLOSED = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(hours=3)
PROGRAM = installed()
PLOTS = {
    "usage_windows": ["daily_volume prompt_tokens"],
    "ledger_entries": ["units_per_hour prompt_tokens"],
    "meter_events": ["owed_by_age"],
    "meter_event_confirmations": ["longest_proof_per_hour"],
}
"""The metadata that are pictures, by asset."""
SHOWN = {"ledger_entries": ["Stripe meter", "confirmed"], "meter_events": ["Nothing is in doubt."]}
"""What else is beside them."""
FAULTS = ("graphql error", "unexpected error", "an error occurred", "pythonerror", "something went wrong")


@pytest.fixture
def port(tmp_path, flow, bill, connection, simulator, server_url):
    """Where Dagster's pages are, of a stack with usage of a customer, usage of nobody, and a row that nobody knows."""
    bill("acme")
    for hours in (0, 1, 5, 50):
        at = CLOSED - timedelta(hours=hours)
        usage = {"occurred_at": at, "quantity": Decimal(1_000 + hours)}
        insert_events(connection, billable_event(**usage), billable_event(organization_id="newco", **usage))
    insert_events(connection, billable_event(event_id="unheard-of", event_type="espresso_shots", occurred_at=CLOSED))
    for name in ("dagster.yaml", "workspace.yaml"):
        shutil.copy(REPOSITORY / name, tmp_path)
    port = free_port()
    process = start("up", DAGSTER_PORT=port, **live_against(simulator, folder=tmp_path, database_url=flow.database_url))
    try:
        assert any(line.startswith("Ctrl-C") for line in process.stdout), process.stderr.read()
        yield port
    finally:
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
        for member in psutil.wait_procs(family, timeout=10)[1]:
            member.kill()
        drop_database(server_url, f"{connection.info.dbname}_dagster")


class Visitor:
    """Opens one page after the other, and takes no error for an answer."""

    def __init__(self, page, port):
        self._page, self._port = page, port

    def sees(self, path, *texts):
        """Open a page and wait until all of these can be read."""
        self._page.open(f"http://127.0.0.1:{self._port}{path}")
        self._page.wait_for(*texts)
        shown = self._page.text().lower()
        assert [fault for fault in FAULTS if fault in shown] == [], f"{path}\n{shown}"
        assert self._page.errors == [], path

    def sees_picture(self, key):
        """Wait until the picture beside this key of the metadata is drawn, and all of it fits the page."""
        row = f"[...document.querySelectorAll('tr')].find(row => row.innerText.startsWith({key!r}))"
        size = "(image => image && image.naturalWidth && [image.naturalWidth, image.naturalHeight])"
        assert self._page.wait(f"{size}({row}?.querySelector('img'))") == [340, 104]
        right = self._page.tell(f"{row}.querySelector('img').getBoundingClientRect().right")
        edge = self._page.tell(f"{row}.closest('table').parentElement.getBoundingClientRect().right")
        assert right <= edge, f"{key} is cut off at {edge}, and ends at {right}"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using variable_values:DeprecationWarning")  # of Dagster's own client
@pytest.mark.skipif(PROGRAM is None, reason="Chromium or Chrome is not installed: apt-get install chromium")
def test_whoever_opens_the_pages_finds_what_they_came_for(port, tmp_path):
    run_id = launch_job("usage_flush", port=port)
    wait_for_run(run_id, port=port, seconds_max=120)

    with browser(PROGRAM, tmp_path / "browser") as page:
        visitor = Visitor(page, port)
        visitor.sees("/overview", "usage_flush")
        names = [asset.key.to_user_string() for asset in USAGE_ASSETS]
        visitor.sees("/locations/__repository__@billing_pipeline/asset-groups/usage/list", *names)
        for asset in USAGE_ASSETS:
            [spec] = asset.specs
            name, first = asset.key.to_user_string(), " ".join(spec.description.split("\n\n")[0].split())
            visitor.sees(
                f"/assets/{name}", name, first, "usage", "billing", "Freshness policy", *SHOWN.get(name, ["skipped"])
            )
            for key in PLOTS.get(name, []):
                visitor.sees_picture(key)

        unknown = "/assets/billable_events?view=checks&checkDetail=event_type_unknown"
        visitor.sees(unknown, "Failed", "unheard-of", "Add the type to a meter of BILLING_METERS_FILE")
        invariants = "/assets/meter_event_confirmations?view=checks&checkDetail=ledger_invariants_hold"
        visitor.sees(invariants, "Succeeded", "Every invariant of the ledger returns no row")

        visitor.sees("/jobs", *(job.name for job in JOBS))
        described = defs.resolve_job_def("usage_flush").description.split(". ")[0]
        visitor.sees("/locations/billing_pipeline/jobs/usage_flush", described)
        visitor.sees("/automation", *(schedule.name for schedule in SCHEDULES))
        visitor.sees(f"/runs/{run_id}", "Success", "RUN_SUCCESS")
        visitor.sees(f"/runs?q[0]={quote(f'tag:{FLUSH_TAG}=1')}", run_id[:8])
