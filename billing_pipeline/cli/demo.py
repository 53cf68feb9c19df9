"""`billing-pipeline demo`: a week of usage, billed end to end through Dagster to a simulated Stripe.

The account at the end is made by a judge that asks neither the ledger nor its code: the sample's own list on one side,
the simulator's journal on the other.  The demo exits non-zero when they differ.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal

from rich.console import Console
from rich.table import Table

from billing_pipeline.cli.demo_stack import DEMO_TAGS, DemoStack, demo_stack
from billing_pipeline.cli.demo_usage import ORGANIZATIONS, SampleEvent, sample_usage
from billing_pipeline.database import queries
from billing_pipeline.database.connection import describe
from billing_pipeline.domain.catalogue import Aggregation
from billing_pipeline.errors import BillingError
from billing_pipeline.orchestration.launch import launch_job, wait_for_run
from billing_pipeline.reconciliation.reconcile import reconcile
from billing_pipeline.settings import Settings, load_settings
from billing_pipeline.stripe_api.catalogue import set_up_catalogue
from billing_pipeline.stripe_api.customers import create_customers
from billing_pipeline.usage.flow import UsageFlow, open_flow

RUN_SECONDS_MAX = 300

Totals = dict[tuple[str, str], int]
"""Units by organization and meter."""


@dataclass(frozen=True, slots=True)
class Account:
    """The ledger's totals after a flush; the difference of two is what one flush did."""

    source_rows: int
    quarantined: int
    windows: int
    entries: int
    units_added: Decimal
    units_taken_back: Decimal
    accepted: int
    confirmed: int
    attempts: int


NOTHING = Account(0, 0, 0, 0, Decimal(0), Decimal(0), 0, 0, 0)


def run_demo(*, fresh: bool) -> None:
    """Run the demo and print its account.  Raises `BillingError` when a number differs."""
    console = Console(highlight=False, soft_wrap=True)
    console.print("[bold]A week of five organizations' usage, billed through Dagster to a simulated Stripe[/bold]")
    settings = load_settings()
    with demo_stack(settings, fresh=fresh, console=console) as stack:
        differs = _bill(stack, console)
    if differs:
        raise BillingError(f"{differs} of the numbers above differ from Stripe's; that must not happen.")
    console.print("\n[bold green]Every unit is accounted for.[/bold green]")
    console.print(_next_step(settings, stack))


def _next_step(settings: Settings, stack: DemoStack) -> str:
    if settings.database_url is None:
        see = "[bold]make up[/bold] to look at these runs in Dagster's UI"
        return f"Next: {see}, [bold]make test[/bold] for the proofs."
    # The whole URL would show its password.
    place = describe(stack.database_url)
    return (
        f"The demo is in a database of its own, {place}, beside yours.\n"
        f"Next: to look at these runs in Dagster's UI, name {place.rpartition('/')[2]} as the database in "
        f"DATABASE_URL, set BILLING_STATE_DIR={stack.settings.billing_state_dir}, and run [bold]make up[/bold]."
    )


def _bill(stack: DemoStack, console: Console) -> int:
    with open_flow(stack.settings, stack.database_url, holder="demo") as flow:
        sample = sample_usage(flow.clock())
        customers = _prepare_stripe(flow)
        recorded = _record(flow, (*sample.on_time, *sample.bad))
        repeated = _record(flow, sample.duplicates)
        console.print(
            f"\n[bold]1[/bold]  The product recorded {recorded:,} events; "
            f"{len(sample.duplicates) - repeated} were sent twice and refused by their id."
        )
        first = _flush(stack, flow, console, NOTHING)
        truth = _truth(flow, sample.on_time)
        differs = _print_sides(stack, flow, console, truth, customers)

        late = _record(flow, sample.late)
        _correct(flow, sample.changed)
        console.print(f"\n[bold]2[/bold]  {late} late events arrive, and {len(sample.changed)} are corrected upstream.")
        _flush(stack, flow, console, first)
        changed = {event.event_id: event for event in sample.changed}
        now_true = [changed.get(event.event_id, event) for event in (*sample.on_time, *sample.late)]
        return differs + _print_sides(stack, flow, console, _truth(flow, now_true), customers)


