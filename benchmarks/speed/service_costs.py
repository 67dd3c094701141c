"""What a service pays for answers that do not depend on their company, for long texts, and for fingerprints.

    make demo
    python benchmarks/speed/service_costs.py --model runs/demo/packages/int8 --data runs/demo/packages/data \
        --output results/service-costs

Texts are those of the data's test split, whole and their first ten words: seconds of an int8 folder one text at a time
and in batches of 32, in turns, and how far the scores of the two differ. Long texts are a million characters of several
kinds, cut and encoded by the folder's model, each in a process of its own. Fingerprints are SHA-256 of 1 GB in a file,
and of a million rows of labelled data in memory.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from distillation_step import machine
from minialbert_runtime import Model

from minialbert.data.examples import Task, TextExample
from minialbert.data.tasks import task_identity
from minialbert.runs.files import sha256_of, write_atomically
from minialbert.runs.records import write_result

LONG = 1_000_000
KINDS = {
    "words": "the patient was seen again ",
    "letters and marks in turn": "é!",
    "ideographs": "患者再診",
    "one word": "a",
}


def main() -> None:
    """Measure, write the record and its table, and print the table."""
    parser = argparse.ArgumentParser(description="What a service pays.")
    parser.add_argument("--model", type=Path, required=True, help="an exported int8 folder")
    parser.add_argument("--data", type=Path, required=True, help="folder with test.jsonl, rows with a text")
    parser.add_argument("--texts", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, required=True, help="folder of the record")
    given = parser.parse_args()
    lines = (given.data / "test.jsonl").read_text(encoding="utf-8").splitlines()[: given.texts]
    texts = [json.loads(line)["text"] for line in lines]
    short = [" ".join(text.split()[:10]) for text in texts]
    company = {
        name: in_company(given.model, some, given.repeats)
        for name, some in (("whole", texts), ("short", short))
    }
    long = {kind: apart(given.model, (text * LONG)[:LONG]) for kind, text in KINDS.items()}
    record = {
        "kind": "service-costs", "texts": len(texts), "repeats": given.repeats, "company": company, "long": long,
        "fingerprints": fingerprints(), "machine": machine(),
    }  # fmt: skip
    given.output.mkdir(parents=True, exist_ok=True)
    write_result(given.output / "result.json", record)
    write_atomically(given.output / "table.md", table(record))
    print(table(record))


def table(record: dict[str, Any]) -> str:
    """Return the record as Markdown."""
    company, long = record["company"].items(), record["long"].items()
    lines = ["| texts, int8 | one at a time, of batches of 32 | scores differ by up to |", "|---|---|---|"]
    lines += [f"| {name} | {one['ratio']:.2f}x | {one['difference']:.2f} |" for name, one in company]
    lines += ["", "| a million characters | seconds | more memory |", "|---|---|---|"]
    lines += [f"| {kind} | {one['seconds']:.1f} | {one['gigabytes']:.2f} GB |" for kind, one in long]
    lines += ["", "| fingerprint | seconds |", "|---|---|"]
    lines += [f"| {name} | {seconds:.1f} |" for name, seconds in record["fingerprints"].items()]
    return "\n".join(lines) + "\n"


def in_company(folder: Path, texts: list[str], repeats: int) -> dict[str, float]:
    """Return the time of texts one at a time, as a share of that in batches, and how far their scores differ."""
    alone, batches = Model(folder, threads=2), Model(folder, threads=2, batch_size=32)
    answers = alone.predict(texts), batches.predict(texts)
    moved = max(
        abs(score - other["scores"][label])
        for one, other in zip(*answers, strict=True)
        for label, score in one["scores"].items()
    )
    pairs = [
        (timed(lambda: alone.predict(texts)), timed(lambda: batches.predict(texts))) for _ in range(repeats)
    ]
    one, other = (statistics.median(seconds) for seconds in zip(*pairs, strict=True))
    return {"alone": one, "batches": other, "ratio": one / other, "difference": moved}


def apart(folder: Path, text: str) -> dict[str, float]:
    """Return seconds and memory that cutting and encoding a text takes, in a new process."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(cut, (folder, text))


def cut(folder: Path, text: str) -> dict[str, float]:
    """Return seconds and additional memory of one text's way to a model's inputs."""
    model = Model(folder, threads=1)
    model.predict(["the end"])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds = timed(lambda: list(model._cutter().texts([text])))
    return {
        "seconds": seconds,
        "gigabytes": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e6,
    }


def fingerprints() -> dict[str, float]:
    """Return seconds of the two kinds of fingerprint."""
    rows = [
        TextExample(f"a short text of nine words, number {index} of all", label="x") for index in range(LONG)
    ]
    task = Task("t", "single-label", ("x", "y"), "accuracy", {"train": rows})
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bytes"
        file.write_bytes(np.random.default_rng(0).bytes(10**9))
        return {
            "1 GB of a file": timed(lambda: sha256_of(file)),
            "a million short rows": timed(lambda: task_identity(task)),
        }


def timed(run: Callable[[], object]) -> float:
    """Return the seconds that a call takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
