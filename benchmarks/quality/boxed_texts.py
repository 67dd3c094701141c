"""The texts that the models in the box were made from, in the form that `minialbert prepare` and `finetune` read.

    python benchmarks/quality/boxed_texts.py sentences DATA texts.txt    for the sentence encoder, a text a line
    python benchmarks/quality/boxed_texts.py tags DATA bc5cdr/           diseases and chemicals as one set of tags

DATA has the folders corpus/general and corpus/biomedical (documents divided by blank lines, a paragraph a line), glue
and glue-sample (GLUE's files), and ner (BC5CDR-disease and BC5CDR-chem, a word and its tag a line).
"""

from __future__ import annotations

import csv
import random
import re
import sys
from collections.abc import Iterator
from itertools import zip_longest
from pathlib import Path

SENTENCE_END = re.compile(r'(?<=[.!?])["”\')]*\s+(?=["“(\'A-Z0-9])')
COLUMNS = (
    "question",
    "question1",
    "question2",
    "sentence",
    "sentence1",
    "sentence2",
    "premise",
    "hypothesis",
)
FEWEST, MOST = 3, 110  # words
SINGLE, PASSED_OVER = 0.7, 0.6  # share of texts of one sentence; of biomedical sentences that are passed over


def sentences(data: Path, rng: random.Random) -> Iterator[str]:
    """Yield texts of one to five sentences of the corpora, and sentences of GLUE's train splits, in this order."""
    for file in sorted((data / "corpus").glob("*/*.txt")):
        if "ner-text" in file.name:  # of sets that taggers are scored on
            continue
        for paragraph in file.read_text(encoding="utf-8").split("\n"):
            parts, at = SENTENCE_END.split(paragraph.strip()), 0
            while at < len(parts):
                drawn = rng.random()
                if file.parent.name == "biomedical" and rng.random() < PASSED_OVER:
                    at += 1
                    continue
                count = 1 if drawn < SINGLE else rng.randint(2, 5)
                yield " ".join(parts[at : at + count])
                at += count
    glue = data / "glue"
    yield from (row[3] for row in rows(glue / "CoLA" / "train.tsv"))
    yield from (row[0] for row in rows(glue / "SST-2" / "train.tsv")[1:] if len(row[0].split()) > 5)
    for name, columns in (("RTE", slice(1, 3)), ("MRPC", slice(3, 5))):
        for row in rows(glue / name / "train.tsv")[1:]:
            yield from row[columns]
    for file in sorted((data / "glue-sample").rglob("train.tsv")):
        header, *others = rows(file)
        wanted = [at for at, column in enumerate(header) if column in COLUMNS]
        for row in others:
            yield from (row[at] for at in wanted if at < len(row))


def rows(file: Path) -> list[list[str]]:
    """Return the cells of a file of GLUE, whose quotes are characters as any other."""
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.reader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))


def write_sentences(data: Path, output: Path) -> None:
    """Write each text once, in a random order."""
    rng = random.Random(1)
    texts = (" ".join(text.split()) for text in sentences(data, rng))
    kept = list(dict.fromkeys(text for text in texts if FEWEST <= len(text.split()) <= MOST))
    rng.shuffle(kept)
    output.write_text("\n".join(kept) + "\n", encoding="utf-8")
    sys.stdout.write(f"{len(kept):,} texts\n")


def write_tags(data: Path, output: Path) -> None:
    """Write the sentences that both sets have with the tags of both, which never meet in one word."""
    output.mkdir(parents=True, exist_ok=True)
    for split in ("train", "devel", "test"):
        names = [data / "ner" / f"BC5CDR-{kind}" / f"{split}.tsv" for kind in ("disease", "chem")]
        merged = []
        for one, other in zip_longest(*(name.read_text(encoding="utf-8").split("\n") for name in names)):
            (word, *tag), (same, *tag_too) = one.split("\t"), other.split("\t")
            assert word == same and "O" in {*tag, *tag_too, *["O"][bool(tag) :]}
            merged.append("\t".join([word, *(tag if tag != ["O"] else tag_too)]))
        (output / f"{split}.tsv").write_text("\n".join(merged), encoding="utf-8")


if __name__ == "__main__":
    step, source, target = sys.argv[1:]
    {"sentences": write_sentences, "tags": write_tags}[step](Path(source), Path(target))
