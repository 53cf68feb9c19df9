"""The preflight's probes about Dagster itself, and how the command asks them: of the webserver, by its GraphQL.

The command does not open Dagster's storage: that takes the instance's own secrets, may create tables in it, and does
not know whether the code location loads.  The webserver knows all of it, that of `billing-pipeline up` and any other.
Nothing here imports Dagster, which would cost the command a second.
"""

import json
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any

from billing_pipeline.domain.probes import Finding, fails, passes, warns
from billing_pipeline.errors import Unavailable
from billing_pipeline.usage.preflight.ask import Ask
from billing_pipeline.usage.preflight.site import Site

LOCATION = "billing_pipeline"
SCHEDULE = "hourly_usage_flush"
DAEMONS_NEEDED = ("SCHEDULER", "QUEUED_RUN_COORDINATOR", "MONITORING", "SENSOR")
"""They start runs at their time, launch what is queued, end what hangs, and will replay."""
ANSWER_SECONDS_MAX = 10

QUERY = """
query Preflight {
  version
  instance { daemonHealth { allDaemonStatuses { daemonType required healthy lastHeartbeatTime } } }
  workspaceOrError {
    ... on Workspace {
      locationEntries {
        name
        loadStatus
        locationOrLoadError {
          __typename
          ... on RepositoryLocation { repositories { schedules { name scheduleState { status } } } }
          ... on PythonError { className }
        }
      }
    }
  }
}
"""


@dataclass(frozen=True, slots=True)
class Daemon:
    """One of Dagster's daemons; one that dagster.yaml does not ask for has no health."""

    name: str
    required: bool
    healthy: bool
    last_heartbeat: datetime | None


@dataclass(frozen=True, slots=True)
class DagsterState:
    """What is asked of Dagster, whoever asked."""

    where: str
    location_fault: str | None
    daemons: tuple[Daemon, ...]
    schedule_is_on: bool


def dagster_asks(read: Callable[[Site], DagsterState]) -> Mapping[str, Ask]:
    """How to ask the probes about Dagster, of the state that `read` gives, or it raises `Unavailable`."""
    state = cache(read)
    return {
        "dagster": lambda site: _dagster(site, state),
        "dagster_location": lambda site: _location(state(site)),
        "dagster_daemons": lambda site: _daemons(state(site)),
        "dagster_schedule": lambda site: _schedule(state(site), required=site.require_enabled),
    }


def state_by_graphql(site: Site) -> DagsterState:
    """What the webserver at DAGSTER_PORT says.  Raises `Unavailable` where none answers."""
    return state_at(site.settings.dagster_port)


def state_at(port: int) -> DagsterState:
    """What the webserver at a port of this machine says.  Raises `Unavailable` where none answers."""
    where = f"port {port} of this machine"
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/graphql",
        data=json.dumps({"query": QUERY}).encode(),
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS_MAX) as answer:
            return parse_state(json.load(answer)["data"], where=where)
    except (urllib.error.HTTPError, ValueError, KeyError, TypeError):
        raise Unavailable(f"what answers at {where} is not Dagster, or not this project's version of it") from None
    except OSError:
        raise Unavailable(f"Dagster does not answer at {where}") from None


def parse_state(data: Mapping[str, Any], *, where: str) -> DagsterState:
    """The state in an answer to `QUERY`.  Raises `KeyError` or `TypeError` for any other answer."""
    entries = {entry["name"]: entry for entry in data["workspaceOrError"].get("locationEntries", [])}
    location = (entries.get(LOCATION) or {}).get("locationOrLoadError")
    schedules = {
        schedule["name"]: schedule["scheduleState"]["status"]
        for repository in (location or {}).get("repositories", [])
        for schedule in repository["schedules"]
    }
    return DagsterState(
        where=f"Dagster {data['version']} at {where}",
        location_fault=_location_fault(entries, location),
        daemons=tuple(
            Daemon(
                status["daemonType"], status["required"], bool(status["healthy"]), _instant(status["lastHeartbeatTime"])
            )
            for status in data["instance"]["daemonHealth"]["allDaemonStatuses"]
        ),
        schedule_is_on=schedules.get(SCHEDULE) == "RUNNING",
    )


def _location_fault(entries: Mapping[str, Any], location: Mapping[str, Any] | None) -> str | None:
    if LOCATION not in entries:
        return f"it is not among those of the workspace ({', '.join(entries) or 'none'})"
    if location is None:
        return "it is still loading"
    if location["__typename"] != "RepositoryLocation":
        # The class and not the words of the error, which may quote anything; the UI shows those.
        return f"it does not load: {location.get('className') or location['__typename']}"
    return None


def _instant(epoch: Any) -> datetime | None:
    return None if epoch is None else datetime.fromtimestamp(epoch, UTC)


def _dagster(site: Site, state: Callable[[Site], DagsterState]) -> Finding:
    try:
        return passes(state(site).where)
    except Unavailable as exc:
        # Only told: a flush that was started by hand does not need it.
        return warns(str(exc), blocks=True)


def _location(state: DagsterState) -> Finding:
    return fails(state.location_fault) if state.location_fault else passes(f"{LOCATION} is loaded")


def _daemons(state: DagsterState) -> Finding:
    daemons = {daemon.name: daemon for daemon in state.daemons}
    dead = [_dead(daemon) for daemon in state.daemons if daemon.required and not daemon.healthy]
    absent = [name for name in DAEMONS_NEEDED if name not in daemons or not daemons[name].required]
    if dead:
        return fails("; ".join(dead))
    if absent:
        return warns(f"dagster.yaml does not ask for {', '.join(absent)}")
    return passes(f"alive: {', '.join(daemon.name for daemon in state.daemons if daemon.required)}")


def _dead(daemon: Daemon) -> str:
    since = f"since {daemon.last_heartbeat:%Y-%m-%d %H:%M:%S} UTC" if daemon.last_heartbeat else "ever"
    return f"{daemon.name} has not been heard of {since}"


def _schedule(state: DagsterState, *, required: bool) -> Finding:
    if state.schedule_is_on:
        return passes(f"{SCHEDULE} is on")
    told = f"{SCHEDULE} is off, so no flush runs by itself"
    return fails(told) if required else warns(told)
