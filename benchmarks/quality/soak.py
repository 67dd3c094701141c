"""Distils again and again, killed and resumed at random moments: is the result always the same, is memory flat?

Each round is the demo's distillation from the start to its end, in segments: a process is started with `--resume`,
and killed after a time that is drawn (SIGKILL, every fourth time SIGTERM). While it runs, its resident memory is
read from /proc, with the last step in the log. At the end of a round, model and log are compared with those of the
first round.

    python benchmarks/quality/soak.py --minutes 60 --output results/soak
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import random
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from minialbert.errors import display_name
from minialbert.experiments.demo.demo import find_teacher
from minialbert.experiments.demo.text import python_texts
from minialbert.runs.directory import RunDirectory
from minialbert.runs.files import write_atomically
from minialbert.runs.records import write_result

FIRST_STEPS = 100  # of a process: its memory still grows to what a step needs, and to an evaluation or two
_CLOCK = {"tokens_per_second"}


@dataclass
class Segment:
    """One process, from its start to its end.

    Attributes:
        round: which run it is a part of, from 0.
        end: "killed", "terminated", "finished", "out of time", or "failed".
        status: its exit status.
        seconds: how long it lived.
        first_step: the step that it went on from.
        samples: (seconds, steps done by this process, resident MB).
    """

    round: int
    end: str = ""
    status: int = 0
    seconds: float = 0.0
    first_step: int = 0
    samples: list[tuple[float, int, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Slope:
    """A straight line through memory over steps, each segment with a level of its own.

    Attributes:
        mb_per_1000_steps: its slope.
        low: lower end of the 95 % interval.
        high: upper end.
        samples: how many logs it rests on.
    """

    mb_per_1000_steps: float
    low: float
    high: float
    samples: int


def memory_slope(segments: Sequence[Segment], first_steps: int = FIRST_STEPS) -> Slope | None:
    """Return the slope of the highest memory between two logs over steps, by least squares.

    Freed memory goes back to the system at every log, so that between two of them memory rises and falls.

    Args:
        segments: with their samples.
        first_steps: steps of each process that are left out.

    Returns:
        The slope; None where there are too few samples for one.
    """
    xs: list[float] = []
    ys: list[float] = []
    levels = 0
    for segment in segments:
        peaks: dict[int, float] = {}
        for _, step, mb in segment.samples:
            peaks[step] = max(mb, peaks.get(step, 0.0))
        whole = sorted(peaks)[:-1]  # the process ended within the last one
        late = [(step, peaks[step]) for step in whole if step >= first_steps]
        if len(late) < 2:
            continue
        levels += 1
        mean_step, mean_mb = (statistics.fmean(column) for column in zip(*late, strict=True))
        xs += [step - mean_step for step, _ in late]
        ys += [mb - mean_mb for _, mb in late]
    freedom = len(xs) - levels - 1
    if freedom < 1:
        return None
    spread = sum(x * x for x in xs)
    slope = sum(x * y for x, y in zip(xs, ys, strict=True)) / spread
    rest = sum((y - slope * x) ** 2 for x, y in zip(xs, ys, strict=True))
    margin = 1.96 * math.sqrt(rest / freedom / spread)
    return Slope(1000 * slope, 1000 * (slope - margin), 1000 * (slope + margin), len(xs))


def resident_mb(pid: int) -> float | None:
    """Return the resident memory of a process in MB, or None when it has gone."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return None
    found = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS:")]
    return int(found[0]) * 1024 / 1e6 if found else None


def last_step(run: RunDirectory) -> int:
    """Return the last step in a log, 0 without one."""
    if not run.log.is_file():
        return 0
    for line in reversed(run.log.read_text(encoding="utf-8").splitlines()):
        try:
            return int(json.loads(line)["step"])
        except (ValueError, KeyError, TypeError):  # half a line
            continue
    return 0


