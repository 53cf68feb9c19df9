"""Every probe of the preflight: its stable name, what it asks, what a bad answer means and what to do then.

This is the one list.  The command, Dagster's checks and the table in `docs/operations.md` read it, so a name means the
same everywhere; what asks is in `usage/preflight/` and, about Dagster, in `orchestration/dagster_probes.py`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum


class Result(StrEnum):
    """What a probe came to."""

    PASS = "pass"
    WARN = "warn"  # a person should know; a flush does its work all the same
    FAIL = "fail"  # a flush would not do its work, or would do it wrong
    SKIP = "skip"  # not asked, because what it needs is not there; no pass


@dataclass(frozen=True, slots=True)
class Probe:
    """One question, named for ever."""

    name: str
    asset: str
    """The asset in Dagster that it is a check of."""
    asks: str
    """A plain sentence that is true when it passes."""
    cause: str
    """What is the matter, mostly, when it does not."""
    remedy: str
    """What to do next."""
    needs: tuple[str, ...] = ()
    """Probes that must have found what this one builds on."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one probe found, in one line."""

    result: Result
    found: str
    remedy: str | None = None
    """What to do next, where that is more exact than the probe's own."""
    blocks: bool | None = None
    """Whether what needs this probe cannot be asked; unset: when it fails."""

    @property
    def is_in_the_way(self) -> bool:
        """Whether what needs this probe is skipped."""
        if self.blocks is not None:
            return self.blocks
        return self.result is Result.FAIL


def passes(found: str) -> Finding:
    """All is well."""
    return Finding(Result.PASS, found)


def warns(found: str, remedy: str | None = None, *, blocks: bool | None = None) -> Finding:
    """A person should know."""
    return Finding(Result.WARN, found, remedy, blocks)


def fails(found: str, remedy: str | None = None, *, blocks: bool | None = None) -> Finding:
    """A flush would not do its work."""
    return Finding(Result.FAIL, found, remedy, blocks)


