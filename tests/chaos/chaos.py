"""Kills commands at seeded random moments and at named points, resumes them, and compares what they leave.

python tests/chaos/chaos.py --kills 20 --seed 0
python tests/chaos/chaos.py --every-point --only distill
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from comparing import differences
from injected import Fault
from inputs import Command, make_commands
from processes import ForkServer

# Points in the order in which a run comes by them, and the first visit that there is something to lose at.
_TRAINING = {
    "plan": 1, "recipe.yaml: half": 1, "log: half a line": 3, "batch": 9, "optimiser step": 7, "log: a line": 3,
    "evaluation": 4, "checkpoint: before the weights": 2, "checkpoint: half of the weights": 2,
    "checkpoint: between two files": 3, "checkpoint: half of the optimiser": 2, "checkpoint: before the manifest": 4,
    "checkpoint: before the rename": 2, "checkpoint: after the rename": 3, "checkpoint: rotation": 2,
}  # fmt: skip
_MODEL = {
    "model: half of the weights": 1, "tokenizer: before": 1, "model: before it is in place": 1, "model: in place": 1,
    "result.json: half": 1,
}  # fmt: skip
POINTS: dict[str, dict[str, int]] = {
    "distill": {"first measurement": 2, "data.json: half": 1, **_TRAINING, **_MODEL},
    "finetune": {
        "data.json: half": 1, **_TRAINING, "checkpoint: half of the best state": 2, "final measurement": 1, **_MODEL,
    },
    "grid": {
        "grid: starting a worker": 2, "worker: checkpoint: half of the weights": 3,
        "worker: model: half of the weights": 1, "grid: copying the model": 1, "result.json: half": 1,
        "removing model": 1,
    },
    "prepare": {
        "progress.json: half": 3, "tokenizer: before": 1, "windows: half a batch": 3, "windows: synced": 3,
        "progress.json: written": 4, "manifest.json: half": 1, "manifest.json: written": 1,
    },
}  # fmt: skip
# Points that only a run comes by which was killed before: at this one.
_RESUMED: dict[str, dict[str, str]] = {
    "distill": {
        "log.jsonl: half": "evaluation", "final measurement": "result.json: half",
        "model: the old one still beside it": "result.json: half",
    },
    "finetune": {"log.jsonl: half": "evaluation", "model: the old one still beside it": "result.json: half"},
}  # fmt: skip
SHARES = {"distill": 10, "finetune": 4, "grid": 3, "prepare": 3}


@dataclass(frozen=True)
class Kill:
    """One blow.

    Attributes:
        point: where; None for a moment drawn by the clock.
        nth: at which visit of the point.
        moment: as a share of the time of the undisturbed run.
    """

    point: str | None = None
    nth: int = 1
    moment: float = 0.0


@dataclass
class Outcome:
    """What came of some kills.

    Attributes:
        kind: of the command.
        kills: one line each.
        resumed: how many of them lie before an end that was compared and found identical.
        wrong: what differed.
    """

    kind: str
    kills: list[str] = field(default_factory=list)
    resumed: int = 0
    wrong: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        end = f": {'; '.join(self.wrong)}" if self.wrong else ""
        return f"{self.kind}: {len(self.kills)} kills, {self.resumed} resumed to identical results{end}"


def draw(kind: str, count: int, seed: int) -> list[Kill]:
    """Return kills, about half at moments and half at points, each point once.

    Args:
        kind: of the command.
        count: how many.
        seed: of the draw.

    Returns:
        The kills, in an order in which a run can meet many of them.
    """
    generator = random.Random(f"{seed} {kind}")
    names = list(POINTS[kind])
    at_points = generator.sample(names, min(len(names), (count + 1) // 2))
    kills = [Kill(point, POINTS[kind][point]) for point in sorted(at_points, key=names.index)]
    moments = [Kill(moment=generator.uniform(0.05, 0.95)) for _ in range(count - len(kills))]
    for kill in moments:
        kills.insert(generator.randint(0, len(kills)), kill)
    return kills


def everywhere(kind: str) -> list[list[Kill]]:
    """Return for each point the kills of a run that is killed there twice in a row.

    Args:
        kind: of the command.

    Returns:
        A list for each run.
    """
    runs = [[Kill(point, nth), Kill(point)] for point, nth in POINTS[kind].items()]
    for point, earlier in _RESUMED.get(kind, {}).items():
        # An old model is not there a second time.
        again = [] if point == "model: the old one still beside it" else [Kill(point)]
        runs.append([Kill(earlier, POINTS[kind][earlier]), Kill(point), *again])
    return runs


class Chaos:
    """Disturbs one command.

    Args:
        server: runs it.
        command: the command.
        folder: for the directories that it writes to.
        say: is told of every kill.
    """

    def __init__(
        self, server: ForkServer, command: Command, folder: Path, say: Callable[[str], None]
    ) -> None:
        self._server, self._command, self._folder, self._say = server, command, folder, say
        self.reference = folder / f"{command.kind}-reference"
        ended = server.run(command.into(self.reference))
        assert ended.status == 0, ended.err
        self.seconds = ended.seconds
        self._runs = 0

    def strike(self, kills: list[Kill]) -> Outcome:
        """Kill and resume until all kills are used up and the run is finished; then compare.

        A run that ends before a kill came is compared and another one is started.

        Args:
            kills: one after the other.

        Returns:
            What came of them.
        """
        outcome = Outcome(self._command.kind)
        waiting: Iterator[Kill] = iter(kills)
        kill = next(waiting, None)
        output, pending = self._new_folder(), 0
        misses = 0
        while kill is not None or pending:
            fault = Fault()
            if kill is not None and kill.point is not None:
                name = kill.point.removeprefix("worker: ")
                # A visit that comes too late for what is left of a run: the first one instead.
                fault = Fault(point=name, nth=1 if misses else kill.nth, in_worker=name != kill.point)
            moment = kill.moment * self.seconds if kill is not None and kill.point is None else None
            ended = self._server.run(self._command.into(output), fault, kill_after=moment)
            if ended.killed and kill is not None:
                how = "drawn" if kill.point is None else "at a point"
                where = kill.point if fault.in_worker else ended.phase
                outcome.kills.append(f"{self._command.kind}: killed ({how}): {where}")
                self._say(outcome.kills[-1])
                pending, misses = pending + 1, 0
                kill = next(waiting, None)
                if not fault.in_worker or ended.status != 0:  # a grid starts a worker again by itself
                    continue
            if ended.status != 0:
                outcome.wrong.append(f"status {ended.status} ({ended.phase}): {ended.err.strip()[-300:]}")
                return outcome
            found = differences(self._command.kind, self.reference, output)
            outcome.wrong += found
            outcome.resumed += 0 if found else pending
            misses = 0 if pending else misses + 1
            if misses > 3:
                outcome.wrong.append(f"{kill} never came")
                return outcome
            shutil.rmtree(output)
            output, pending = self._new_folder(), 0
        return outcome

    def _new_folder(self) -> Path:
        self._runs += 1
        return self._folder / f"{self._command.kind}-{self._runs}"


def main() -> None:
    """Run from the command line; the exit status is 1 if a result differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(POINTS))
    parser.add_argument(
        "--every-point", action="store_true", help="each point, twice in a row, a run for each"
    )
    options = parser.parse_args()

    def say(line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    kinds = [options.only] if options.only else list(POINTS)
    total = sum(SHARES[kind] for kind in kinds)
    outcomes = []
    with tempfile.TemporaryDirectory(prefix="chaos-") as name, ForkServer(Path(name) / "server") as server:
        folder = Path(name)
        commands = make_commands(folder / "inputs", server)
        for index, kind in enumerate(kinds):
            chaos = Chaos(server, commands[kind], folder, say)
            if options.every_point:
                outcomes += [chaos.strike(kills) for kills in everywhere(kind)]
            else:
                done = sum(SHARES[earlier] for earlier in kinds[:index])
                count = options.kills * (done + SHARES[kind]) // total - options.kills * done // total
                outcomes.append(chaos.strike(draw(kind, count, options.seed)))
            for outcome in outcomes:
                if outcome.wrong:
                    say(str(outcome))
    kills, resumed = sum(len(o.kills) for o in outcomes), sum(o.resumed for o in outcomes)
    say(f"{kills} kills, {resumed} resumed to identical results")
    sys.exit(1 if any(outcome.wrong for outcome in outcomes) else 0)


if __name__ == "__main__":
    main()
