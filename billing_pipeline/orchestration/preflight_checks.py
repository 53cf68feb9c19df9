"""The preflight as asset checks: one per probe, each on the asset it belongs to, made from the one list of probes.

None blocks: what must hold before money moves is repeated by the gate, whoever starts a flush.
Inside a run Dagster is asked through the run's own instance, so this works wherever Dagster runs.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial

import dagster as dg

from billing_pipeline.domain.probes import PROBES, Finding, Probe, Result
from billing_pipeline.errors import Unavailable
from billing_pipeline.orchestration.dagster_probes import SCHEDULE, Daemon, DagsterState, dagster_asks
from billing_pipeline.orchestration.switches import is_on
from billing_pipeline.settings import load_settings
from billing_pipeline.usage.preflight.ask import ASKS, ask
from billing_pipeline.usage.preflight.site import Site

DOCUMENT = "docs/operations.md#preflight-"


@dg.multi_asset_check(
    name="preflight_checks",
    specs=[
        dg.AssetCheckSpec(
            probe.name,
            asset=dg.AssetKey.from_user_string(probe.asset),
            description=f"{probe.asks}\n\nWhen it fails: {probe.cause}\n\nThen: {probe.remedy}",
        )
        for probe in PROBES.values()
    ],
    can_subset=True,
)
def preflight_checks(context: dg.AssetCheckExecutionContext) -> Iterator[dg.AssetCheckResult]:
    """Is everything in place that a flush needs?  Reads only; `billing-pipeline preflight` asks the same."""
    asked = {key.name for key in context.selected_asset_check_keys}
    asks = {**ASKS, **dagster_asks(partial(state_of_instance, instance=context.instance))}
    for probe, finding in ask(Site(load_settings), asked, asks):
        yield _result(probe, finding)


def state_of_instance(site: Site, instance: dg.DagsterInstance) -> DagsterState:
    """What the instance of this run knows.  Raises `Unavailable` for one that keeps nothing."""
    if instance.is_ephemeral:
        raise Unavailable("this run has a Dagster of its own, without DAGSTER_HOME")
    heartbeats = instance.get_daemon_statuses()
    return DagsterState(
        where=f"Dagster {dg.__version__}, which runs this check",
        location_fault=None,
        daemons=tuple(
            Daemon(
                name=status.daemon_type,
                required=status.required,
                healthy=bool(status.healthy),
                last_heartbeat=datetime.fromtimestamp(beat.timestamp, UTC) if (beat := status.last_heartbeat) else None,
            )
            for status in heartbeats.values()
        ),
        schedule_is_on=is_on(instance, SCHEDULE),
    )


def _result(probe: Probe, finding: Finding) -> dg.AssetCheckResult:
    passed = finding.result is Result.PASS
    told = {"result": str(finding.result), "found": finding.found}
    if not passed:
        told |= {"do_next": finding.remedy or probe.remedy, "see": f"{DOCUMENT}{probe.name}"}
    return dg.AssetCheckResult(
        check_name=probe.name,
        asset_key=dg.AssetKey.from_user_string(probe.asset),
        passed=passed,
        severity=dg.AssetCheckSeverity.ERROR if finding.result is Result.FAIL else dg.AssetCheckSeverity.WARN,
        description=finding.found if passed else f"{finding.result}: {finding.found}",
        metadata=told,
    )
