"""`billing-pipeline sweep-events` and `rebuild-projections`: is every event here, and every row what they say.

Both are what Dagster's jobs do by themselves, for whoever has a shell.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from billing_pipeline.cli.hints import as_typed

if TYPE_CHECKING:
    from billing_pipeline.orchestration.webhook_flow import WebhookFlow
    from billing_pipeline.webhooks.rebuild import RebuildReport
    from billing_pipeline.webhooks.reread import RereadReport
    from billing_pipeline.webhooks.sweep import SweepReport

TYPES_SHOWN = 10
DIFFERENCES_SHOWN = 20
HOW = {"only_live": "is here and should not be", "only_rebuilt": "is missing"}


def sweep_events_command(
    since: Annotated[
        str | None,
        typer.Option(help="Further back than an hour before the last sweep's end, e.g. to 2026-11-10T00:00:00Z."),
    ] = None,
    objects: Annotated[
        bool, typer.Option("--objects", help="Also read all of Stripe's objects anew: for gaps of more than 30 days.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Find webhook events that Stripe lists and never delivered.

    They are stored, and handled like any other: by `serve` at once, or by Dagster within minutes.
    Stripe lists 30 days. Doing it again changes nothing.

    Example: billing-pipeline sweep-events --since 2026-11-10T00:00:00Z
    """
    from billing_pipeline.domain.given_hours import instant_given

    start = instant_given("--since", since) if since else None
    with _at_stripe() as flow:
        report = flow.sweep(start, lambda done: _tell(f"{done.listed:,} events listed"))
        read = flow.reread(lambda kind, count: _tell(f"{count:,} {kind}s read")) if objects else None
    _end_of_progress()
    if as_json:
        typer.echo(json.dumps(_sweep_json(report, read), indent=2))
        return
    _print_sweep(report)
    if read is not None:
        _print_reread(read)
    if report.gap_from is not None:
        _print_gap(report.gap_from, read)


