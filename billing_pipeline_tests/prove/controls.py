"""Negative controls: the protocol broken on purpose, twelve ways.  The proof is worth as much as it catches of them.

A control changes the product from outside, in this process; nothing in the package knows of them.
The first nine are those of the protocol's model (retry for ever, and so on); the others are mistakes of other systems.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any
from unittest.mock import patch
from uuid import uuid4

from billing_pipeline.database import queries
from billing_pipeline.domain.entries import EntryState, Outcome, Verdict
from billing_pipeline.stripe_api.meter_events import Answer, V1MeterSink, V2StreamSink
from billing_pipeline.usage import aggregate, attempts, confirm, flow, gate, send, submit
from billing_pipeline.usage.aggregate import Scope
from billing_pipeline.usage.mark import HighWaterMark, Mark
from billing_pipeline_tests.prove.plan import Chances
from billing_pipeline_tests.prove.world import World

HOUR = timedelta(hours=1)
ROUGH = Chances(outage=0.03, downtime=0.02, silent_drop=0.01, late_delivery=timedelta(hours=1))

LATE = replace(ROUGH, blind=1.0, late_delivery=timedelta(hours=1.9))
"""No summary confirms what was counted unheard, until Stripe has forgotten its identifier."""


@dataclass(frozen=True)
class Control:
    """How to break the product, and the weather in which that shows."""

    name: str
    apply: Callable[[World, ExitStack], None]
    chances: Chances = ROUGH
    settings: dict[str, Any] = field(default_factory=dict)


def _set(stack: ExitStack, target: Any, name: str, value: Any) -> None:
    stack.enter_context(patch.object(target, name, value))


def _times(world: World, **times: timedelta) -> None:
    # Past the check that the times fit together, which would refuse them.
    world.settings.__dict__["protocol_times"] = replace(world.settings.protocol_times, **times)


def retry_for_ever(world: World, stack: ExitStack) -> None:
    """An unknown attempt is repeated under the same identifier, however late."""
    _times(world, safe_send=10_000 * HOUR)


def late_cut_off(world: World, stack: ExitStack) -> None:
    """Nothing later than 23.9 h, as if no request were ever late."""
    _times(world, safe_send=timedelta(hours=23.9))


def abandon(world: World, stack: ExitStack) -> None:
    """What is unknown after 20 h stays so for ever."""
    judge = confirm.judge_evidence

    def never_replaced(**facts: Any) -> Verdict:
        verdict = judge(**facts)
        return Verdict.UNDECIDED if verdict is Verdict.REPLACED else verdict

    _set(stack, confirm, "judge_evidence", never_replaced)


def settle_too_short(world: World, stack: ExitStack) -> None:
    """Absence counts after an hour and a half, though summaries lag for six; the canary is not waited for."""
    judge = confirm.judge_evidence

    def impatient(**facts: Any) -> Verdict:
        return judge(**facts | {"canary_sent_at": facts["observed_at"]})

    _times(world, settle=HOUR / 2, safe_send=HOUR)
    _set(stack, confirm, "judge_evidence", impatient)


def no_gate(world: World, stack: ExitStack) -> None:
    """A restored ledger goes on as if nothing had happened."""
    _set(stack, gate, "lost_attempts", lambda *_: None)
    _set(stack, flow, "lost_canaries", lambda *_, **__: None)
    state_after = attempts.state_after
    _set(stack, attempts, "state_after", lambda outcome, **_: state_after(outcome, earlier_unknown=True))
    _set(stack, submit, "halts", lambda *_: False)
    _set(stack, send, "halts", lambda *_: False)


def gate_without_adoption(world: World, stack: ExitStack) -> None:
    """A restored ledger is noticed and released, but what Stripe shows is not adopted."""

    def only_sign(connection: Any, *_: Any, mark: HighWaterMark, actor: str, reason: str, **rest: Any) -> None:
        now = rest["clock"]()
        queries.fetch_dicts(connection, "raise_epoch", {"passed": 0})
        stored = mark.read()
        queries.fetch_dicts(connection, "pass_attempt_numbers", {"attempt_id": stored.attempt_id if stored else 0})
        gate.record_operation(connection, "adopt", actor=actor, reason=reason, now=now)
        identity = gate.read_identity(connection)
        mark.replace_with(Mark(str(identity.ledger_id), world.attempts(), identity.epoch))

    _set(stack, world, "adopt", only_sign)
    _set(stack, flow, "lost_canaries", lambda *_, **__: None)


def sent_before_sending(world: World, stack: ExitStack) -> None:
    """An entry is taken for sent, and counted, before Stripe has answered."""
    send = submit.send_batch

    async def assume(*args: Any) -> list[Answer]:
        return [Answer(Outcome.OK)] * len(await send(*args))

    def believe(**facts: Any) -> Verdict:
        return Verdict.CONFIRMED if facts["state"] is EntryState.ACCEPTED else Verdict.UNDECIDED

    _set(stack, submit, "send_batch", assume)
    _set(stack, confirm, "judge_evidence", believe)


def no_confirmation(world: World, stack: ExitStack) -> None:
    """What Stripe accepted is never looked for."""
    _set(stack, flow.UsageFlow, "confirm", lambda self: None)


def random_identifier(world: World, stack: ExitStack) -> None:
    """Every attempt has a name of its own."""
    send = V1MeterSink.send

    async def renamed(self: V1MeterSink, events: Any) -> list[Answer]:
        return await send(self, [replace(event, identifier=uuid4().hex) for event in events])

    _set(stack, V1MeterSink, "send", renamed)


def batch_level_outcome(world: World, stack: ExitStack) -> None:
    """A batch whose answer was lost is booked as not sent, and its clock starts anew."""
    send = V2StreamSink.send

    async def all_or_nothing(self: V2StreamSink, events: Any) -> list[Answer]:
        answers = await send(self, events)
        return [replace(a, outcome=Outcome.NOT_EXECUTED) if a.outcome is Outcome.UNKNOWN else a for a in answers]

    _set(stack, V2StreamSink, "send", all_or_nothing)


def cursor_that_skips(world: World, stack: ExitStack) -> None:
    """Rows are read from the last cutoff on, without overlap and without a daily look at everything."""
    _set(stack, world, "looks_at_everything", False)
    _set(stack, aggregate, "recorded_since", lambda connection, overlap: world.cutoff())
    _set(stack, aggregate, "next_scope", lambda connection, now: Scope.TOUCHED if world.cutoff() else Scope.FULL)


def float_sum(world: World, stack: ExitStack) -> None:
    """Quantities are added up as floats."""
    statements = queries.statements()
    exact = "sum(quantity) AS quantity"
    assert exact in statements["sum_hours"]
    rounded = statements["sum_hours"].replace(exact, "sum(quantity::real)::numeric AS quantity")
    _set(stack, queries, "statements", lambda: statements | {"sum_hours": rounded})


CONTROLS = (
    Control("retry_for_ever", retry_for_ever),
    Control("late_cut_off", late_cut_off, LATE),
    Control("abandon", abandon),
    Control("settle_too_short", settle_too_short),
    Control("no_gate", no_gate, replace(ROUGH, snapshot=0.1, restore=0.03)),
    Control("gate_without_adoption", gate_without_adoption, replace(ROUGH, snapshot=0.1, restore=0.03)),
    Control("sent_before_sending", sent_before_sending),
    Control("no_confirmation", no_confirmation),
    Control("random_identifier", random_identifier),
    Control("batch_level_outcome", batch_level_outcome, settings={"stripe_meter_sink": "v2_stream"}),
    Control("cursor_that_skips", cursor_that_skips),
    Control("float_sum", float_sum),
)