PROBES: dict[str, Probe] = {
    probe.name: probe
    for probe in (
        Probe(
            "settings",
            "billable_events",
            "Every setting can be read and is right.",
            "A value is missing or malformed, or two contradict each other.",
            "Correct what is named; `billing-pipeline config show` says where each value comes from.",
        ),
        Probe(
            "level",
            "meter_events",
            "Billing is live, so usage is charged, and the key is of the mode that is meant.",
            "A master switch is not on yet, or the key is of Stripe's test mode, which charges nobody.",
            "To charge, set ENABLE_BILLING=true, BILLING_MODE=live and a live STRIPE_SECRET_KEY; "
            "with --require-enabled, a level below live fails.",
            needs=("settings",),
        ),
        Probe(
            "database",
            "billable_events",
            "PostgreSQL answers, is new enough, and is the primary.",
            "The server is down, the login or the address is wrong, or DATABASE_URL leads to a standby.",
            "Correct DATABASE_URL, or bring the server up; without DATABASE_URL `billing-pipeline up` makes one.",
            needs=("settings",),
        ),
        Probe(
            "schema",
            "billable_events",
            "The database has the schema that this version was made for.",
            "This version was installed and the database not migrated, or the other way round.",
            "Run `billing-pipeline migrate`, with the version that shall run.",
            needs=("database",),
        ),
        Probe(
            "durability",
            "ledger_entries",
            "The database server keeps what it commits when it crashes.",
            "fsync, synchronous_commit or full_page_writes is off; in live mode the first two stop every flush.",
            "Turn it on in the server's configuration; full_page_writes may be off on storage that writes whole pages.",
            needs=("database",),
        ),
        Probe(
            "catalogue",
            "usage_windows",
            "The meter catalogue can be read, and knows the event types that must be there.",
            "meters.toml has a mistake, or a required event type is in no meter and not ignored.",
            "Mend the file of BILLING_METERS_FILE; docs/getting-started.md shows one.",
            needs=("settings",),
        ),
        Probe(
            "source",
            "billable_events",
            "The source is there and can be counted.",
            "A table, a column, a type or the unique event_id is not what the contract asks for.",
            "docs/contract.md has each reason code and what to do about it.",
            needs=("schema", "catalogue"),
        ),
        Probe(
            "source_indexes",
            "billable_events",
            "An index serves each question that a flush asks of the source.",
            "The source has no index on recorded_at or occurred_at, so each flush reads all of it.",
            "Run the statements that are named; they lock nothing for long.",
            needs=("source",),
        ),
        Probe(
            "lookback",
            "billable_events",
            "The source has usage in the lookback, of every required event type.",
            "The product records nothing, or BILLING_SOURCE_RELATION names another table than it writes to.",
            "Find out why nothing was recorded; docs/contract.md has the reason code.",
            needs=("source",),
        ),
        Probe(
            "contract",
            "billable_events",
            "The last validation of the data contract passed, and is recent.",
            "The source broke a rule, or no flush has run for a while.",
            "Run `billing-pipeline validate-contract` for what is wrong now; the next flush validates by itself.",
            needs=("schema",),
        ),
        Probe(
            "lease",
            "usage_windows",
            "The flush lease is shorter than the hour between two flushes; who holds it is told.",
            "STRIPE_USAGE_FLUSH_LOCK_TTL_SECONDS is 3600 or more, so a killed flush keeps the next one away.",
            "Set STRIPE_USAGE_FLUSH_LOCK_TTL_SECONDS below 3600; a lease that is held ends by itself.",
            needs=("schema",),
        ),
        Probe(
            "customers_mapped",
            "usage_windows",
            "Every organization with usage has a Stripe customer.",
            "The product has not made or mapped a customer yet; such usage is owed and not sent.",
            "Insert each customer into customer_mappings; in test mode `billing-pipeline create-customers` does.",
            needs=("source",),
        ),
        Probe(
            "high_water_mark",
            "ledger_entries",
            "The high-water mark can be read and written, and is kept outside the database.",
            "BILLING_MARK_URL leads to a place that this process may not use, or to one that is lost or restored with "
            "the database.",
            "Let BILLING_MARK_URL name a place that every process that flushes can write, and no restore takes back.",
            needs=("settings",),
        ),
        Probe(
            "frozen",
            "ledger_entries",
            "The ledger is not frozen.",
            "A detector or a person stopped all sending; the reason says why.",
            "Find out why, then one person runs `billing-pipeline ledger adopt` and another "
            "`billing-pipeline ledger release`.",
            needs=("schema",),
        ),
        Probe(
            "restored",
            "ledger_entries",
            "Nothing says that the ledger has lost attempts, so the next flush does not freeze it.",
            "The database was restored, cloned or promoted, or the high-water mark was lost.",
            "Find out what happened to the database before the next flush; that one freezes the ledger, and "
            "docs/getting-started.md, section 6, brings it back.",
            needs=("schema", "high_water_mark"),
        ),
        Probe(
            "stripe_key",
            "meter_events",
            "Stripe answers, and takes the key.",
            "The key is wrong, expired or of another account, or nothing gets through to Stripe.",
            "Correct STRIPE_SECRET_KEY or the network; without a key `billing-pipeline up` runs the simulator.",
            needs=("settings",),
        ),
        Probe(
            "stripe_scopes",
            "meter_events",
            "The key may read what the pipeline reads.",
            "A restricted key lacks a permission.",
            "Give the key read permission for what is named, and write permission for meter events and invoices, in "
            "the Stripe Dashboard under API keys.",
            needs=("stripe_key",),
        ),
        Probe(
            "clock",
            "meter_events",
            "The database's clock is within a minute of Stripe's.",
            "The database server's time is wrong; nothing is sent by a wrong clock.",
            "Mend the database server's time, for instance by NTP.",
            needs=("database", "stripe_key"),
        ),
        Probe(
            "ledger_account",
            "ledger_entries",
            "The ledger belongs to the account and mode of the key, or to none yet.",
            "The key was changed for one of another account or mode, or the database for another.",
            "Use the key of the ledger's account, or another database for the other account.",
            needs=("schema", "stripe_key"),
        ),
        Probe(
            "meters",
            "meter_events",
            "Stripe has each meter of the catalogue, active and counting in the same way.",
            "A meter was never made, was archived, or was made by hand with another formula, window or key.",
            "Run `billing-pipeline stripe-setup` for a meter that is missing; one that counts in another way needs "
            "another event_name in the catalogue, because Stripe does not change a meter.",
            needs=("catalogue", "stripe_key"),
        ),
        Probe(
            "prices",
            "meter_events",
            "Each meter has an active price, so what it counts is invoiced.",
            "No price was made for the meter, it was archived, or it hangs on an archived meter of the same name.",
            "Make a metered price for the meter at Stripe and subscribe the customers to it.",
            needs=("catalogue", "stripe_key"),
        ),
        Probe(
            "canary_customer",
            "meter_events",
            "The canary's customer exists at Stripe.",
            "The account was never set up, or somebody deleted the customer; without canaries absence proves nothing.",
            "Run `billing-pipeline stripe-setup`; it makes only what is missing.",
            needs=("stripe_key",),
        ),
        Probe(
            "canaries",
            "meter_event_confirmations",
            "Stripe shows no more canaries than the ledger has sent.",
            "The ledger has lost attempts: the database was restored or cloned.",
            "Find out what happened to the database before the next flush; that one freezes the ledger.",
            needs=("schema", "stripe_key"),
        ),
        Probe(
            "webhook_endpoint",
            "stripe_events",
            "Stripe sends everything that the intake must hear of to BILLING_WEBHOOK_URL.",
            "The endpoint was never made in the mode of the key, is not sent every type, or Stripe switched it off "
            "after days of failures.",
            "Set BILLING_WEBHOOK_URL to the public address of `billing-pipeline serve`, and make or mend the endpoint "
            "in the Stripe Dashboard under Webhooks; what was missed meanwhile, `sweep_stripe_events` finds.",
            needs=("stripe_key",),
        ),
        Probe(
            "billing_stream",
            "billing_event_feed",
            "The live billing feed is off, or has the Redis and the token that it needs.",
            "ENABLE_BILLING_STREAM is true, and Redis or the access token is not set, or Redis does not answer.",
            "Set what is named for `billing-pipeline serve`, or ENABLE_BILLING_STREAM=false; billing itself goes on.",
            needs=("settings",),
        ),
        Probe(
            "dagster",
            "billable_events",
            "Dagster runs.",
            "Dagster was stopped, runs on another machine, or listens on another port than DAGSTER_PORT.",
            "Run `billing-pipeline up`; where Dagster runs elsewhere, launch its job `preflight`, which asks the same.",
            needs=("settings",),
        ),
        Probe(
            "dagster_location",
            "billable_events",
            "Dagster has loaded the code location billing_pipeline.",
            "The code cannot be imported where Dagster runs, or workspace.yaml names another location.",
            "See Deployment in Dagster's UI for the error; the location is always named billing_pipeline.",
            needs=("dagster",),
        ),
        Probe(
            "dagster_daemons",
            "billable_events",
            "Dagster's daemons are alive, and run monitoring is on.",
            "The daemon process has ended, or dagster.yaml is not this project's.",
            "Start dagster-daemon again, with the project's dagster.yaml in DAGSTER_HOME.",
            needs=("dagster",),
        ),
        Probe(
            "dagster_schedule",
            "billable_events",
            "The schedule hourly_usage_flush is on.",
            "It is off until somebody turns it on; then no flush runs by itself.",
            "Turn hourly_usage_flush on in Dagster's UI, under Automation.",
            needs=("dagster_location",),
        ),
    )
}
"""By name, in the order in which they are asked and read; what a probe needs stands before it."""


def with_needs(names: set[str]) -> Iterator[Probe]:
    """These probes and all that they need, in order."""
    wanted = set(names)
    for probe in reversed(PROBES.values()):
        if probe.name in wanted:
            wanted.update(probe.needs)
    return (probe for probe in PROBES.values() if probe.name in wanted)
