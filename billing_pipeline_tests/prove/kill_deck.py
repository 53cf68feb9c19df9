"""Which misfortune comes next: a shuffled deck, so that every kind gets its share of even a short run."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from enum import StrEnum
from random import Random


class Kind(StrEnum):
    """What can happen."""

    SIGKILL = "sigkill"
    SIGKILL_SEVERAL = "sigkill_several"
    SIGSTOP = "sigstop"
    TERMINATE_BACKEND = "terminate_backend"
    KILL_BACKEND = "kill_backend"
    STOP_IMMEDIATELY = "stop_immediately"
    KILL_POSTMASTER = "kill_postmaster"
    READ_ONLY = "read_only"
    RESTORE = "restore"
    FULL_DISK = "full_disk"


USUAL: Mapping[Kind, int] = {
    Kind.SIGKILL: 50,
    Kind.SIGKILL_SEVERAL: 10,
    Kind.SIGSTOP: 6,
    Kind.TERMINATE_BACKEND: 6,
    Kind.KILL_BACKEND: 5,
    Kind.STOP_IMMEDIATELY: 10,
    Kind.KILL_POSTMASTER: 5,
    Kind.READ_ONLY: 4,
    Kind.RESTORE: 3,
    Kind.FULL_DISK: 1,
}
"""Of a hundred misfortunes, so many of each kind."""


def shuffled_deck(kinds: Collection[Kind], weights: Mapping[Kind, int], chance: Random) -> Iterator[Kind]:
    """Every kind as often as its weight says, in random order, for ever.  Raises `ValueError` when there is none."""
    cards = [kind for kind in Kind if kind in kinds for _ in range(weights[kind])]
    if not cards:
        raise ValueError("none of the chosen misfortunes is possible on this machine")
    while True:
        yield from chance.sample(cards, len(cards))
