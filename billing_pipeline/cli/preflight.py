"""`billing-pipeline preflight`: is everything in place that a flush needs?  One line per probe, and nothing is changed.

For a Monday before production charging is enabled, for a deployment's script, and for 3 a.m.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from billing_pipeline.cli.hints import as_typed

if TYPE_CHECKING:
    from rich.status import Status

    from billing_pipeline.domain.probes import Finding, Probe

DOCUMENT = "docs/operations.md#preflight-"


def preflight_command(
    require_enabled: Annotated[
        bool, typer.Option("--require-enabled", help="Fail below level live, and where no flush runs by itself.")
    ] = False,
    fail_closed: Annotated[
        bool | None,
        typer.Option("--fail-closed/--no-fail-closed", help="Exit 1 when a probe fails. Default: --fail-closed."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Ask whether everything is in place that a flush needs.

    Prints one line per probe, then what to do; changes nothing anywhere.
    Exits 1 when failing closed and a probe fails.
    Example: billing-pipeline preflight --require-enabled
    """
    from billing_pipeline.domain.probes import PROBES, Result
    from billing_pipeline.orchestration.dagster_probes import dagster_asks, state_by_graphql
    from billing_pipeline.settings import load_settings
    from billing_pipeline.usage.preflight.ask import ASKS, ask
    from billing_pipeline.usage.preflight.site import Site

    closed = fail_closed is not False
    decided_by = "by default" if fail_closed is None else "--fail-closed" if fail_closed else "--no-fail-closed"
    site = Site(load_settings, require_enabled=require_enabled)
    asks = {**ASKS, **dagster_asks(state_by_graphql)}
    told: list[tuple[Probe, Finding]] = []
    with _progress() as progress:

        def on_begin(probe: Probe) -> None:
            progress.update(f"Asking {probe.name} ...")

        for probe, finding in ask(site, set(PROBES), asks, on_begin):
            told.append((probe, finding))
            if not as_json:
                typer.echo(_line(probe, finding))
    failed = sum(finding.result is Result.FAIL for _, finding in told)
    if as_json:
        typer.echo(_as_json(told, fail_closed=closed, require_enabled=require_enabled))
    else:
        _print_next_steps(told)
        applied = f"{'Fails closed' if closed else 'Only reports'} ({decided_by})"
        typer.echo(f"\n{_counts(told)}. {applied}{'; must be live (--require-enabled)' if require_enabled else ''}.")
    if failed and closed:
        raise typer.Exit(1)


@contextmanager
def _progress() -> Iterator[Status]:
    """Which probe is being asked, on stderr, where a person looks at it."""
    from rich.console import Console
    from rich.status import Status

    console = Console(stderr=True)
    status = Status("Asking ...", console=console)
    if not console.is_terminal:
        yield status
        return
    with status:
        yield status


def _line(probe: Probe, finding: Finding) -> str:
    from billing_pipeline.domain.probes import PROBES

    width = max(len(name) for name in PROBES)
    return as_typed(f"{finding.result}  {probe.name:<{width}}  {_one_line(finding.found)}")


def _print_next_steps(told: list[tuple[Probe, Finding]]) -> None:
    """For each that did not pass, in order; what was skipped waits for another and needs no words of its own."""
    from billing_pipeline.domain.probes import Result

    for probe, finding in told:
        if finding.result in (Result.WARN, Result.FAIL):
            typer.echo(as_typed(f"\n{probe.name}: {_one_line(finding.remedy or probe.remedy)}"))
            typer.echo(f"  {DOCUMENT}{probe.name}")


def _counts(told: list[tuple[Probe, Finding]]) -> str:
    from billing_pipeline.domain.probes import Result

    found = [finding.result for _, finding in told]
    words = {Result.FAIL: "fail", Result.WARN: "warn", Result.SKIP: "skipped", Result.PASS: "pass"}
    return ", ".join(f"{found.count(result)} {word}" for result, word in words.items())


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _as_json(told: list[tuple[Probe, Finding]], *, fail_closed: bool, require_enabled: bool) -> str:
    from billing_pipeline.domain.probes import Result

    probes = []
    for probe, finding in told:
        passed = finding.result is Result.PASS
        probes.append(
            {
                "name": probe.name,
                "result": str(finding.result),
                "found": _one_line(finding.found),
                "do_next": None if passed else _one_line(finding.remedy or probe.remedy),
                "see": None if passed else f"{DOCUMENT}{probe.name}",
            }
        )
    answer = {
        "passed": all(finding.result is not Result.FAIL for _, finding in told),
        "fail_closed": fail_closed,
        "require_enabled": require_enabled,
        "probes": probes,
    }
    return json.dumps(answer, indent=2)
