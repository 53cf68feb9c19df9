"""The stages of the usage flow, each with its settings applied and behind what must hold for it.

Dagster's assets call the stages one by one; `usage/flush.py` runs them in order.  Both come through here, so a run
started by hand can do no more than the schedule: the gate is asked before anything is cut or sent, whoever asks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime, timedelta

from billing_pipeline.database.connection import connect
from billing_pipeline.database.primary import require_primary
from billing_pipeline.database.schema_version import require_current_schema
from billing_pipeline.domain.brakes import brakes_of
from billing_pipeline.domain.contract_rules import Fault
from billing_pipeline.domain.volume import MeterVolume
from billing_pipeline.settings import Level, Settings
from billing_pipeline.stripe_api.catalogue import canary_customer, require_meters
from billing_pipeline.stripe_api.error_reports import error_reports
from billing_pipeline.usage import gate
from billing_pipeline.usage.aggregate import AggregationReport, Scope, aggregate, next_scope, recorded_since
from billing_pipeline.usage.canary import look_for_canaries, lost_canaries, unproved_without_canary
from billing_pipeline.usage.confirm import ConfirmReport, confirm
from billing_pipeline.usage.contract import ContractReport, examine_source, judged_since, validate_contract
from billing_pipeline.usage.cut import CutReport, cut
from billing_pipeline.usage.error_reports import ErrorReportsRead, apply_error_reports, read_since
from billing_pipeline.usage.flow_context import FlowContext
from billing_pipeline.usage.periods import PeriodsReport, sync_periods
from billing_pipeline.usage.submit import SubmitContext, SubmitReport, batch_size, send_canaries, submit
from billing_pipeline.usage.volume import meter_volumes, require_steady_volume, volume_faults


class UsageFlow(FlowContext):
    """The stages of the usage flow, in running order."""

    def validate_contract(self, scope: Scope | None = None) -> ContractReport:
        """Stage 1, over the rows recorded since the last aggregation, or the whole lookback where FULL is due."""
        self.take_lease()
        # The aggregation picks its scope later, so FULL counts as due already when it is within this flush's lease.
        scope = scope or next_scope(self.connection, self.clock() + self.lease_ttl)
        since = None if scope is Scope.FULL else self._not_validated_since()
        return validate_contract(
            self.connection,
            self.database_url,
            source=self.read_source(),
            catalogue=self.catalogue,
            since=since,
            lookback=self._lookback,
            required_event_types=self.settings.required_event_types,
            now=self.clock(),
        )

    def examine_contract(self) -> tuple[ContractReport, list[Fault]]:
        """What a person asks between flushes: the whole lookback, and the volume of what was aggregated last.

        It brings the quarantine up to date like stage 1, but the gate does not go by it.
        """
        self.take_lease()
        report = examine_source(
            self.connection,
            self.database_url,
            source=self.read_source(),
            catalogue=self.catalogue,
            since=None,
            lookback=self._lookback,
            required_event_types=self.settings.required_event_types,
            now=self.clock(),
        )
        return report, self.volume_faults()

    def sync_periods(self) -> PeriodsReport:
        """Before stage 2: know where billing periods begin and end.  Asks Stripe nothing while billing is off.

        Raises `StripeUnavailable` or `StripeRefused`: without the edges nothing may be counted, see decision 0007.
        """
        self.take_lease()
        if self.settings.level is Level.OFF:
            return PeriodsReport()
        return sync_periods(self.connection, self.periods_at_stripe, clock=self.clock)

    def aggregate(self, scope: Scope | None = None) -> AggregationReport:
        """Stage 2.  Raises `ContractBlocked` for a source that cannot be counted, whatever the settings say."""
        self.take_lease()
        return self.recompute(scope)

    def recompute(self, scope: Scope | None = None) -> AggregationReport:
        """Stage 2 itself, for whoever needs no lease."""
        return aggregate(
            self.connection,
            source=self.read_source(),
            catalogue=self.catalogue,
            start_at=self.settings.billing_start_at,
            overlap=timedelta(seconds=self.settings.billing_cutoff_overlap_seconds),
            clock=self.clock,
            scope=scope,
        )

    def meter_volumes(self) -> list[MeterVolume]:
        """What each meter counted per day, and in the last complete hour, as of the last aggregation."""
        grace = timedelta(seconds=self.settings.billing_window_grace_seconds)
        return meter_volumes(self.connection, grace=grace)

    def volume_faults(self) -> list[Fault]:
        """The contract's rules about volume and units, asked of what stage 2 left."""
        return volume_faults(self.meter_volumes(), self.settings.volume_factors)

    def cut(self, organization_id: str | None = None) -> CutReport:
        """Stage 3, behind the gate; cuts nothing while billing is off.  Of one organization, where it is named.

        Only here amounts become final, so only here the volume is asked about: after aggregation, unlike the rest of
        the contract.
        """
        if self.settings.level is Level.OFF:
            return CutReport()
        return self.cut_closed(self.identity_to_cut(), organization_id=organization_id)

    def identity_to_cut(self) -> gate.Identity:
        """The ledger's identity, if a cut may follow: under the lease, behind the gate, with steady volume."""
        self.take_lease()
        identity = self.pass_gate()
        if self.contract_stops:
            require_steady_volume(self.volume_faults())
        return identity

    def closed_before(self) -> datetime:
        """Windows that ended by then are closed: their stragglers had their grace."""
        return self.clock() - timedelta(seconds=self.settings.billing_window_grace_seconds)

    def cut_closed(
        self, identity: gate.Identity, *, closed_before: datetime | None = None, organization_id: str | None = None
    ) -> CutReport:
        """Stage 3 itself, for whoever passed the gate; of the windows closed by now, or by an earlier time."""
        return cut(
            self.connection,
            identity=identity,
            closed_before=closed_before or self.closed_before(),
            organization_id=organization_id,
            past_max=self.settings.protocol_times.past_max,
            brakes=brakes_of(
                self.catalogue,
                hour_factor=self.settings.billing_brake_hour_factor,
                taken_back_percent=self.settings.billing_brake_taken_back_percent,
            ),
            clock=self.clock,
        )

    def submit(
        self, on_progress: Callable[[int], None] = lambda sent: None, *, organization_id: str | None = None
    ) -> SubmitReport:
        """Stage 4, behind the gate; sends nothing unless billing is live.  Of one organization, where it is named."""
        lease = self.take_lease()
        if self.settings.level is not Level.LIVE:
            return SubmitReport()
        identity = self.pass_gate()
        require_meters(self.catalogue, self.meters_at_stripe)
        if (lost := lost_canaries(self.connection, self.summaries, now=self.clock())) is not None:
            gate.freeze(self.connection, lost, now=self.clock())
            self.pass_gate()
        context = SubmitContext(
            identity=identity,
            lease=lease,
            lease_ttl=self.lease_ttl,
            mark=self.mark,
            times=self.settings.protocol_times,
            concurrency=self.settings.stripe_max_concurrency,
            canary_customer=canary_customer(self.stripe, self.settings),
            event_names=tuple(meter.event_name for meter in self.catalogue.meters),
            batch_size=batch_size(self.settings.meter_events_per_second),
            organization_id=organization_id,
        )
        report = submit(self.connection, self.new_sink(), context, clock=self.clock, on_progress=on_progress)
        if report.attempts == 0 and unproved_without_canary(
            self.connection, absence_after=context.times.absence_after, now=self.clock()
        ):
            # Nothing else is sent now, and without a later canary absence would never count.
            report = replace(report, canaries=self._send_canaries(context.canary_customer))
        return report

    def apply_error_reports(self) -> ErrorReportsRead:
        """Before stage 5: reject what Stripe refused after accepting it.  A frozen ledger settles nothing."""
        self.take_lease()
        if self.settings.level is Level.OFF:
            return ErrorReportsRead()
        self.pass_gate(contract=False)
        since = read_since(self.connection, now=self.clock())
        reports = error_reports(self.stripe, self.settings, since=since)
        return apply_error_reports(self.connection, reports, now=self.clock())

    def send_canaries_while_frozen(self) -> int:
        """Recovery needs canaries later than the freeze; they are nobody's usage, so they may go."""
        sent = self._send_canaries(canary_customer(self.stripe, self.settings))
        look_for_canaries(self.connection, self.summaries, now=self.clock())
        return sent

    def _send_canaries(self, customer: str | None) -> int:
        if customer is None:
            return 0
        names = [meter.event_name for meter in self.catalogue.meters]
        return send_canaries(
            self.connection, self.new_sink(), gate.read_identity(self.connection), customer, names, self.clock
        )

    def confirm(self) -> ConfirmReport:
        """Stage 5; reads Stripe, and settles entries by what it shows.  A frozen ledger settles nothing."""
        self.take_lease()
        if self.settings.level is Level.OFF:
            return ConfirmReport()
        self.pass_gate(contract=False)
        return confirm(
            self.connection,
            self.summaries,
            times=self.settings.protocol_times,
            reads_max=self.settings.billing_summary_reads_max,
            clock=self.clock,
        )

    @property
    def _lookback(self) -> timedelta:
        return timedelta(days=self.settings.stripe_billing_contract_lookback_days)

    def _not_validated_since(self) -> datetime | None:
        # Aggregation may have gone on while validation was switched off, and the other way round.
        overlap = timedelta(seconds=self.settings.billing_cutoff_overlap_seconds)
        aggregated, validated = recorded_since(self.connection, overlap), judged_since(self.connection, overlap)
        return min(aggregated, validated) if aggregated and validated else None


@contextmanager
def open_flow(settings: Settings, database_url: str, *, holder: str, only_reads: bool = False) -> Iterator[UsageFlow]:
    """A flow over a connection of its own; `holder` names who flushes, in the lease.

    Raises `UserError` for a database with another version's schema, and `DatabaseUnavailable` for a standby unless the
    caller `only_reads`.
    """
    with connect(database_url) as connection:
        if not only_reads:
            require_primary(connection, database_url)
        require_current_schema(connection)
        yield UsageFlow(connection, database_url, settings, holder=holder)
