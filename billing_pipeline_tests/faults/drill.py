"""A ledger on a PostgreSQL server of its own, for faults of a whole server: crash, restore, failover, clone."""

from __future__ import annotations

import shutil
import subprocess
from datetime import timedelta

import psutil

from billing_pipeline.database import embedded
from billing_pipeline.database.cluster import Cluster
from billing_pipeline.database.connection import connect
from billing_pipeline.database.migrate import migrate
from billing_pipeline.stripe_api.catalogue import set_up_catalogue
from billing_pipeline.stripe_api.customers import create_customers
from billing_pipeline.usage.flow import UsageFlow
from billing_pipeline_tests.builders import map_customer
from billing_pipeline_tests.fix_flow import live_settings


class Drill:
    """A ledger on a server of its own, a Stripe beside it, and one clock for both."""

    def __init__(self, state_dir, simulator, time, mark_url=None):
        self.state_dir, self.simulator, self.time, self.mark_url = state_dir, simulator, time, mark_url
        self.shift = timedelta(0)
        self.start()

    def start(self):
        self.url = embedded.ensure_running(self.state_dir).url()
        with connect(self.url) as connection:
            if connection.execute("SELECT pg_is_in_recovery()").fetchone()[0]:
                connection.execute("SELECT pg_promote()")
        migrate(self.url, create_source=True)
        self.settings = live_settings(self.url, self.simulator, self.state_dir, billing_mark_url=self.mark_url)
        self._context = connect(self.url)
        self.connection = self._context.__enter__()
        self.flow = UsageFlow(self.connection, self.url, self.settings, holder="drill")
        clock = self.flow.clock
        self.flow.clock = lambda: clock() + self.shift

    def stop(self):
        self._context.__exit__(None, None, None)
        embedded.stop(self.state_dir)

    def pass_time(self, duration):
        self.shift += duration
        self.time.advance(seconds=duration.total_seconds())

    def crash(self):
        """Kill every process of the server at once, as a power cut would; `start` brings it back."""
        processes = list(Cluster(self.state_dir)._processes())
        assert processes
        for process in processes:
            process.kill()
        psutil.wait_procs(processes, timeout=30)
        # Its end is known to nobody here but the connection.
        self._context.__exit__(None, None, None)
        embedded.stop(self.state_dir)

    def snapshot(self, folder, *, at_a_crash=False):
        if at_a_crash:
            self.crash()
        else:
            self.stop()
        subprocess.run(["cp", "-a", self.state_dir / "postgres", folder], check=True)
        self.start()

    def restore(self, folder, *, as_standby=False):
        self.stop()
        shutil.rmtree(self.state_dir / "postgres")
        subprocess.run(["cp", "-a", folder, self.state_dir / "postgres"], check=True)
        if as_standby:
            (self.state_dir / "postgres" / "standby.signal").touch()
        self.start()

    def set_up(self, *organization_ids):
        """Make meters and customers at Stripe and map them; returns organization -> customer."""
        set_up_catalogue(self.flow.stripe, self.settings, self.flow.catalogue)
        customers = create_customers(self.flow.stripe, self.settings, organization_ids)
        for organization_id, customer in customers.items():
            map_customer(self.connection, organization_id, customer)
        return customers

    def calls(self):
        return len(self.simulator.journal("meter_event"))
