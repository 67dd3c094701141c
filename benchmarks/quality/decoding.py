"""Whether decoding that cannot emit broken tags (Viterbi over the tag scheme) finds more than each word alone.

    python benchmarks/quality/decoding.py --output results/decoding NAME=MODEL=DATA ...

Beside the tags as they are read today, where an I- that follows nothing begins an entity, stand those of the likeliest
allowed path, and those without entities that begin with an I-. Differences of F1 have 95 % intervals from 1,000
bootstrap samples of the sentences, the same for both.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from minialbert_runtime.answers import Logits
from minialbert_runtime.words import tags_to_spans

from minialbert.runs.files import write_atomically
from minialbert.runs.records import write_result
from minialbert.tasks.certificate import ratios, resampled
from minialbert.tasks.evaluate import label_ids, load_any, task_of_model, task_recipe
from minialbert.tasks.predictions import logits_of_each, make_collator, run_model

_NEVER = -1e9
Decoded = list[list[str]]


def moves(labels: tuple[str, ...]) -> tuple[Any, Any]:
    """Return what each first tag, and each step from one tag to the next, adds to a path: 0, or what forbids it."""
    inside = np.array([label.startswith("I-") for label in labels])
    kinds = np.array([label[2:] for label in labels])
    return _NEVER * inside, _NEVER * (inside[None] & (kinds[:, None] != kinds[None]))


def likeliest_path(logits: Logits, labels: tuple[str, ...]) -> list[str]:
    """Return the allowed tags with the highest sum of log-probabilities, from logits (words, labels)."""
    first, steps = moves(labels)
    chances = logits.astype(float)
    chances -= np.logaddexp.reduce(chances, axis=1, keepdims=True)
    best, back = chances[:1].sum(axis=0) + first, []
    for row in chances[1:]:
        sums = best[:, None] + steps
        back.append(sums.argmax(axis=0))
        best = sums.max(axis=0) + row
    path = [int(best.argmax())]
    for before in reversed(back):
        path.append(int(before[path[-1]]))
    return [labels[one] for one in reversed(path)][: len(logits)]


def without_broken(tags: list[str]) -> list[str]:
    """Return tags in which entities that begin with an I- are none."""
    kept: list[str] = []
    for at, tag in enumerate(tags):
        begun = at > 0 and kept[at - 1][2:] == tag[2:] and kept[at - 1] != "O"
        kept.append(tag if not tag.startswith("I-") or begun else "O")
    return kept


def entities(sentences: Decoded) -> list[set[Any]]:
    """Return the entities of each sentence."""
    return [
        {
            (one.label, one.start, one.end)
            for one in tags_to_spans(tags, [(at, at + 1) for at in range(len(tags))])
        }
        for tags in sentences
    ]


def compare(name: str, data: str) -> dict[str, Any]:
    """Return F1 of each way to decode the test split, and the differences."""
    model, tokenizer, inputs = load_any(name)
    recipe, _, _ = task_recipe(None, data, ())
    task = task_of_model(recipe, inputs, model, name, "test")
    examples: Any = task.splits["test"]
    encoded = task.type.encode(
        examples, tokenizer, task, max_length=inputs.max_length, overlap=inputs.overlap, rule=inputs.words
    )
    logits = run_model(model, encoded, make_collator(task, tokenizer))
    by_word = logits_of_each(examples, encoded, task, logits, label_ids(model, task, name))
    labels = task.labels
    alone = [[labels[one] for one in values.argmax(axis=1)] for values in by_word]
    began = time.perf_counter()
    path = [likeliest_path(values, labels) for values in by_word]
    seconds = time.perf_counter() - began
    ways = {"alone": alone, "viterbi": path, "without_broken": [without_broken(tags) for tags in alone]}
    gold, units = entities([list(example.tags) for example in examples]), range(len(examples))
    f1 = {way: ratios(resampled(gold, entities(tags), units)[""])["f1"] for way, tags in ways.items()}
    differences = {way: values - f1["alone"] for way, values in f1.items() if way != "alone"}
    return {
        "sentences": len(examples), "entities": sum(map(len, gold)),
        "broken_tags": sum(a != b for one, other in zip(alone, ways["without_broken"], strict=True)
                           for a, b in zip(one, other, strict=True)),
        "viterbi_ms_per_sentence": 1000 * seconds / len(examples),
        "f1": {way: float(values[0]) for way, values in f1.items()},
        "differences": {
            way: {"f1": float(values[0]), "interval": np.quantile(values[1:], [0.025, 0.975]).tolist()}
            for way, values in differences.items()
        },
    }  # fmt: skip


def table(found: dict[str, Any]) -> str:
    """Return a row for each model, as Markdown."""
    lines = [
        "| model | entities | broken tags | F1, each word alone | likeliest path | difference | without broken ones |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, one in found.items():
        low, high = one["differences"]["viterbi"]["interval"]
        cells = [
            name, f"{one['entities']:,}", f"{one['broken_tags']:,}",
            *(f"{100 * one['f1'][way]:.2f}" for way in ("alone", "viterbi")),
            f"{100 * one['differences']['viterbi']['f1']:+.2f} ({100 * low:+.2f}, {100 * high:+.2f})",
            f"{100 * one['f1']['without_broken']:.2f}",
        ]  # fmt: skip
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, and write record and table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", metavar="NAME=MODEL=DATA")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    found = {name: compare(model, data) for name, model, data in (one.split("=") for one in given.models)}
    record = {"kind": "decoding", "level": 0.95, "models": found}
    write_result(given.output / "result.json", record)
    write_atomically(given.output / "table.md", table(found))
    print(table(found), end="")


if __name__ == "__main__":
    main()
