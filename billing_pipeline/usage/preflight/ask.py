"""Asks one probe after the other, and never stops at one that fails.

Called by the command and by Dagster's checks, with the probes about Dagster that each of them knows how to ask.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator, Mapping

from billing_pipeline.domain.probes import Finding, Probe, Result, fails, with_needs
from billing_pipeline.errors import BillingError
from billing_pipeline.usage.preflight import (
    about_feed,
    about_ledger,
    about_settings,
    about_source,
    about_stripe,
    about_webhooks,
    about_work,
)
from billing_pipeline.usage.preflight.site import Site

Ask = Callable[[Site], Finding]

ASKS: Mapping[str, Ask] = {
    "settings": about_settings.settings,
    "level": about_settings.level,
    "database": about_settings.database,
    "schema": about_settings.schema,
    "durability": about_settings.durability,
    "catalogue": about_settings.catalogue,
    "source": about_source.source,
    "source_indexes": about_source.source_indexes,
    "lookback": about_source.lookback,
    "contract": about_work.contract,
    "lease": about_work.lease,
    "customers_mapped": about_work.customers_mapped,
    "high_water_mark": about_ledger.high_water_mark,
    "frozen": about_ledger.frozen,
    "restored": about_ledger.restored,
    "stripe_key": about_stripe.stripe_key,
    "stripe_scopes": about_stripe.stripe_scopes,
    "clock": about_stripe.clock,
    "ledger_account": about_ledger.ledger_account,
    "meters": about_stripe.meters,
    "prices": about_stripe.prices,
    "canary_customer": about_stripe.canary_customer,
    "canaries": about_ledger.canaries,
    "webhook_endpoint": about_webhooks.webhook_endpoint,
    "billing_stream": about_feed.billing_stream,
}
"""How each probe that does not need Dagster is asked."""


def ask(
    site: Site,
    names: set[str],
    asks: Mapping[str, Ask],
    on_begin: Callable[[Probe], None] = lambda probe: None,
) -> Iterator[tuple[Probe, Finding]]:
    """Each probe of these names with what it found, in order.

    What they need is asked too and not told; `on_begin` hears of a probe before it is asked.
    """
    in_the_way: dict[str, tuple[str, ...]] = {}
    for probe in with_needs(names):
        # What failed itself, and not what was skipped for it: that is where a person has to begin.
        causes = tuple(dict.fromkeys(cause for need in probe.needs for cause in in_the_way[need]))
        if causes:
            begin_with = " and ".join(causes)
            finding = Finding(
                Result.SKIP, f"not asked, because of {begin_with}", f"First mend {begin_with}, then ask again."
            )
        else:
            on_begin(probe)
            finding = _asked(asks[probe.name], site)
        in_the_way[probe.name] = causes or ((probe.name,) if finding.is_in_the_way else ())
        if probe.name in names:
            yield probe, finding


def _asked(question: Ask, site: Site) -> Finding:
    try:
        return question(site)
    except BillingError as exc:
        return fails(str(exc))
    except Exception as exc:
        # One broken probe must not hide the others.  Where, and no words: those of a library may quote a secret.
        place = traceback.extract_tb(exc.__traceback__)[-1]
        where = f"{type(exc).__name__} in {place.name}, {place.filename.rpartition('/')[2]}:{place.lineno}"
        return fails(f"this probe broke: {where}", "This is a defect of the pipeline; report it with that place.")
