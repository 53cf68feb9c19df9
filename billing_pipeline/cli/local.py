"""Commands for this machine: run the stack, stop it, migrate a database, run the Stripe simulator alone."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def up() -> None:
    """Run Dagster and what it needs until Ctrl-C.

    Dagster's UI and daemon, the webhook intake, the Stripe simulator and PostgreSQL; a second `up` for the same folder
    is refused.
    The simulator runs only when no Stripe key is set, PostgreSQL only when DATABASE_URL is not, and the intake when
    STRIPE_WEBHOOK_SECRET is set or the simulator runs.
    """
    from billing_pipeline.cli.up import run_until_stopped
    from billing_pipeline.settings import load_settings

    run_until_stopped(load_settings())


@app.command()
def down() -> None:
    """Stop `up`, what a killed one left, and PostgreSQL.

    Only the embedded PostgreSQL is stopped; whoever still uses it loses it.
    """
    from billing_pipeline.cli.state_lock import stop_holder
    from billing_pipeline.database import embedded
    from billing_pipeline.settings import load_settings

    state_dir = load_settings().billing_state_dir
    stopped = stop_holder(state_dir)
    stopped = embedded.stop(state_dir) or stopped
    typer.echo("Stopped." if stopped else "Nothing was running.")


@app.command()
def migrate() -> None:
    """Bring the database to this version's schema.

    The upstream team's billable_events is left alone, except in the embedded database, where it is created.
    """
    from billing_pipeline.database.connection import describe
    from billing_pipeline.database.location import resolve_database_url
    from billing_pipeline.database.migrate import migrate as bring_up_to_date
    from billing_pipeline.settings import load_settings

    settings = load_settings()
    url = resolve_database_url(settings)
    applied = bring_up_to_date(url, create_source=settings.database_url is None)
    typer.echo(f"{describe(url)}: {'applied ' + ', '.join(applied) if applied else 'up to date'}.")


@app.command()
def simulator(
    port: Annotated[int | None, typer.Option(help="Default: SIMULATOR_PORT, 12111.", min=1, max=65535)] = None,
    lag_seconds: Annotated[int, typer.Option(help="Until usage shows in meter summaries.", min=0)] = 0,
) -> None:
    """Run the Stripe simulator in the foreground.

    It keeps its account in the state folder.
    """
    from billing_pipeline.cli.local_stack import simulator_arguments
    from billing_pipeline.cli.state_lock import make_folder
    from billing_pipeline.settings import load_settings

    settings = load_settings(**({} if port is None else {"simulator_port": port}))
    make_folder(settings.billing_state_dir)
    arguments = [*simulator_arguments(settings), "--lag-seconds", str(lag_seconds)]
    # In our place, so that signals reach it without us in between.
    os.execv(sys.executable, [sys.executable, "-m", *arguments])
