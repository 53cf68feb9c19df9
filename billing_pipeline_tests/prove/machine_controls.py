"""Rules broken on purpose, one at a time: what the state machine must find, or it proves nothing.

Each replaces one decision of the product, in this process only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from typing import Any
from unittest.mock import patch

from billing_pipeline.domain.adoption import Step, decide_adoption
from billing_pipeline.domain.cuts import decide_cut
from billing_pipeline.domain.entries import EntryState, Outcome, Verdict, judge_evidence, state_after
from billing_pipeline.domain.protocol import ProtocolTimes
from billing_pipeline.usage import adopt, attempts, canary, confirm, cut, gate, seal, send, submit
from billing_pipeline_tests.prove import memory_flow
from billing_pipeline_tests.prove.machine import MachineRun, run_machine


@dataclass(frozen=True)
class BrokenRule:
    """What is replaced (module, name, by what), and what that means."""

    name: str
    meaning: str
    changes: tuple[tuple[Any, str, Callable[..., Any]], ...]


def _replaced_at_once(**facts: Any) -> Verdict:
    return Verdict.CONFIRMED if facts["shown"] else Verdict.REPLACED


def _without_canary(**facts: Any) -> Verdict:
    times = replace(facts["times"], settle=timedelta(hours=1))
    return judge_evidence(**facts | {"canary_sent_at": facts["observed_at"], "times": times})


def _unknown_is_not_executed(outcome: Outcome, **facts: Any) -> EntryState:
    return EntryState.PENDING if outcome is Outcome.UNKNOWN else state_after(outcome, **facts)


def _rejected_is_final(outcome: Outcome, **facts: Any) -> EntryState:
    return EntryState.REJECTED if outcome is Outcome.REJECTED else state_after(outcome, **facts)


def _taken_back_before_proof(**facts: Any) -> Any:
    return decide_cut(**facts | {"assured": facts["stated"]})


def _minutes_used_again(**facts: Any) -> Any:
    return decide_cut(**facts | {"used_slots": ()})


def _not_adopted(*facts: Any, **sealed: Any) -> Step:
    step = decide_adoption(*facts, **sealed)
    return Step.KEEP if step is Step.ADOPT else step


def _any_duplicate_is_ours(outcome: Outcome, **_: Any) -> EntryState:
    return state_after(outcome, earlier_unknown=True)


NO_GATE = (
    (gate, "lost_attempts", lambda *_: None),
    (canary, "lost_canaries", lambda *_, **__: None),
    (attempts, "state_after", _any_duplicate_is_ours),
    (submit, "halts", lambda *_: False),
    (send, "halts", lambda *_: False),
)
FOR_EVER = partial(ProtocolTimes, safe_send=timedelta(days=400))

BROKEN_RULES = (
    BrokenRule("replaced_at_once", "absence counts at once", ((confirm, "judge_evidence", _replaced_at_once),)),
    BrokenRule(
        "no_canary", "absence counts after two hours, unproved", ((confirm, "judge_evidence", _without_canary),)
    ),
    BrokenRule(
        "unknown_is_not_executed",
        "a lost answer is taken for a lost request",
        ((attempts, "state_after", _unknown_is_not_executed),),
    ),
    BrokenRule(
        "rejected_is_final",
        "a refusal settles an entry of which an earlier attempt is unknown",
        ((attempts, "state_after", _rejected_is_final),),
    ),
    BrokenRule(
        "taken_back_before_proof",
        "what Stripe only accepted is taken back",
        ((cut, "decide_cut", _taken_back_before_proof),),
    ),
    BrokenRule("minutes_used_again", "two entries share a minute", ((cut, "decide_cut", _minutes_used_again),)),
    BrokenRule(
        "retry_for_ever", "an entry is sent after Stripe forgot it", ((memory_flow, "ProtocolTimes", FOR_EVER),)
    ),
    BrokenRule(
        "zombie_sends",
        "a worker sends however late it wakes",
        ((memory_flow.MemoryFlow, "boot_nanoseconds", lambda self: 0),),
    ),
    BrokenRule("no_gate", "a restored ledger goes on", NO_GATE),
    BrokenRule("not_adopted", "recovery leaves out what it does not know", ((adopt, "decide_adoption", _not_adopted),)),
    BrokenRule("sealed_open", "a period is sealed over open entries", ((seal, "decide_seal", lambda *_, **__: None),)),
)


@contextmanager
def in_force(broken: BrokenRule) -> Iterator[None]:
    """The product is broken in this block."""
    with ExitStack() as stack:
        for module, name, replacement in broken.changes:
            stack.enter_context(patch.object(module, name, replacement))
        yield


def run_broken(broken: BrokenRule, examples: int, steps: int, seed: int) -> MachineRun:
    """Run the machine on the broken product, until it finds something."""
    with in_force(broken):
        return run_machine(examples, steps, seed, shrink=False)
