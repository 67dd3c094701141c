"""Measures that the memory of `prepare` does not grow with the corpus.

    python benchmarks/speed/prepare_memory.py --corpus DIR --tokenizer ID --json results/prepare/result.json

A corpus is prepared as it is and repeated ten times, each time in a process of its own.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

SEED = 42


def main() -> None:
    """Runs both sizes, prints a table and writes the record."""
    parser = argparse.ArgumentParser(description="peak memory and speed of prepare on 1x and 10x of a corpus")
    parser.add_argument("--corpus", type=Path, nargs="+", required=True, help="text files or directories")
    parser.add_argument("--tokenizer", required=True, help="directory or hub id")
    parser.add_argument(
        "--repeats", type=int, default=10, help="how often the larger corpus repeats the smaller"
    )
    parser.add_argument("--num-workers", type=int, default=2)
    parser.add_argument("--json", type=Path, help="where to write the record")
    parser.add_argument("--output", type=Path, help=argparse.SUPPRESS)  # set for the measuring process only
    arguments = parser.parse_args()
    if arguments.output:
        sys.stdout.write(json.dumps(_measure(arguments)))
        return
    with tempfile.TemporaryDirectory() as folder:
        files = _files(arguments.corpus)
        larger = Path(folder) / "repeated"
        larger.mkdir()
        for number in range(arguments.repeats):
            for file in files:
                shutil.copyfile(file, larger / f"{number:03d}-{file.name}")
        corpora = {"1x": files, f"{arguments.repeats}x": [larger]}
        metrics = {
            name: _measure_apart(arguments, corpus, Path(folder) / f"windows-{name}")
            for name, corpus in corpora.items()
        }
    sizes = list(metrics.values())
    for key in ("peak_rss_main_mb", "peak_rss_worker_mb"):
        metrics[f"{key}_growth"] = round(sizes[1][key] / sizes[0][key], 3)
    record = {
        "kind": "prepare-memory",
        "metrics": metrics,
        "seed": SEED,
        "model": None,
        "corpus": [path.name for path in arguments.corpus],
        "tokenizer": Path(arguments.tokenizer).name,
        "num_workers": arguments.num_workers,
        "versions": _versions(),
        "machine": {"system": platform.system(), "machine": platform.machine(), "cpus": os.cpu_count()},
    }
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(json.dumps(record, indent=2) + "\n")


def _files(corpus: list[Path]) -> list[Path]:
    found = [
        sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path] for path in corpus
    ]
    return [path for paths in found for path in paths]


def _measure_apart(arguments: argparse.Namespace, corpus: list[Path], output: Path) -> dict[str, Any]:
    command = [sys.executable, __file__, "--corpus", *map(str, corpus), "--tokenizer", arguments.tokenizer]
    command += ["--num-workers", str(arguments.num_workers), "--output", str(output)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def _measure(arguments: argparse.Namespace) -> dict[str, Any]:
    # Imported late: the process that only compares should not hold torch.
    from minialbert.data.prepare import make_windows

    peaks = {"worker": 0.0}
    done = threading.Event()

    def watch_workers() -> None:
        while not done.wait(0.1):
            for children in Path("/proc/self/task").glob("*/children"):
                for pid in children.read_text(encoding="utf-8").split():
                    peaks["worker"] = max(peaks["worker"], _peak_rss_mb(int(pid)))

    watcher = threading.Thread(target=watch_workers, daemon=True)
    watcher.start()
    start = time.perf_counter()
    manifest = make_windows(
        arguments.corpus,
        arguments.tokenizer,
        arguments.output,
        seed=SEED,
        num_workers=arguments.num_workers,
        progress=False,
    )
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    megabytes = sum(source.num_bytes for source in manifest.sources) / 1e6
    return {
        "corpus_mb": round(megabytes, 1),
        "seconds": round(seconds, 1),
        "mb_per_second": round(megabytes / seconds, 2),
        "peak_rss_main_mb": round(_peak_rss_mb(os.getpid()), 1),
        "peak_rss_worker_mb": round(peaks["worker"], 1),
        "documents": sum(counts.documents for counts in manifest.splits.values()),
        "windows": sum(counts.windows for counts in manifest.splits.values()),
        "tokens": sum(counts.tokens for counts in manifest.splits.values()),
        "bytes_per_token": manifest.bytes_per_token,
    }


def _peak_rss_mb(pid: int) -> float:
    """Returns the high-water mark of a process; getrusage would count what it shared before it began."""
    try:
        status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    except OSError:
        return 0.0
    peaks = [line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:")]
    return int(peaks[0]) * 1024 / 1e6 if peaks else 0.0


def _versions() -> dict[str, str]:
    packages = ("transformers", "tokenizers", "numpy", "torch")
    return {
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in packages},
    }


if __name__ == "__main__":
    main()