def fingerprint(run: RunDirectory) -> dict[str, str]:
    """Return a SHA-256 for each file of a finished run's model, and for its log without what the clock says."""
    digests = {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(run.model.iterdir())
    }
    records = [{k: v for k, v in record.items() if k not in _CLOCK} for record in run.read_log()]
    digests["log.jsonl"] = hashlib.sha256(json.dumps(records).encode()).hexdigest()
    return digests


class Soak:
    """The loop.

    Args:
        command: of a run, without its directory.
        folder: for run and messages.
        seed: of the moments.
        kill_after: seconds, the shortest and the longest life of a process.
        every: seconds between two samples.
    """

    def __init__(
        self, command: list[str], folder: Path, *, seed: int, kill_after: tuple[float, float], every: float
    ) -> None:
        self.segments: list[Segment] = []
        self.fingerprints: list[dict[str, str]] = []
        self._command, self._folder, self._every, self._kill_after = command, folder, every, kill_after
        self._generator = random.Random(seed)

    def go_on(self, seconds: float) -> None:
        """Loop for that time.

        Args:
            seconds: the process that runs then is killed.
        """
        deadline = time.monotonic() + seconds
        run = RunDirectory(self._folder / "run")
        shutil.rmtree(run.path, ignore_errors=True)
        while time.monotonic() < deadline:
            segment = self._segment(run, deadline)
            self.segments.append(segment)
            _say(
                f"round {segment.round + 1}: steps {segment.first_step} to {last_step(run)} in "
                f"{segment.seconds:.0f} s, {segment.end}, {segment.samples[-1][2] if segment.samples else 0:.0f} MB"
            )
            if segment.end == "failed":
                break
            if segment.end == "finished":
                self.fingerprints.append(fingerprint(run))
                same = self.fingerprints[-1] == self.fingerprints[0]
                _say(f"round {segment.round + 1} is finished, {'identical' if same else 'DIFFERENT'}")
                shutil.rmtree(run.path)

    def _segment(self, run: RunDirectory, deadline: float) -> Segment:
        segment = Segment(len(self.fingerprints))
        gentle = self._generator.random() < 0.25
        started = time.monotonic()
        end = started + self._generator.uniform(*self._kill_after)
        with (self._folder / "messages.txt").open("ab") as messages:
            process = subprocess.Popen(
                [*self._command, "--output", str(run.path), "--resume"],
                stdout=messages,
                stderr=messages,
                start_new_session=True,
            )
        first: int | None = None
        while process.poll() is None and time.monotonic() < min(end, deadline):
            time.sleep(min(self._every, max(0.0, min(end, deadline) - time.monotonic())))
            step, resident = last_step(run), resident_mb(process.pid)
            # The log is rewound when the process takes over; the first figure after that is where it starts.
            checkpoint = max(
                (int(p.name.rpartition("-")[2]) for p in run.checkpoints.glob("checkpoint-*")), default=0
            )
            first = min(step, checkpoint) if first is None else min(first, step)
            if resident is not None:
                segment.samples.append(
                    (round(time.monotonic() - started, 1), step - first, round(resident, 2))
                )
        segment.first_step = first or 0
        if process.poll() is None:
            out_of_time = end >= deadline
            os.killpg(process.pid, signal.SIGTERM if gentle and not out_of_time else signal.SIGKILL)
            segment.end = "out of time" if out_of_time else "terminated" if gentle else "killed"
            process.wait(60)
        else:
            segment.end = "finished" if process.returncode == 0 else "failed"
        segment.status, segment.seconds = process.returncode, round(time.monotonic() - started, 1)
        return segment


