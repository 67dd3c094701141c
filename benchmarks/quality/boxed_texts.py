"""The texts that the models in the box were made from, in the form that `minialbert prepare` and `finetune` read.

    python benchmarks/quality/boxed_texts.py sentences DATA texts.txt     for the sentence encoder, a text a line
    python benchmarks/quality/boxed_texts.py code WHEELS SETS texts.txt   the same, from the docstrings of packages
    python benchmarks/quality/boxed_texts.py pairs DATA SETS FOLDER       pairs.jsonl, and their texts as single.jsonl
    python benchmarks/quality/boxed_texts.py scored SETS texts.txt        what SETS has, a text a line
    python benchmarks/quality/boxed_texts.py tags DATA bc5cdr/            diseases and chemicals as one set of tags
    python benchmarks/quality/boxed_texts.py lines DATA lines/            NCBI-disease, a sentence a line
    python benchmarks/quality/boxed_texts.py both DATA FOUND both/        BC5CDR and NCBI-disease as one set of tags

WHEELS has packages as `pip download` leaves them; SETS is what `embeddings.py sets` wrote: a docstring or a pair that
shares ten words in a row with a text of the sets is left out. FOUND has what a tagger of BC5CDR found in `lines`, since
NCBI-disease has no chemicals. Beside texts.txt, packages.tsv says which packages the texts came from, with version and
licence; a package whose licence asks for more than naming it is left out.

DATA has the folders corpus/general and corpus/biomedical (documents divided by blank lines, a paragraph a line), glue
and glue-sample (GLUE's files), and ner (BC5CDR-disease, BC5CDR-chem and NCBI-disease, a word and its tag a line).
"""

from __future__ import annotations

import ast
import csv
import json
import random
import re
import sys
import warnings
import zipfile
from collections.abc import Iterator
from email.parser import HeaderParser
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
# Pairs of GLUE: the file, the columns of its two texts, and the label of those that belong together.
RELATED = (
    ("glue-sample/QNLI/train.tsv", 1, 2, "entailment"),
    ("glue-sample/QQP/train.tsv", 3, 4, "1"),
    ("glue-sample/MNLI/train.tsv", 8, 9, "entailment"),
    ("glue/MNLI/dev_matched.tsv", 8, 9, "entailment"),
    ("glue/RTE/train.tsv", 1, 2, "entailment"),
    ("glue/MRPC/train.tsv", 3, 4, "1"),
)
PROSE = ("wikipedia-vital-summaries", "wikitext", "masc")
MOST_PAIRED_WORDS = 1_500_000  # two million tokens
PERMISSIVE = re.compile(
    r"\b(BSD|MIT|Apache|ISC|PSF|Python Software|Public Domain|Unlicense|HPND|Zope|0BSD)\b", re.I
)
RECIPROCAL = re.compile(r"GPL|GNU|MPL|Mozilla|Proprietary", re.I)
COPIES = re.compile(r"(^|/)(tests?|testing|_?vendor(ed)?|_distutils|backports?|compat\w*|site-packages)/")
MOST_WORDS_OF_CODE, MOST_OF_PACKAGE, IN_A_ROW = 170, 1500, 10
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