def rebuild_projections_command(
    apply: Annotated[bool, typer.Option("--apply", help="Put the rows that differ right.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Make the projections anew from stored events; compare.

    These are customers, subscriptions, invoices and entitlements.

    Exits 1 where a row is not what the events say; --apply puts it right and exits 0.
    What other programs read goes on being readable. With --apply, webhook events wait to be handled while everybody's
    entitlements are decided anew: the more customers, the longer.

    Example: billing-pipeline rebuild-projections
    """
    with _database_only() as flow:
        report = flow.rebuild(apply=apply, progress=lambda events: _tell(f"{events:,} events replayed"))
    _end_of_progress()
    if as_json:
        typer.echo(json.dumps(_rebuild_json(report), indent=2))
    else:
        _print_rebuild(report)
    if (report.differ and report.put_right is None) or report.replayed.unreadable:
        raise typer.Exit(1)


@contextmanager
def _at_stripe() -> Iterator[WebhookFlow]:
    from billing_pipeline.cli.local_stack import local_stack
    from billing_pipeline.orchestration.webhook_flow import open_webhook_flow
    from billing_pipeline.settings import load_settings

    with local_stack(load_settings()) as stack, open_webhook_flow(stack.settings, stack.database_url) as flow:
        yield flow


@contextmanager
def _database_only() -> Iterator[WebhookFlow]:
    from billing_pipeline.cli.local_stack import ready_database
    from billing_pipeline.orchestration.webhook_flow import open_webhook_flow
    from billing_pipeline.settings import load_settings

    settings = load_settings()
    with open_webhook_flow(settings, ready_database(settings)) as flow:
        yield flow


def _tell(text: str) -> None:
    """One line that is written over, where a person watches."""
    if sys.stderr.isatty():
        sys.stderr.write(f"\r\033[K{text}")
        sys.stderr.flush()


def _end_of_progress() -> None:
    if sys.stderr.isatty():
        sys.stderr.write("\r\033[K")


def _print_sweep(report: SweepReport) -> None:
    missing = report.missing.total()
    typer.echo(
        f"From {report.complete_from:%Y-%m-%d %H:%M:%S} to {report.complete_through:%Y-%m-%d %H:%M:%S} UTC "
        f"Stripe lists {report.listed:,} events; {missing:,} of them had not been delivered."
    )
    for event_type, count in report.missing.most_common(TYPES_SHOWN):
        typer.echo(f"  {count:>8,}  {event_type}")
    if (left := len(report.missing) - TYPES_SHOWN) > 0:
        typer.echo(f"  and {left:,} types more; --json has them all.")
    if missing:
        typer.echo("They are stored and due now; a type your endpoint does not ask for is expected here.")
    if report.unreadable:
        typer.echo(
            as_typed(
                f"{report.unreadable:,} listed events could not be stored; the log says why. Once that is mended: "
                f"`billing-pipeline sweep-events --since {report.complete_from:%Y-%m-%dT%H:%M:%SZ}`."
            )
        )


def _print_gap(gap_from: datetime, read: RereadReport | None) -> None:
    gap = f"Stripe lists 30 days, and from {gap_from:%Y-%m-%d %H:%M} UTC on nobody had swept for longer"
    if read is None:
        typer.echo(as_typed(f"{gap}. Run `billing-pipeline sweep-events --objects`, which makes up for it."))
    elif read.unreadable:
        typer.echo(f"{gap}. This stays known until every object can be read.")
    else:
        typer.echo(f"{gap}. The objects that were read now make up for it.")


def _print_reread(read: RereadReport) -> None:
    for kind, count in read.read.items():
        typer.echo(f"{kind}: {count:,} read, {read.changed[kind]:,} were kept differently and are right now.")
    if read.unreadable:
        typer.echo(f"{read.unreadable:,} objects could not be read; the log says why.")


def _print_rebuild(report: RebuildReport) -> None:
    typer.echo(f"{report.replayed.events:,} events and {report.replayed.answers:,} answers of Stripe's replayed.")
    if report.payloads_gone:
        typer.echo(
            f"{report.payloads_gone:,} events and answers have no payload any more; {report.taken_over:,} rows that "
            "only they told of are taken as they are."
        )
    typer.echo("")
    for table in report.tables:
        verdict = f"{table.differ:,} differ" if table.differ else "the same"
        typer.echo(f"{table.table_name:<24} {table.rows:>12,} rows  {verdict}")
    for one in report.differences[:DIFFERENCES_SHOWN]:
        how = HOW.get(one.kind) or f"differs in {', '.join(one.columns)}"
        typer.echo(f"  {one.table_name} {one.object_id} {how}")
    if (left := report.differ - min(DIFFERENCES_SHOWN, len(report.differences))) > 0:
        typer.echo(f"  and {left:,} more.")
    if unreadable := report.replayed.unreadable:
        typer.echo(f"{len(unreadable):,} cannot be read by this version, the first is {unreadable[0]}.")
    if report.put_right is not None:
        typer.echo(
            f"\nPut right: {report.put_right:,} rows, and what {len(report.organizations):,} organizations may use."
        )
    elif report.differ:
        typer.echo(as_typed("\nNothing was changed. `billing-pipeline rebuild-projections --apply` puts them right."))


def _sweep_json(report: SweepReport, read: RereadReport | None) -> dict[str, Any]:
    return {
        "complete_from": report.complete_from.isoformat(),
        "complete_through": report.complete_through.isoformat(),
        "listed": report.listed,
        "missing": dict(report.missing.most_common()),
        "unreadable": report.unreadable,
        "gap_from": report.gap_from.isoformat() if report.gap_from else None,
        "objects": asdict(read) if read is not None else None,
    }


def _rebuild_json(report: RebuildReport) -> dict[str, Any]:
    return asdict(report) | {"differ": report.differ}
