"""What the probes look at: settings, database, catalogue, mark and Stripe, each opened when it is first asked for.

One probe fails on what cannot be opened, and those that need it are skipped, so nothing is opened twice in vain.
The database is only ever seen through a transaction that can change nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import cached_property
from typing import Any

from psycopg import Connection

from billing_pipeline.database.location import find_database_url
from billing_pipeline.database.reading import read_only
from billing_pipeline.domain.catalogue import Catalogue
from billing_pipeline.settings import Settings
from billing_pipeline.stripe_api.catalogue import StripeMeter, by_event_name, list_meters
from billing_pipeline.stripe_api.client import Account, StripeClient, make_client, read_account
from billing_pipeline.usage.catalogue import load_catalogue
from billing_pipeline.usage.mark import HighWaterMark


class Site:
    """What is configured here, as one preflight finds it; `require_enabled` says that it must be live."""

    def __init__(self, load: Callable[[], Settings], *, require_enabled: bool = False) -> None:
        self._load = load
        self.require_enabled = require_enabled

    @cached_property
    def settings(self) -> Settings:
        """Raises `SettingsError` naming every fault."""
        return self._load()

    @cached_property
    def database_url(self) -> str:
        """Raises `UserError` where there is no database yet; makes none."""
        return find_database_url(self.settings)

    @contextmanager
    def reading(self) -> Iterator[Connection[Any]]:
        """The database, in a transaction that can change nothing; no request to Stripe belongs into it."""
        with read_only(self.database_url) as connection:
            yield connection

    @cached_property
    def catalogue(self) -> Catalogue:
        """Raises `CatalogueError` naming every fault."""
        return load_catalogue(self.settings)

    @cached_property
    def mark(self) -> HighWaterMark:
        """Raises `UserError` for an address that cannot be one."""
        return HighWaterMark(self.settings.mark_url)

    @cached_property
    def stripe(self) -> StripeClient:
        """For GET only."""
        return make_client(self.settings)

    @cached_property
    def account(self) -> Account:
        """The account of the key.  Raises `StripeUnavailable` or `StripeRefused`."""
        return read_account(self.stripe, self.settings)

    @cached_property
    def all_meters(self) -> list[StripeMeter]:
        """Stripe's meters, archived ones too.  Raises the same."""
        return list_meters(self.stripe, self.settings)

    @property
    def meters(self) -> dict[str, StripeMeter]:
        """The one that counts for each event name."""
        return by_event_name(self.all_meters)

    @property
    def lookback(self) -> timedelta:
        """How far back the contract looks."""
        return timedelta(days=self.settings.stripe_billing_contract_lookback_days)