def write_code(wheels: Path, sets: Path, output: Path) -> None:
    """Write the first line and the rest of docstrings, each text once, in a random order."""
    rng, seen = random.Random(1), {row for text in scored(sets) for row in rows_of_words(text)}
    kept: dict[str, None] = {}
    lines = ["package\tversion\tlicence\ttexts"]
    for wheel in sorted(wheels.glob("*.whl")):
        with zipfile.ZipFile(wheel) as archive:
            name, version, licence = about(archive)
            if not PERMISSIVE.search(licence) or RECIPROCAL.search(licence):
                sys.stdout.write(f"{name}: left out, licence {licence or 'not said'}\n")
                continue
            texts = [
                text
                for docstring in docstrings(archive)
                for text in (docstring.partition("\n")[0], docstring.partition("\n")[2])
            ]
        texts = list(dict.fromkeys(" ".join(text.split()[:MOST_WORDS_OF_CODE]) for text in texts))
        texts = [
            text
            for text in texts
            if len(text.split()) >= FEWEST and text not in kept and not seen.intersection(rows_of_words(text))
        ]
        rng.shuffle(texts)
        kept |= dict.fromkeys(texts[:MOST_OF_PACKAGE])
        lines.append(f"{name}\t{version}\t{licence}\t{min(len(texts), MOST_OF_PACKAGE)}")
    order = list(kept)
    rng.shuffle(order)
    output.write_text("\n".join(order) + "\n", encoding="utf-8")
    output.with_name("packages.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    sys.stdout.write(f"{len(order):,} texts of {len(lines) - 1} packages\n")


def write_pairs(data: Path, sets: Path, output: Path) -> None:
    """Write pairs in a random order: all of GLUE's that belong together, then neighbouring sentences of prose."""
    rng, seen = random.Random(1), {row for text in scored(sets) for row in rows_of_words(text)}
    for row in rows(sets / "stsb" / "dev.tsv"):
        seen.update(words for text in row[7:9] for words in rows_of_words(text))
    kept: dict[tuple[str, ...], None] = {}
    words = 0
    for pair in (tuple(" ".join(text.split()) for text in both) for both in related(data, rng)):
        lengths = [len(text.split()) for text in pair]
        fits = min(lengths) >= FEWEST and max(lengths) <= MOST and words < MOST_PAIRED_WORDS
        if fits and pair not in kept and not any(seen.intersection(rows_of_words(text)) for text in pair):
            kept[pair] = None
            words += sum(lengths)
    order = list(kept)
    rng.shuffle(order)
    output.mkdir(parents=True, exist_ok=True)
    for name, lines in {
        "pairs": [{"text": one, "pair": other} for one, other in order],
        "single": [{"text": text} for pair in order for text in pair],
    }.items():
        written = "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines)
        (output / f"{name}.jsonl").write_text(written, encoding="utf-8")
    sys.stdout.write(f"{len(order):,} pairs, {words:,} words\n")


def related(data: Path, rng: random.Random) -> Iterator[tuple[str, str]]:
    """Yield pairs of texts that belong together."""
    for file, one, other, label in RELATED:
        of_label = 0 if "MRPC" in file else -1
        yield from ((row[one], row[other]) for row in rows(data / file)[1:] if row[of_label] == label)
    neighbours = []
    for name in PROSE:
        for paragraph in (data / "corpus/general" / f"{name}.txt").read_text(encoding="utf-8").split("\n"):
            parts = SENTENCE_END.split(paragraph.strip())
            neighbours += zip(parts[::2], parts[1::2], strict=False)
    rng.shuffle(neighbours)
    yield from neighbours


def about(wheel: zipfile.ZipFile) -> tuple[str, str, str]:
    """Return a package's name, its version, and its licence in a few words."""
    file = next(name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    head = HeaderParser().parsestr(wheel.read(file).decode("utf-8", "replace"))
    classifiers = [
        one.rpartition("::")[2].strip()
        for one in head.get_all("Classifier", [])
        if one.startswith("License ::")
    ]
    said = head["License-Expression"] or ", ".join(classifiers) or (head["License"] or "").partition("\n")[0]
    return head["Name"], head["Version"], said[:80].strip()


def docstrings(wheel: zipfile.ZipFile) -> Iterator[str]:
    """Yield the docstrings of a package, without those of tests and of packages that it carries."""
    for file in sorted(wheel.namelist()):
        if not file.endswith((".py", ".pyi")) or COPIES.search(file):
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of escapes in the strings of others
            try:
                tree = ast.parse(wheel.read(file))
            except (SyntaxError, ValueError):
                continue
        for node in ast.walk(tree):
            documented = isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
            if documented and (text := ast.get_docstring(node)):
                yield text


def scored(sets: Path) -> Iterator[str]:
    """Yield every text of the sets in JSON lines that encoders are scored on."""
    for file in sets.rglob("*.jsonl"):
        with file.open(encoding="utf-8") as lines:
            yield from (json.loads(line)["text"] for line in lines)


def write_scored(sets: Path, output: Path) -> None:
    """Write every text of the sets, those in tables too."""
    tables = (file.read_text(encoding="utf-8").splitlines() for file in sorted(sets.rglob("*.tsv")))
    texts = [*scored(sets), *(line for table in tables for line in table)]
    output.write_text("".join(f"{' '.join(text.split())}\n" for text in texts), encoding="utf-8")


def rows_of_words(text: str) -> Iterator[str]:
    """Yield each ten words in a row, or a shorter text whole."""
    words = re.findall(r"\w+", text.lower())
    yield from (" ".join(words[at : at + IN_A_ROW]) for at in range(max(1, len(words) - IN_A_ROW + 1)))


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


def tagged(file: Path) -> list[tuple[list[str], list[str]]]:
    """Return the words of each sentence, and their tags."""
    blocks = file.read_text(encoding="utf-8").strip("\n").split("\n\n")
    rows = [[line.split("\t") for line in block.split("\n")] for block in blocks]
    return [([word for word, _ in words], [tag for _, tag in words]) for words in rows]


def write_lines(data: Path, output: Path) -> None:
    """Write the sentences of NCBI-disease's train and devel, words parted by spaces."""
    output.mkdir(parents=True, exist_ok=True)
    for split in ("train", "devel"):
        lines = (
            " ".join(words) + "\n" for words, _ in tagged(data / "ner" / "NCBI-disease" / f"{split}.tsv")
        )
        (output / f"{split}.txt").write_text("".join(lines), encoding="utf-8")


def write_both(data: Path, found: Path, output: Path) -> None:
    """Write BC5CDR with both types, and NCBI-disease with its own diseases and with the chemicals that were found."""
    write_tags(data, output)
    added = 0
    for split in ("train", "devel"):
        answers = (found / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        sentences = tagged(data / "ner" / "NCBI-disease" / f"{split}.tsv")
        with (output / f"{split}.tsv").open("a", encoding="utf-8") as file:
            for (words, tags), answer in zip(sentences, map(json.loads, answers), strict=True):
                starts = [sum(map(len, words[:at])) + at for at in range(len(words))]
                for entity in answer["entities"]:
                    places = [
                        at for at, start in enumerate(starts) if entity["start"] <= start < entity["end"]
                    ]
                    if entity["label"] == "Chemical" and {tags[at] for at in places} == {"O"}:
                        tags[places[0] : places[-1] + 1] = ["B-Chemical", *["I-Chemical"] * (len(places) - 1)]
                        added += 1
                rows = (f"{word}\t{tag}\n" for word, tag in zip(words, tags, strict=True))
                file.write("".join(rows) + "\n")
    sys.stdout.write(f"{added:,} chemicals found in NCBI-disease\n")


if __name__ == "__main__":
    step, *paths = sys.argv[1:]
    steps = {
        "sentences": write_sentences, "code": write_code, "pairs": write_pairs, "scored": write_scored,
        "tags": write_tags, "lines": write_lines, "both": write_both,
    }  # fmt: skip
    steps[step](*map(Path, paths))
