"""`flush-now`, `flush-hourly` and `enqueue-hourly`: the usage flow started by a person, by cron, or through Dagster.

All of them do what the schedule does, behind the same gate; with a live key the account has to be typed.
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer

from billing_pipeline.cli.hints import amount, as_typed
from billing_pipeline.cli.live import Live, require_live_account
from billing_pipeline.cli.log import log_to_stderr
from billing_pipeline.cli.usage import open_local_flow

if TYPE_CHECKING:
    from billing_pipeline.settings import Settings
    from billing_pipeline.usage.flow import UsageFlow
    from billing_pipeline.usage.flush import FlushReport

app = typer.Typer()

NAMES_SHOWN = 3
RETRY_SECONDS = (15, 60)
"""Before the second and the third attempt of `flush-hourly` where the database or Stripe did not answer at all."""

Full = Annotated[bool, typer.Option("--full", help="Recompute the whole lookback, not only what was touched.")]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print one JSON object; units are whole numbers or texts, never cut.")
]


@app.command("flush-now")
def flush_now(
    full: Full = False,
    plan: Annotated[
        str | None, typer.Option(metavar="HASH", help="Send exactly what `plan` has shown, or nothing; implies --full.")
    ] = None,
    live: Live = None,
    as_json: AsJson = False,
) -> None:
    """Run the usage flow once, here and now.

    It validates, aggregates, cuts, submits and confirms; the gate is the same as for the schedule.
    Exits 3 when a plan no longer holds.
    Example: billing-pipeline flush-now --plan 0123456789abcdef
    """
    log_to_stderr(milestones=False)
    _flush(full=full or plan is not None, live=live, as_json=as_json, attempts=1, plan_hash=plan)


@app.command("flush-hourly")
def flush_hourly(full: Full = False, live: Live = None, as_json: AsJson = False) -> None:
    """Run the usage flow as cron should.

    Up to three attempts with pauses between them, for what Stripe did not answer; then the next hour goes on.
    Exits 1 when something is still unanswered.  The log is on stderr.
    Example: billing-pipeline flush-hourly --live acct_1Abc
    """
    from billing_pipeline.errors import BillingError, Unavailable
    from billing_pipeline.usage.resubmit import ATTEMPTS

    log_to_stderr(milestones=True)
    for number in range(1, ATTEMPTS + 1):
        try:
            report = _flush(full=full, live=live, as_json=as_json, attempts=ATTEMPTS)
            break
        except Unavailable as exc:
            if number == ATTEMPTS:
                raise
            pause = RETRY_SECONDS[number - 1]
            typer.echo(f"Attempt {number} of {ATTEMPTS}: {exc} The next is in {pause} s.", err=True)
            time.sleep(pause)
    if report is not None and report.submit.unanswered:
        raise BillingError(
            f"{report.submit.unanswered:,} entries are without an answer from Stripe after {ATTEMPTS} attempts. "
            "Nothing is lost: the next flush goes on with them."
        )


@app.command("enqueue-hourly")
def enqueue_hourly(
    live: Live = None, as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False
) -> None:
    """Put a flush into the queue of the running Dagster.

    Prints the run's id and its page, and does not wait for it.
    Example: billing-pipeline enqueue-hourly
    """
    from billing_pipeline.errors import BillingError
    from billing_pipeline.orchestration.dagster_probes import state_at
    from billing_pipeline.orchestration.launch import QUEUE_TAG, launch_job, run_page
    from billing_pipeline.settings import Level, load_settings

    settings = load_settings()
    if settings.level is Level.LIVE:
        require_live_account(settings, live)
    port = settings.dagster_port
    if missing := [daemon.name for daemon in state_at(port).daemons if daemon.required and not daemon.healthy]:
        raise BillingError(
            f"Dagster on port {port} runs without its daemon ({', '.join(missing)}), so the run would wait for ever. "
            "Nothing was queued; start `dagster-daemon run`, or all of it with `billing-pipeline up`."
        )
    run_id = launch_job("usage_flush", port=port, tags={QUEUE_TAG: settings.stripe_billing_queue})
    page = run_page(run_id, port=port)
    typer.echo(json.dumps({"run_id": run_id, "page": page}) if as_json else f"Queued: run {run_id}\n{page}")


def _flush(
    *, full: bool, live: str | None, as_json: bool, attempts: int, plan_hash: str | None = None
) -> FlushReport | None:
    """One flush, told on stdout; None when there was nothing to do or another flush is under way."""
    from billing_pipeline.settings import Level, load_settings
    from billing_pipeline.usage.lease import LeaseHeld

    settings = load_settings()
    if settings.level is Level.OFF:
        off = f"Billing is off ({_why_off(settings)}): nothing was computed, nothing was sent."
        typer.echo(json.dumps({"level": "off", "reason": off}) if as_json else off)
        return None
    with open_local_flow() as flow:
        if settings.level is Level.LIVE:
            require_live_account(flow.settings, live)
        try:
            report = _with_progress(flow, full=full, attempts=attempts, plan_hash=plan_hash)
        except LeaseHeld as exc:
            typer.echo(json.dumps({"skipped": True, "reason": str(exc)}) if as_json else f"skipped=true: {exc}")
            return None
        if as_json:
            told = {"skipped": False, "level": str(settings.level)} | asdict(report)
            typer.echo(json.dumps(told, indent=2, default=str))
        else:
            _print_flush(report)
            _print_outlook(flow, report)
    return report


def _with_progress(flow: UsageFlow, *, full: bool, attempts: int, plan_hash: str | None) -> FlushReport:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from billing_pipeline.usage.aggregate import Scope
    from billing_pipeline.usage.flush import flush
    from billing_pipeline.usage.plan import cut_as_planned, read_plan

    cut = None
    if plan_hash is not None:
        cut = partial(cut_as_planned, flow, read_plan(flow.connection, plan_hash))
    console = Console(stderr=True)
    columns = (SpinnerColumn(), TextColumn("{task.completed:,} entries sent"), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("flush", total=None)

        def on_progress(sent: int) -> None:
            progress.advance(task, sent)

        return flush(flow, scope=Scope.FULL if full else None, attempts=attempts, cut=cut, on_progress=on_progress)


def _print_outlook(flow: UsageFlow, report: FlushReport) -> None:
    """What this flush could not do, and who can."""
    from billing_pipeline.database import queries
    from billing_pipeline.settings import Level

    if flow.settings.level is Level.SHADOW:
        typer.echo(
            "Billing is in shadow mode: computed and recorded, nothing sent. With BILLING_MODE=live it would be sent."
        )
    names = [str(row["organization_id"]) for row in queries.fetch_dicts(flow.connection, "unmapped_organizations")]
    if names:
        shown = ", ".join(names[:NAMES_SHOWN]) + (", ..." if len(names) > NAMES_SHOWN else "")
        typer.echo(
            as_typed(
                f"Owed:      {amount(report.money.units_unmapped)} units wait, because organizations have no "
                f"Stripe customer: {shown}. "
                "`billing-pipeline create-customers` makes and maps customers in test mode."
            )
        )


def _why_off(settings: Settings) -> str:
    if settings.enable_billing is False:
        return "ENABLE_BILLING is false"
    if settings.enable_billing is None and not settings.uses_simulator:
        return "a Stripe key is set, and ENABLE_BILLING is not true"
    return "BILLING_MODE is off"


def _print_flush(report: FlushReport) -> None:
    if report.contract is not None:
        faults = ", ".join(f"{fault.reason} {fault.count:,}" for fault in report.contract.faults) or "none"
        typer.echo(f"Contract:  {report.contract.rows_read:,} rows read, faults: {faults}")
        for fault in report.contract.faults:
            # Of the source itself: what changed, or what to run.
            for detail in fault.samples if fault.reason.startswith("source_") else ():
                typer.echo(f"           {fault.reason}: {detail}")
    typer.echo(
        f"Windows:   {report.aggregation.windows_computed:,} computed ({report.aggregation.scope}), "
        f"{report.aggregation.windows_changed:,} changed"
    )
    for fault in report.volume:
        typer.echo(f"Volume:    {fault.reason}: {'; '.join(fault.samples)}")
    typer.echo(
        f"Entries:   {report.cut.entries:,} cut (+{report.cut.units_added:,} -{report.cut.units_taken_back:,} units), "
        f"{report.cut.windows_waiting:,} windows waiting, {report.cut.windows_held:,} held"
    )
    if report.cut.held:
        by_reason = ", ".join(f"{windows:,} {reason}" for reason, windows in sorted(report.cut.held.items()))
        typer.echo(as_typed(f"Held:      {by_reason}; `billing-pipeline holds list` says what to do"))
    if report.cut.windows_behind_holds:
        typer.echo(f"           windows that wait until what is taken back may go: {report.cut.windows_behind_holds:,}")
    typer.echo(
        f"Stripe:    {report.submit.attempts:,} sent, {report.submit.accepted:,} accepted, "
        f"{report.submit.duplicates:,} duplicate, {report.submit.rejected:,} rejected, "
        f"{report.submit.unknown:,} unknown, {report.submit.not_executed:,} not executed"
    )
    if report.submit.unanswered:
        typer.echo(f"           {report.submit.unanswered:,} entries without an answer wait for the next flush")
    typer.echo(
        f"Proof:     {report.confirm.confirmed:,} confirmed by Stripe's summaries, {report.confirm.waiting:,} waiting"
    )
