"""`prepare` beside the script that one would write: `Dataset.map(tokenizer)`. MB of text per second and core.

    python benchmarks/speed/prepare_speed.py --corpus DIR --tokenizer ID --json results/prepare/speed.json

All variants take turns in one run, each in a process of its own, on the same documents and to the same windows (256
tokens, 128 of overlap, at most 10 per document). The plain script reads blank-line separated documents into memory,
tokenises them in batches with overflowing windows, and saves the data set; it holds out nothing and draws nothing at
random (a long document gives its first 10 windows).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

WINDOW, OVERLAP, AT_MOST = 256, 128, 10


def run_plain(corpus: list[Path], tokenizer_name: str, output: Path, workers: int) -> None:
    """Tokenise as tutorials do."""
    from datasets import Dataset
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tokenizer_name)
    documents = [
        document.replace("\n", " ").strip()
        for file in corpus
        for document in file.read_text(encoding="utf-8").split("\n\n")
        if document.strip()
    ]

    def tokenize(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        encoded = tokenizer(
            batch["text"],
            truncation=True,
            max_length=WINDOW,
            stride=OVERLAP,
            return_overflowing_tokens=True,
        )
        seen: dict[int, int] = {}
        kept = []
        for ids, document in zip(encoded["input_ids"], encoded["overflow_to_sample_mapping"], strict=True):
            seen[document] = seen.get(document, 0) + 1
            if seen[document] <= AT_MOST:
                kept.append(ids)
        return {"input_ids": kept}

    data = Dataset.from_dict({"text": documents})
    windows = data.map(
        tokenize, batched=True, remove_columns=["text"], num_proc=workers if workers > 1 else None
    )
    windows.save_to_disk(output)


def run_prepare(corpus: list[Path], tokenizer_name: str, output: Path, workers: int) -> None:
    """Prepare the same windows."""
    from minialbert.data.prepare import make_windows

    make_windows(
        corpus,
        tokenizer_name,
        output,
        window_length=WINDOW,
        overlap=OVERLAP,
        max_windows_per_document=AT_MOST,
        num_workers=workers,
        progress=False,
    )


VARIANTS = {"plain": run_plain, "prepare": run_prepare}


def main() -> None:
    """Measure, print a table and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--corpus", type=Path, nargs="+", required=True, help="text files or directories")
    parser.add_argument("--tokenizer", required=True, help="directory or hub id")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--json", type=Path, help="where to write the record")
    parser.add_argument(
        "--one", nargs=3, help=argparse.SUPPRESS
    )  # variant, workers, output: the measured process
    arguments = parser.parse_args()
    files = sorted(f for c in arguments.corpus for f in (c.glob("*.txt") if c.is_dir() else [c]))
    if arguments.one:
        import datasets  # noqa: F401 - imports are not what is timed
        import transformers  # noqa: F401

        import minialbert.data.prepare  # noqa: F401

        variant, workers, output = arguments.one
        started = time.perf_counter()
        VARIANTS[variant](files, arguments.tokenizer, Path(output), int(workers))
        sys.stdout.write(f"\n{time.perf_counter() - started}")
        return
    megabytes = sum(file.stat().st_size for file in files) / 1e6
    cases = [(variant, workers) for workers in arguments.workers for variant in VARIANTS]
    seconds: dict[str, list[float]] = {f"{variant}, {workers}": [] for variant, workers in cases}
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1"}
    for _ in range(arguments.repeats):
        for variant, workers in cases:
            with tempfile.TemporaryDirectory() as folder:
                command = [sys.executable, __file__, "--corpus", *map(str, files)]
                command += ["--tokenizer", arguments.tokenizer]
                command += ["--one", variant, str(workers), str(Path(folder) / "out")]
                answer = subprocess.run(
                    command,
                    capture_output=True,
                    text=True,
                    check=True,
                    env={**environment, "HF_DATASETS_CACHE": str(Path(folder) / "cache")},
                )
                seconds[f"{variant}, {workers}"].append(float(answer.stdout.split()[-1]))
    lines = [
        "| script | processes | seconds (median) | MB/s per core | times plain |",
        "|---|---|---|---|---|",
    ]
    for variant, workers in cases:
        values, plain = seconds[f"{variant}, {workers}"], seconds[f"plain, {workers}"]
        median = statistics.median(values)
        ratio = statistics.median(p / v for p, v in zip(plain, values, strict=True))
        rate = megabytes / median / workers
        lines.append(f"| {variant} | {workers} | {median:.1f} | {rate:.2f} | {ratio:.2f} |")
    page = "\n".join(lines) + "\n"
    if arguments.json is not None:
        from minialbert.runs.records import write_result

        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        record = {
            "kind": "prepare-speed",
            "task": None,
            "seed": 42,
            "model": None,
            "metrics": {"seconds": seconds, "corpus_mb": round(megabytes, 1), "table": page.splitlines()},
        }
        write_result(arguments.json, record)
    sys.stdout.write(page)
    sys.stderr.write(json.dumps(seconds) + "\n")


if __name__ == "__main__":
    main()
