"""Whether decoding that cannot emit broken tags (Viterbi over the tag scheme) finds more than each word alone.

    python benchmarks/quality/decoding.py --output results/decoding NAME=MODEL=DATA ...

Beside each word's own likeliest tag, where an I- that follows nothing begins an entity (`task.decoding=alone`), stand
the likeliest allowed path (`viterbi`), and the former without entities that begin with an I-. Differences of F1 have
95 % intervals from 1,000 bootstrap samples of the sentences, the same for both.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from minialbert_runtime.answers import tags_of
from minialbert_runtime.words import tags_to_spans

from minialbert.runs.files import write_atomically
from minialbert.runs.records import write_result
from minialbert.tasks.certificate import ratios, resampled
from minialbert.tasks.evaluate import label_ids, load_any, task_of_model, task_recipe
from minialbert.tasks.predictions import logits_of_each, make_collator, run_model

Decoded = list[list[str]]


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
    seconds, ways = {}, {}
    for way in ("alone", "viterbi"):
        began = time.perf_counter()
        ways[way] = [tags_of(values, labels, decoding=way)[0] for values in by_word]
        seconds[way] = time.perf_counter() - began
    alone = ways["alone"]
    ways["without_broken"] = [without_broken(tags) for tags in alone]
    gold, units = entities([list(example.tags) for example in examples]), range(len(examples))
    f1 = {way: ratios(resampled(gold, entities(tags), units)[""])["f1"] for way, tags in ways.items()}
    differences = {way: values - f1["alone"] for way, values in f1.items() if way != "alone"}
    return {
        "sentences": len(examples), "entities": sum(map(len, gold)),
        "broken_tags": sum(a != b for one, other in zip(alone, ways["without_broken"], strict=True)
                           for a, b in zip(one, other, strict=True)),
        "viterbi_adds_ms_per_sentence": 1000 * (seconds["viterbi"] - seconds["alone"]) / len(examples),
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
