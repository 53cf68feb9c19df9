"""`billing-pipeline config show`: every setting, its value and where it comes from, with the secrets masked.

Asks nothing but the environment and the settings files, so it works where nothing else does.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from billing_pipeline.settings import Settings

app = typer.Typer(help="See which settings apply, and where they come from.", no_args_is_help=True)


@app.callback()
def config() -> None:
    """A callback, so that `show` keeps its name while it is the only command."""


@app.command()
def show(
    changed: Annotated[bool, typer.Option("--changed", help="Only what differs from its default.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show every setting and where it comes from.

    Of a key its type and last four characters are shown, of a database neither user nor password.
    Example: billing-pipeline config show --changed
    """
    from billing_pipeline.settings import load_settings, origin

    settings = load_settings()
    rows = [(name, _shown(settings, name), origin(name)) for name in type(settings).model_fields]
    rows = [row for row in rows if not changed or row[2] != "default"]
    if as_json:
        shown = {name.upper(): {"value": value, "from": where} for name, value, where in rows}
        typer.echo(json.dumps({"settings": shown, **_derived(settings)}, indent=2, ensure_ascii=False))
        return
    width = max((len(name) for name, _, _ in rows), default=0)
    for name, value, where in rows:
        typer.echo(f"{name.upper():<{width}}  {value or '-':<24}  {where}".rstrip())
    if rows:
        typer.echo()
    derived = _derived(settings)
    typer.echo(f"Billing is {derived['level']}; Stripe is {derived['stripe']}.")


def _derived(settings: Settings) -> dict[str, str]:
    """What follows from several settings at once."""
    if settings.uses_simulator:
        stripe = "the local simulator"
    else:
        stripe = "asked with a live key" if settings.livemode else "asked with a test key"
    return {"level": str(settings.level), "stripe": stripe}


def _shown(settings: Settings, name: str) -> str:
    from pydantic import SecretStr

    from billing_pipeline.domain.redaction import mask

    value = getattr(settings, name)
    if value is None:
        return ""
    if isinstance(value, SecretStr):
        secret = value.get_secret_value()
        return _place(secret) if name.endswith("database_url") else mask(secret)
    if name == "billing_mark_url":
        # Any part of such an address may hold a key.
        return f"{value.partition('://')[0]}://…"
    if isinstance(value, bool):
        return str(value).lower()
    return ", ".join(value) if isinstance(value, tuple) else str(value)


def _place(database_url: str) -> str:
    from billing_pipeline.database.connection import describe
    from billing_pipeline.domain.redaction import mask
    from billing_pipeline.errors import SettingsError

    try:
        return describe(database_url)
    except SettingsError:
        # No driver could read it, so nobody knows which part of it is the password.
        return f"{mask(database_url)} (malformed)"
