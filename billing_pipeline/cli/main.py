"""Entry of `billing-pipeline`: the groups of commands, and what a failure looks like from outside.

An error of ours is one sentence on stderr and its own exit code; anything else is a defect and shows its traceback.
"""

from __future__ import annotations

import signal
import sys
from types import FrameType
from typing import Annotated

import typer

from billing_pipeline.cli import config, events, flush, holds, ledger, local, quarantine, usage
from billing_pipeline.cli.close_periods import close_periods_command
from billing_pipeline.cli.explain import explain_command
from billing_pipeline.cli.hints import as_typed
from billing_pipeline.cli.import_events import import_events_command
from billing_pipeline.cli.plan import plan_command
from billing_pipeline.cli.preflight import preflight_command
from billing_pipeline.cli.projections import rebuild_projections_command, sweep_events_command
from billing_pipeline.cli.rebill import rebill_command
from billing_pipeline.cli.serve import serve_command
from billing_pipeline.cli.smoke import smoke_command
from billing_pipeline.cli.validate_contract import validate_contract_command
from billing_pipeline.errors import BillingError, told

app = typer.Typer(
    name="billing-pipeline",
    help="Bills usage through Stripe meter events exactly once, and proves it.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("import-events")(import_events_command)
app.add_typer(usage.app)
app.command("plan")(plan_command)
app.add_typer(flush.app)
app.command("close-periods")(close_periods_command)
app.command("preflight")(preflight_command)
app.command("smoke-org")(smoke_command)
app.command("validate-contract")(validate_contract_command)
app.command("rebill")(rebill_command)
app.command("explain")(explain_command)
app.add_typer(ledger.app, name="ledger")
app.add_typer(quarantine.app, name="quarantine")
app.add_typer(config.app, name="config")
app.add_typer(holds.app, name="holds")
app.add_typer(events.app, name="events")
app.command("serve")(serve_command)
app.command("sweep-events")(sweep_events_command)
app.command("rebuild-projections")(rebuild_projections_command)
app.add_typer(local.app)


@app.command()
def demo(
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Empty the local sandbox even if it holds usage the demo did not make.")
    ] = False,
) -> None:
    """Bill a sample week end to end, and account for every unit.

    It goes through Dagster to a simulated Stripe.
    Needs nothing: without DATABASE_URL it uses the embedded PostgreSQL, with it a database of its own beside yours.
    """
    from billing_pipeline.cli.demo import run_demo

    run_demo(fresh=fresh)


def run() -> None:
    """The console script.  Exits 0 done, 1 failed, 2 wrong input, 3 a guard refused, 130 or 143 stopped by a signal."""
    # A background job of a shell script starts with SIGINT ignored, and its children would ignore it too.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        app()
    except BillingError as exc:
        sys.stderr.write(f"error: {as_typed(told(exc))}\n")
        sys.exit(exc.exit_code)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)


def _end(number: int, _frame: FrameType | None) -> None:
    # As an exception, so that context managers stop the processes they started.
    sys.exit(128 + number)
