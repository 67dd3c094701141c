"""A model whose weights lie between those of two models of one shape.

    python benchmarks/quality/mixed_weights.py FIRST SECOND 0.8 OUTPUT      0.2 of the first and 0.8 of the second

What a second pass over other texts taught stays nearly whole, and what it cost on the first texts mostly comes back.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"


def main(first: str, second: str, share: str, output: str) -> None:
    """Write the second model's folder with the mixed weights."""
    of_second = float(share)
    before, after = (load_file(Path(folder) / WEIGHTS) for folder in (first, second))
    mixed = {
        name: ((1 - of_second) * before[name].float() + of_second * value.float()).to(value.dtype)
        for name, value in after.items()
    }
    shutil.copytree(second, output)
    save_file(mixed, Path(output) / WEIGHTS, metadata={"format": "pt"})


if __name__ == "__main__":
    main(*sys.argv[1:])
