"""From a checkout to the first vector of a text: three commands of a newcomer, timed.

    python benchmarks/speed/first_vector.py --output results/first-vector

A new environment, the installation of the runtime and the ready models as README has it, and the first vector, in
wall seconds. What pip fetches should lie in its cache: run it twice, the second record counts.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from minialbert.runs.records import write_result

ROOT = Path(__file__).resolve().parents[2]
MODEL, TEXT = "minilm-5mb", "A man is playing a guitar."


def main() -> None:
    """Run the three commands, and write how long each took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    output = parser.parse_args().output
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "env" / "bin"
        commands = {
            "python -m venv env": [sys.executable, "-m", "venv", str(home.parent)],
            "pip install ./runtime ./models": [str(home / "pip"), "install", "-q", "./runtime", "./models"],
            f'minialbert-runtime {MODEL} "{TEXT}"': [str(home / "minialbert-runtime"), MODEL, TEXT],
        }
        seconds, answer = dict[str, float](), ""
        for name, command in commands.items():
            started = time.perf_counter()
            answer = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout
            seconds[name] = round(time.perf_counter() - started, 2)
    record = {
        "kind": "first-vector",
        "model": MODEL,
        "dimensions": len(json.loads(answer)["vector"]),
        "seconds": seconds,
        "total": round(sum(seconds.values()), 2),
    }
    print(write_result(output / "result.json", record)["seconds"])


if __name__ == "__main__":
    main()
