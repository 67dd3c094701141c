"""How much a layer attends from a word of one sentence to the same word in the other.

    python benchmarks/quality/word_matching.py --data STS-B/dev.tsv --output results/block-start \
        teacher=TEACHER NAME=MODEL …

Of the words that both sentences of a pair have: the mean share of a row that lies on the copies in the other
sentence, of the head where it is largest, by layer or iteration. Beside it that of a row which is even over the other
sentence.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import Any

import torch

from minialbert.method.encoders import load_teacher
from minialbert.runs.files import write_atomically
from minialbert.runs.records import write_result

SHORTEST = 4  # letters: function words meet by chance


def pairs(file: Path, count: int) -> list[tuple[str, str]]:
    """Return the first pairs of sentences of a GLUE file."""
    with file.open(encoding="utf-8", newline="") as stream:
        rows = csv.DictReader(stream, delimiter="\t", quoting=csv.QUOTE_NONE)
        return [(row["sentence1"], row["sentence2"]) for row, _ in zip(rows, range(count), strict=False)]


@torch.no_grad()
def shares(model: str, texts: list[tuple[str, str]]) -> dict[str, Any]:
    """Return the largest head's share by layer, the even share, and how many words were looked at."""
    loaded = load_teacher(model, role="model")
    encoder, tokenizer = loaded.model, loaded.tokenizer
    encoder.set_attn_implementation("eager")
    total, even, words = torch.zeros(()), 0.0, 0
    for one, other in texts:
        batch = tokenizer(one, other, return_tensors="pt")
        ids, parts = (
            batch["input_ids"][0],
            torch.tensor([-1 if p is None else p for p in batch.sequence_ids(0)]),
        )
        rows = torch.stack(
            [layer[0] for layer in encoder(**batch, output_attentions=True).attentions]
        )  # (L, H, T, T)
        for place in (parts == 0).nonzero().flatten().tolist():
            copies = ((ids == ids[place]) & (parts == 1)).nonzero().flatten()
            if not len(copies) or len(tokenizer.decode(ids[place : place + 1]).strip()) < SHORTEST:
                continue
            total = total + rows[:, :, place, copies].sum(-1)
            even += rows[:, :, place][:, :, parts == 1].mean().item() * len(copies)
            words += 1
    best = (total / words).max(dim=1).values
    return {
        "by_layer": [round(value, 4) for value in best.tolist()],
        "even": round(even / words, 4),
        "words": words,
    }


def table(found: dict[str, Any]) -> str:
    """Return the shares in per cent as Markdown."""
    depth = max(len(record["by_layer"]) for record in found.values())
    lines = [
        "| model | " + " | ".join(str(layer + 1) for layer in range(depth)) + " | even |",
        "| --- |" + " ---: |" * (depth + 1),
    ]
    for name, record in found.items():
        cells = [f"{100 * share:.0f}" for share in record["by_layer"]]
        cells += [""] * (depth - len(cells)) + [f"{100 * record['even']:.0f}"]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write matching.json and matching.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL")
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--pairs", type=int, default=200)
    given = parser.parse_args()
    texts = pairs(given.data, given.pairs)
    found = {name: shares(model, texts) for name, _, model in (text.partition("=") for text in given.models)}
    write_result(given.output / "matching.json", {"kind": "word-matching", "models": found})
    write_atomically(given.output / "matching.md", table(found))
    print(table(found), end="")


if __name__ == "__main__":
    main()
