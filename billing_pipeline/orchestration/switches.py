"""Whether somebody turned a schedule or sensor of this location on; asked by checks that mean something only then."""

import dagster as dg

from billing_pipeline.orchestration.launch import LOCATION


def is_on(instance: dg.DagsterInstance, name: str) -> bool:
    """Whether the schedule or sensor of this name runs; in an instance that keeps nothing none does."""
    return not instance.is_ephemeral and any(
        switch.instigator_name == name
        and switch.origin.repository_origin.code_location_origin.location_name == LOCATION
        and switch.is_running
        for switch in instance.all_instigator_state()
    )