def table(record: dict[str, Any]) -> str:
    """Return the record's figures as a table in Markdown.

    Args:
        record: of `main`.

    Returns:
        The table.
    """
    metrics, slope = record["metrics"], record["metrics"]["memory_slope"]
    line = "too few samples"
    if slope:
        low, high = (f"{slope[name]:+.2f}" for name in ("low", "high"))
        line = f"{slope['mb_per_1000_steps']:+.2f} MB ({low} to {high}, {slope['samples']} logs)"
    rows = [
        ("minutes", f"{metrics['minutes']:.1f}"),
        ("processes", metrics["segments"]),
        ("killed by SIGKILL", metrics["killed"]),
        ("ended by SIGTERM", metrics["terminated"]),
        ("failed", metrics["failed"]),
        ("rounds finished", metrics["rounds"]),
        ("identical to the first", metrics["identical_rounds"]),
        ("most memory resident", f"{metrics['maximum_mb']:.0f} MB"),
        (f"memory per 1,000 steps, after {metrics['first_steps']} of each process", line),
    ]
    return "\n".join(["| soak | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)])


def _named(word: str) -> str:
    """Return a word of the command line, of an absolute path the last part alone."""
    return Path(word).name if Path(word).is_absolute() else word


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for record, table and the run itself"
    )
    parser.add_argument("--teacher", help="directory; the demo's when absent")
    parser.add_argument("--corpus", help="a text file; Python's documentation when absent")
    parser.add_argument("--window-length", type=int, help="the demo's when absent")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of killing")
    parser.add_argument("--kill-after", type=float, nargs=2, default=(60.0, 400.0), metavar=("LOW", "HIGH"))
    parser.add_argument("--sample-seconds", type=float, default=3.0)
    parser.add_argument(
        "--first-steps", type=int, default=FIRST_STEPS, help="of each process, not in the slope"
    )
    parser.add_argument("--save-steps", type=int, default=10, help="the demo itself saves at its end alone")
    parser.add_argument("--set", action="append", default=[], help="override of the recipe, as for distill")
    options = parser.parse_args()

    options.output.mkdir(parents=True, exist_ok=True)
    folder = options.output / "work"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    teacher = options.teacher or str(find_teacher())
    corpus = options.corpus
    if corpus is None:
        corpus = str(folder / "corpus.txt")
        write_atomically(Path(corpus), "\n\n".join(text.text for text in python_texts()[0]) + "\n")
    cli = [sys.executable, "-m", "minialbert"]
    windows = str(folder / "windows")
    prepare = [
        "prepare",
        "--recipe",
        "demo",
        "--corpus",
        corpus,
        "--tokenizer",
        teacher,
        "--output",
        windows,
        "--json",
    ]
    if options.window_length is not None:
        prepare += ["--window-length", str(options.window_length)]
    subprocess.run([*cli, *prepare], check=True, stdout=subprocess.DEVNULL)
    overrides = [f"training.save_steps={options.save_steps}", *options.set]
    distill = ["distill", "--recipe", "demo", "--teacher", teacher, "--data", windows, "--json"]
    distill += [word for override in overrides for word in ("--set", override)]
    kill_after = (options.kill_after[0], options.kill_after[1])
    soak = Soak(
        [*cli, *distill], folder, seed=options.seed, kill_after=kill_after, every=options.sample_seconds
    )
    started = time.monotonic()
    soak.go_on(60 * options.minutes)
    segments, prints = soak.segments, soak.fingerprints
    slope = memory_slope(segments, options.first_steps)
    ends = [segment.end for segment in segments]
    record = write_result(
        options.output / "soak.json",
        {
            "kind": "soak",
            "command": shlex.join(["python", "benchmarks/quality/soak.py", *map(_named, sys.argv[1:])]),
            "seed": options.seed,
            "model": {"teacher": display_name(teacher), "recipe": "demo", "overrides": overrides},
            "metrics": {
                "minutes": (time.monotonic() - started) / 60,
                "segments": len(segments),
                **{name: ends.count(name) for name in ("killed", "terminated", "failed")},
                "rounds": len(prints),
                "identical_rounds": sum(found == prints[0] for found in prints),
                "maximum_mb": max((mb for segment in segments for *_, mb in segment.samples), default=0.0),
                "first_steps": options.first_steps,
                "memory_slope": asdict(slope) if slope is not None else None,
            },
            "fingerprint": prints[0] if prints else None,
            "segments": [asdict(segment) for segment in segments],
        },
    )
    if "failed" not in ends:  # else its messages tell why
        shutil.rmtree(folder)
    write_atomically(options.output / "table.md", table(record) + "\n")
    _say(table(record))


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
