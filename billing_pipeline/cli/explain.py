"""`billing-pipeline explain`: why somebody was billed what they were, from the rows of the source to Stripe's proof.

Reads only; without Stripe only the price is unknown.
"""

from __future__ import annotations

import json
import re
from dataclasses import asdict, replace
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated, Any

import typer

from billing_pipeline.cli.hints import as_typed
from billing_pipeline.errors import UserError

if TYPE_CHECKING:
    from billing_pipeline.usage.explain import Question
    from billing_pipeline.usage.explain_line import LineExplanation
    from billing_pipeline.usage.explained import Explanation
    from billing_pipeline.usage.page import Page
    from billing_pipeline.usage.reading import Reading

ENTRY_MAX = 2**63 - 1
_INVOICE = re.compile(r"(in_\w+)(?:/(\w+))?")


def explain_command(
    organization: Annotated[str | None, typer.Option("--org", help="The organization; with --at.")] = None,
    at: Annotated[
        str | None, typer.Option(help="A time in the hour, with its offset, or a UTC hour such as 2026-11-20T13.")
    ] = None,
    meter: Annotated[str | None, typer.Option(help="Only this meter; with --org.")] = None,
    entry: Annotated[int | None, typer.Option(help="The hour of this ledger entry.")] = None,
    identifier: Annotated[str | None, typer.Option(help="The hour of the entry of this name at Stripe.")] = None,
    invoice_line: Annotated[
        str | None, typer.Option(metavar="in_.../il_...", help="The whole period of this line of an invoice.")
    ] = None,
    events: Annotated[int, typer.Option(min=0, max=10_000, help="How many event ids to name of each sum.")] = 20,
    as_json: Annotated[
        bool, typer.Option("--json", help="For programs; amounts are texts, so that none is cut.")
    ] = False,
) -> None:
    """Say why an hour or an invoice line was billed so.

    From the rows of the source over the arithmetic to each attempt and what Stripe showed; ends with one plain line.
    Changes nothing, and works on a standby and while the ledger is frozen.

    Example: billing-pipeline explain --org acme --at 2026-11-20T13:00:00Z
    """
    from billing_pipeline.cli.local_stack import ready_database
    from billing_pipeline.settings import load_settings
    from billing_pipeline.usage.explain import explain_hour
    from billing_pipeline.usage.explain_line import page_of_line
    from billing_pipeline.usage.explain_page import page_of
    from billing_pipeline.usage.reading import open_reading

    _require_one_question(
        {"--org": organization, "--entry": entry, "--identifier": identifier, "--invoice-line": invoice_line}
    )
    if organization is None and (at is not None or meter is not None):
        raise UserError("--at and --meter belong to --org; an entry and a line know their own hour and meter.")
    found: Explanation | LineExplanation
    page: Page
    settings = load_settings()
    with open_reading(settings, ready_database(settings)) as reading:
        if invoice_line is not None:
            line = _line(reading, invoice_line)
            found, page = line, page_of_line(line)
        else:
            question = _question(reading, organization, at, meter, entry, identifier)
            hour = explain_hour(reading, replace(question, events_max=events))
            found, page = hour, page_of(hour)
    typer.echo(json.dumps(plain(asdict(found)), indent=2) if as_json else _text(page))


def plain(value: Any) -> Any:
    """What JSON can hold: amounts and times as texts."""
    match value:
        case Decimal():
            return f"{value:f}"
        case datetime():
            return value.isoformat()
        case dict():
            return {name: plain(one) for name, one in value.items()}
        case list() | tuple():
            return [plain(one) for one in value]
    return value


def _require_one_question(given: dict[str, object]) -> None:
    named = [option for option, value in given.items() if value is not None]
    if len(named) > 1:
        raise UserError(f"{' and '.join(named)} are different questions; give one of them.")
    if not named:
        raise UserError(f"Say what to explain: one of {', '.join(given)}; --org needs --at as well.")


def _question(
    reading: Reading,
    organization: str | None,
    at: str | None,
    meter: str | None,
    entry: int | None,
    identifier: str | None,
) -> Question:
    from billing_pipeline.domain.given_hours import hour_given
    from billing_pipeline.usage.explain import Question, place_of_entry

    if organization is None:
        if entry is not None and not 0 < entry <= ENTRY_MAX:
            raise UserError(f"The ledger has no entry {entry}.")
        return place_of_entry(reading.connection, entry_id=entry, identifier=identifier)
    if at is None:
        raise UserError("--org needs --at, a time in the hour to explain, such as 2026-11-20T13:00:00Z.")
    return Question(organization, hour_given(at, now=reading.clock()), meter)


def _line(reading: Reading, given: str) -> LineExplanation:
    from billing_pipeline.stripe_api.catalogue import read_meters
    from billing_pipeline.stripe_api.client import make_client
    from billing_pipeline.stripe_api.invoices import read_invoice_line
    from billing_pipeline.usage.explain_line import explain_line

    matched = _INVOICE.fullmatch(given.strip())
    if matched is None:
        raise UserError(
            f"{given} does not name a line: Stripe has no address for a line alone. Write in_.../il_...; the "
            "invoice's id is in the address of its page in the Dashboard."
        )
    client = make_client(reading.settings)
    line = read_invoice_line(client, reading.settings, matched[1], matched[2])
    names = {meter.meter_id: name for name, meter in read_meters(client, reading.settings).items()}
    if line.meter_id not in names:
        raise UserError(f"The line bills Stripe's meter {line.meter_id}, which this account does not list.")
    return explain_line(reading.connection, line, names[line.meter_id])


def _text(page: Page) -> str:
    from billing_pipeline.usage.page import as_text

    return as_typed(as_text(page))