def _flush(stack: DemoStack, flow: UsageFlow, console: Console, before: Account) -> Account:
    with console.status("Dagster runs the job usage_flush ..."):
        run_id = launch_job("usage_flush", port=stack.settings.dagster_port, tags=DEMO_TAGS)
        wait_for_run(run_id, port=stack.settings.dagster_port, seconds_max=RUN_SECONDS_MAX)
    account = queries.fetch(flow.connection, "ledger_account", Account, parts=flow.read_source().parts)[0]
    console.print(f"   Dagster run {run_id[:8]}, job usage_flush:")
    console.print(
        f"   {account.source_rows:,} events in the source, {account.quarantined} of them in quarantine, "
        f"{account.windows:,} windows"
    )
    console.print(
        f"   {account.entries - before.entries:,} new entries "
        f"(+{account.units_added - before.units_added:,} units, "
        f"-{account.units_taken_back - before.units_taken_back:,}), "
        f"{account.attempts - before.attempts:,} sent, {account.accepted - before.accepted:,} accepted, "
        f"{account.confirmed - before.confirmed:,} confirmed by Stripe's summaries"
    )
    if before is NOTHING:
        for row in queries.fetch_dicts(flow.connection, "quarantine_summary"):
            console.print(f"     quarantined: {row['reason']} ({', '.join(row['sample_event_ids'])})", style="dim")
    return account


def _print_sides(stack: DemoStack, flow: UsageFlow, console: Console, truth: Totals, customers: dict[str, str]) -> int:
    """The three sides, one row per organization and meter; returns how many rows differ."""
    report = reconcile(flow.connection, settings=flow.settings, now=flow.clock())
    ledger = {(side.organization_id, side.meter): int(side.stated) for side in report.sides}
    counted = _counted_by_stripe(stack, flow, customers)
    table = Table("organization", "meter", box=None, pad_edge=False, header_style="dim")
    for title in ("source", "ledger", "Stripe's journal", "difference"):
        table.add_column(title, justify="right")
    differs = 0
    for key in sorted(truth.keys() | ledger.keys() | counted.keys()):
        sides = (truth.get(key, 0), ledger.get(key, 0), counted.get(key, 0))
        difference = max(sides) - min(sides)
        differs += difference != 0
        shown = f"[red]{difference:,}[/red]" if difference else "0"
        table.add_row(*key, *(f"{units:,}" for units in sides), shown)
    console.print(table)
    return differs


def _counted_by_stripe(stack: DemoStack, flow: UsageFlow, customers: dict[str, str]) -> Totals:
    owner = {customer: organization_id for organization_id, customer in customers.items()}
    meter = {meter.event_name: meter.name for meter in flow.catalogue.meters}
    return {
        (owner[row["customer"]], meter[row["event_name"]]): int(row["value"])
        for row in stack.counted_meter_events("customer,event_name")
        if row["customer"] in owner  # the canary's customer is nobody's
    }


def _truth(flow: UsageFlow, events: Sequence[SampleEvent]) -> Totals:
    """What the good events of the sample are worth, added up here in plain Python."""
    totals: Counter[tuple[str, str]] = Counter()
    for event in events:
        for meter in flow.catalogue.meters:
            if event.event_type in meter.event_types:
                units = 1 if meter.aggregation is Aggregation.COUNT else int(event.quantity or 0)
                totals[(event.organization_id, meter.name)] += units
    return dict(totals)


def _prepare_stripe(flow: UsageFlow) -> dict[str, str]:
    """Meters, customers and the mapping; returns organization -> customer."""
    set_up_catalogue(flow.stripe, flow.settings, flow.catalogue)
    customers = create_customers(flow.stripe, flow.settings, list(ORGANIZATIONS))
    params = {"organization_ids": list(customers), "customers": list(customers.values())}
    queries.execute(flow.connection, "map_customers", params)
    return customers


def _record(flow: UsageFlow, events: Sequence[SampleEvent]) -> int:
    """Write events as the product would; returns how many were new."""
    return queries.execute(
        flow.connection,
        "record_sample_events",
        {
            "event_ids": [event.event_id for event in events],
            "organization_ids": [event.organization_id for event in events],
            "event_types": [event.event_type for event in events],
            "quantities": [event.quantity for event in events],
            "occurred_ats": [event.occurred_at for event in events],
            "recorded_ats": [event.recorded_at for event in events],
        },
        parts={"source": flow.read_source().table},
    )


def _correct(flow: UsageFlow, events: Sequence[SampleEvent]) -> None:
    queries.execute(
        flow.connection,
        "correct_sample_events",
        {
            "event_ids": [event.event_id for event in events],
            "quantities": [event.quantity for event in events],
            "recorded_ats": [event.recorded_at for event in events],
        },
        parts={"source": flow.read_source().table},
    )
