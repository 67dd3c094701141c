"""Bytes of the int8 encoder of every row of the suite `sharing`, and of students that stand beside them.

    python benchmarks/quality/sharing_sizes.py TEACHER results/sharing/sizes.json

Each is exported with random weights, as what a graph takes depends on its shape; widths are those of TEACHER. Rows that
the record has are not measured again, and a row that is another's with another seed is not measured. A pair of the
suite takes what its two parts take more than one plain block, to the byte: runs-bottleneck, -wide and -norms are
measured too. So the other pairs are summed.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from itertools import product as product_of
from pathlib import Path

import torch
from transformers import AutoConfig

import minialbert
from minialbert.data.tokenizers import load_tokenizer
from minialbert.experiments.suite.cells import distillation_recipe
from minialbert.experiments.suite.schema import load_suite
from minialbert.method.start import build_student
from minialbert.recipes.load import apply_overrides
from minialbert.recipes.schema import Recipe
from minialbert.runs.files import write_json

BESIDE = ("student-384", "student-384-no-adapters", "distilbert-like")  # of the miniature
RANK_84 = ("three-rank-84", "three-bottleneck", {"student.embedding_size": 84})  # two_million_tokens.sh
PLAIN, PROOFS = "one-none", ("runs-bottleneck", "runs-wide", "runs-norms")


def sums() -> Iterator[tuple[str, str, str]]:
    """Yield the pairs of the suite whose bytes are those of two others, without one plain block's."""
    (product,) = load_suite("sharing").products
    for shared, apart in product_of(*product.parts):
        if shared != "one" and apart != "none":
            yield f"{shared}-{apart}", f"{shared}-none", f"one-{apart}"


def shapes() -> Iterator[tuple[str, Recipe]]:
    """Yield names of shapes and the recipes that have them."""
    sharing, miniature = load_suite("sharing"), load_suite("miniature")
    for row, settings in sharing.rows.items():
        if "training.seed" not in settings.settings and row not in (
            pair for pair, *_ in sums() if pair not in PROOFS
        ):
            yield row, distillation_recipe(sharing, row, None)
    for row in BESIDE:
        yield row, distillation_recipe(miniature, row, None)
    name, row, settings = RANK_84
    yield name, apply_overrides(distillation_recipe(sharing, row, None), settings)


def main(teacher: str, output: str) -> None:
    """Measure what the record lacks, and write it after each shape."""
    file, config, tokenizer = Path(output), AutoConfig.from_pretrained(teacher), load_tokenizer(teacher)
    found = json.loads(file.read_text(encoding="utf-8"))["bytes"] if file.is_file() else {}
    widths = ("hidden_size", "num_attention_heads", "intermediate_size", "max_position_embeddings")
    for name, recipe in shapes():
        if name in found:
            continue
        shape = {key: getattr(config, key) for key in widths} | {"init": "random", "init_layer": None}
        student, _ = build_student(recipe.student.model_copy(update=shape), None, tokenizer, (), seed=0)
        for weight in student.parameters():  # equal weights, as adapters start with, would be stored once
            weight.data += 0.02 * torch.randn_like(weight)
        with tempfile.TemporaryDirectory() as folder:
            made = minialbert.export(
                student.eval(), f"{folder}/int8", head="features", quantize="int8", tolerance=1, tokenizer=tokenizer,
                progress=False,
            )  # fmt: skip
            found[name] = made.record["bytes"]
        print(name, found[name], flush=True)
        write_json(file, {"kind": "sharing-sizes", "bytes": found})
    for name, one, other in sums():
        whole = found[one] + found[other] - found[PLAIN]
        assert found.setdefault(name, whole) == whole, name
    write_json(file, {"kind": "sharing-sizes", "bytes": found})


if __name__ == "__main__":
    main(*sys.argv[1:])
