"""Texts that a tuned teacher labels: sentences of other abstracts for entities, the rest of SST-2, pairs for STS-B.

    python benchmarks/quality/task_texts.py DATA TEXTS

DATA holds ner, glue and corpus/biomedical; TEXTS is a folder that gets a file for each task, with a text on each line,
or the columns of a pair.
"""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path

from minialbert.runs.files import write_atomically

ABSTRACTS = {
    "NCBI-disease": ("ner-text-bc5cdr-train", "pmc-ccby-abstracts", "medical-abstracts-tc"),
    "BC5CDR-chem": ("ner-text-ncbi-disease-train", "pmc-ccby-abstracts", "ohsumed-abstracts-01"),
    "BC5CDR-disease": ("ner-text-ncbi-disease-train", "pmc-ccby-abstracts", "ohsumed-abstracts-01"),
    "diseases and chemicals": ("pmc-ccby-abstracts", "ohsumed-abstracts-01", "medical-abstracts-tc"),
    "BC2GM": ("genia-abstracts", "ner-text-bionlp11epi-train", "ner-text-bionlp13pc-train"),
}
SENTENCES = 10_000
SIDES, PAIRS, LONGEST = ("sentence1", "sentence2"), 6_300, 200
GOLD_ROWS = 20_000  # of SST-2; the others come without their labels
_END = re.compile(r"(?<=[a-z0-9)]{2}[.?!]) (?=[A-Z])")


def letters(text: str) -> str:
    """Return what of a text is compared with texts that are scored."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def sentences_of_sets(folder: Path, splits: tuple[str, ...]) -> set[str]:
    """Return the sentences of some splits of a set of entities, to be compared."""
    blocks = (
        block
        for name in splits
        for block in (folder / f"{name}.tsv").read_text(encoding="utf-8").split("\n\n")
    )
    return {letters("".join(line.partition("\t")[0] for line in block.splitlines())) for block in blocks}


def entities(data: Path, name: str) -> list[str]:
    """Return sentences of other abstracts, none of which is scored in any of the sets."""
    scored = set().union(
        *(sentences_of_sets(folder, ("devel", "test")) for folder in (data / "ner").iterdir())
    )
    texts: list[str] = []
    for source in ABSTRACTS[name]:
        lines = (data / "corpus" / "biomedical" / f"{source}.txt").read_text(encoding="utf-8").splitlines()
        texts += [text for line in lines for text in _END.split(line) if 40 <= len(text) <= 400]
    texts = [text for text in dict.fromkeys(texts) if letters(text) not in scored]
    return random.Random(0).sample(texts, min(SENTENCES, len(texts)))


def sentiments(data: Path) -> list[str]:
    """Return the sentences of SST-2's train split behind those that keep their labels."""
    lines = (data / "glue" / "SST-2" / "train.tsv").read_text(encoding="utf-8").splitlines()[1 + GOLD_ROWS :]
    return [line.rpartition("\t")[0].strip() for line in lines]


def pairs_of(file: Path) -> list[list[str]]:
    """Return the pairs of sentences of a GLUE task's table."""
    rows = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()]
    at = [rows[0].index(name) for name in SIDES]
    return [[row[side].strip() for side in at] for row in rows[1:]]


def alike(data: Path) -> list[str]:
    """Return pairs of sentences of MNLI, short ones, as lines of a table; no sentence is scored in STS-B."""
    scored = {letters(text) for pair in pairs_of(data / "glue" / "STS-B" / "dev.tsv") for text in pair}
    pairs = pairs_of(data / "glue" / "MNLI" / "dev_matched.tsv")
    pairs = [pair for pair in pairs if len(pair[0]) < LONGEST and not scored & {*map(letters, pair)}]
    return ["\t".join(pair) for pair in (SIDES, *random.Random(0).sample(pairs, PAIRS))]


def main() -> None:
    """Write the texts of all tasks into a folder, a line each."""
    data, output = map(Path, sys.argv[1:])
    output.mkdir(parents=True, exist_ok=True)
    made = {**{name: entities(data, name) for name in ABSTRACTS}, "SST-2": sentiments(data)}
    made["STS-B"] = alike(data)
    for name, texts in made.items():
        suffix = "tsv" if name == "STS-B" else "txt"
        write_atomically(output / f"{name}.{suffix}", "".join(f"{text}\n" for text in texts))
        sys.stdout.write(f"{name}: {len(texts):,} texts, {sum(map(len, texts)):,} characters\n")


if __name__ == "__main__":
    main()
