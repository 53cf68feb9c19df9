"""What a proof came to, as one text: figures with their denominators, and a last line for machines."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from billing_pipeline_tests.prove.jobs import REAL_PROCESSES, Result
from billing_pipeline_tests.prove.plan import possible_cells


@dataclass(frozen=True)
class Report:
    """All results of one proof."""

    commit: str
    results: Sequence[Result]
    minutes: float

    @property
    def wrong(self) -> list[str]:
        """Every complaint, with the job that runs it again."""
        return [f'{what}   (again: make prove JOB="{r["job"]}")' for r in self.results for what in r["wrong"]]

    def lines(self) -> list[str]:
        """The report, its last line the sum of it."""
        worlds, lives, sweeps = self._of("world"), self._of("lives"), self._of("sweep")
        cells = {cell for world in worlds for cell in world["cells"]}
        reached = len(cells & {" ".join(cell) for cell in possible_cells()})
        lines = [f"commit {self.commit}, {len(self.results)} jobs, {self.minutes:.0f} minutes of one processor"]
        if worlds:
            lines += [
                f"simulated company: {len(worlds)} seeds ({_span(world['seed'] for world in worlds)}), "
                f"{_sum(worlds, 'hours'):,} hours, {_sum(worlds, 'flushes'):,} flushes, "
                f"{_sum(worlds, 'sends'):,} meter events judged, {_sum(worlds, 'outages'):,} outages",
                f"  faults by kind: {_by_name(worlds, 'faults')}",
                f"  fault x state of the entry: {reached} of {len(possible_cells())} cells reached",
                f"  crashes by step: {_by_name(worlds, 'crashes')}",
                f"  restores: {_sum(worlds, 'restores')}, of which {_sum(worlds, 'restores_that_lost')} lost attempts, "
                f"{_sum(worlds, 'undetected')} not noticed before the next send",
                f"  longest doubt: {max(world['hours_to_certainty'] for world in worlds)} hours, outages not counted",
            ]
        if lives:
            lines += [
                f"life in memory: {_sum(lives, 'seeds'):,} seeds, {_sum(lives, 'hours'):,} hours, "
                f"{_sum(lives, 'flushes'):,} flushes, {_sum(lives, 'sends'):,} meter events judged, "
                f"{_sum(lives, 'outages'):,} outages",
                f"  faults by kind: {_by_name(lives, 'faults')}",
                f"  what happened: {_by_name(lives, 'happened')}",
                f"  restores: {_sum(lives, 'restores')}, of which {_sum(lives, 'restores_that_lost')} lost attempts, "
                f"{_sum(lives, 'undetected')} not noticed before the next send",
                f"  longest doubt: {max(found['hours_to_certainty'] for found in lives)} hours, outages not counted",
            ]
        if sweeps:
            steps = {step for found in sweeps for step in found["died_at"]} - {"nowhere"}
            lines.append(
                f"single-crash sweep: {_sum(sweeps, 'cases'):,} cases, {len(sweeps)} outcomes x every step of a flush, "
                f"{len(steps)} of them distinct"
            )
        for found in self._of("machine"):
            lines.append(
                f"state machine, seed {found['job'].split()[3]}: {found['examples']:,} examples, "
                f"{found['steps']:,} steps"
            )
        if kills := self._of(*REAL_PROCESSES):
            lines += [
                f"real processes: {_sum(kills, 'flushes'):,} flushes, {_sum(kills, 'sends'):,} requests, "
                f"{_sum(kills, 'unheard'):,} attempts never answered, {_sum(kills, 'restores')} restores "
                f"({_sum(kills, 'restores_that_lost')} lost attempts, {_sum(kills, 'undetected')} not noticed)",
                f"  struck by: {_by_name(kills, 'kills')}",
                *(f"  left out: {kind}, {why}" for found in kills for kind, why in found["left_out"].items()),
            ]
        if storms := self._of("storm"):
            lines += [
                f"webhook storms: {_sum(storms, 'deliveries'):,} deliveries of {_sum(storms, 'events'):,} events, of "
                f"which {_sum(storms, 'dropped'):,} never came and were swept; {_sum(storms, 'acknowledged'):,} "
                "acknowledged",
                f"  struck by: {_by_name(storms, 'happened')}",
            ]
        for found in self._of("control"):
            how = f"caught by seed {found['seed']}: {found['sign']}" if found["seed"] is not None else "NOT CAUGHT"
            lines.append(f"control {found['name']}: {how}")
        for found in self._of("decisions"):
            lines.append(
                f"branches of the decisions: {found['covered']} of {found['branches']} taken "
                f"in {found['modules']} modules"
            )
        lines += [f"WRONG: {what}" for what in self.wrong]
        return [*lines, self.last_line()]

    def last_line(self) -> str:
        """The proof in one line."""
        worlds, lives, kills = self._of("world"), self._of("lives"), self._of(*REAL_PROCESSES)
        controls, simulated = self._of("control"), [*worlds, *lives]
        judged = [*simulated, *kills]
        caught = sum(not found["wrong"] for found in controls)
        crashes = sum(sum(found["crashes"].values()) for found in worlds) + _sum(self._of("sweep"), "cases")
        crashes += sum(sum(found["kills"].values()) for found in kills)
        crashes += sum(found["happened"].get("crash", 0) for found in lives)
        return (
            f"prove: {_sum(simulated, 'hours')} h, {len(worlds) + _sum(lives, 'seeds')} seeds, "
            f"{_sum(judged, 'sends')} sends, "
            f"{sum(sum(found['faults'].values()) for found in simulated)} faults, {crashes} crashes, "
            f"{_sum(judged, 'restores')} restores, {caught}/{len(controls)} controls caught, "
            f"{_sum(judged, 'lost')} lost, {_sum(judged, 'over')} doubled"
        )

    def _of(self, *kinds: str) -> list[Result]:
        return [found for found in self.results if found["kind"] in kinds]


def _sum(results: Iterable[Result], name: str) -> int:
    return sum(found.get(name, 0) for found in results)


def _span(seeds: Iterable[int]) -> str:
    ordered = sorted(seeds)
    return f"{ordered[0]} to {ordered[-1]}"


def _by_name(results: Iterable[Result], name: str) -> str:
    totals: Counter[str] = Counter()
    for found in results:
        totals.update(found[name])
    return ", ".join(f"{what} {times:,}" for what, times in sorted(totals.items()))
