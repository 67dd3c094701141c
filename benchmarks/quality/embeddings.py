"""Sentence encoders on similarity, retrieval and clustering, each beside its teacher, as records and one table.

    python benchmarks/quality/embeddings.py sets --glue GLUE --medical ABSTRACTS.txt --books BOOKS/ --output sets/
    python benchmarks/quality/embeddings.py static --teacher TEACHER --dim 190 --output static/     (needs model2vec)
    python benchmarks/quality/embeddings.py score --teacher TEACHER --sets sets/ --model NAME=FOLDER ... \
        --output results/embeddings
    python benchmarks/quality/embeddings.py score --teacher TEACHER --sets sets/ --model wordllama=wordllama \
        --output results/embeddings     (needs the package wordllama, which brings its weights)
    python benchmarks/quality/embeddings.py time --model NAME=FOLDER ... --output results/embeddings

`sets` writes the sets in the shapes that `minialbert evaluate` reads, `score` one record for each set and model.
`time` gives one text to each model in turn, each in a process of its own with two threads.

- stsb: STS-B dev, as GLUE has it.
- python: the first line of a docstring, to the rest of it, among all docstrings of Python's standard library.
- qnli: a question, to the sentence that answers it, among all sentences of QNLI dev.
- medical: the title of an abstract, to the abstract (in a file of one abstract a line, title first).
- packages: docstrings, to find their package again.
- books: a paragraph of each section of a textbook, to find the book again.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import statistics
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from minialbert import evaluate
from minialbert.experiments.demo.text import _docstrings, _modules
from minialbert.runs.machine import environment

SETS = {
    "stsb": "sts", "python": "retrieval", "qnli": "retrieval", "medical": "retrieval", "packages": "clustering",
    "books": "clustering",
}  # fmt: skip
WORDLLAMA = "wordllama"
MOST_QUERIES, MOST_TEXTS, CLASSES = 1500, 3000, 20


def main() -> None:
    """Run one of the three steps."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    steps = parser.add_subparsers(dest="step", required=True)
    sets, static, score, times = (steps.add_parser(name) for name in ("sets", "static", "score", "time"))
    for name in ("glue", "medical", "books"):
        sets.add_argument(f"--{name}", type=Path, required=True)
    for one in (static, score):
        one.add_argument("--teacher", required=True)
    for one in (sets, static, score, times):
        one.add_argument("--output", type=Path, required=True)
    static.add_argument("--dim", type=int, required=True)
    score.add_argument("--sets", type=Path, required=True)
    for one in (score, times):
        one.add_argument("--model", action="append", required=True, metavar="NAME=FOLDER")
    given = parser.parse_args()
    if given.step == "sets":
        write_sets(given.glue, given.medical, given.books, given.output)
    elif given.step == "static":
        from model2vec.distill import distill

        distill(given.teacher, pca_dims=given.dim, quantize_to="int8").save_pretrained(given.output)
    elif given.step == "time":
        time_models(dict(one.split("=", 1) for one in given.model), given.output)
    else:
        for named in given.model:
            name, _, folder = named.partition("=")
            score_model(name, folder, given.teacher, given.sets, given.output)


def write_sets(glue: Path, medical: Path, books: Path, output: Path) -> None:
    """Write all sets; the same texts come from the same files everywhere."""
    for name in SETS:
        (output / name).mkdir(parents=True, exist_ok=True)
    (output / "stsb" / "dev.tsv").write_bytes((glue / "STS-B" / "dev.tsv").read_bytes())
    (output / "stsb" / "train.tsv").write_bytes((glue / "STS-B" / "train.tsv").read_bytes())

    docs = {one.text: one.name for module, path in _modules() for one in _docstrings(path, module)}
    pairs = [
        (" ".join(lines[0].split()), " ".join(" ".join(lines[1:]).split()))
        for text in docs
        if (lines := text.splitlines())
    ]
    write_retrieval(output / "python", [one for one in pairs if len(one[0]) > 20 and len(one[1]) > 80])
    packages = [
        (" ".join(text.split()), name.partition(".")[0]) for text, name in docs.items() if len(text) > 60
    ]
    write_clusters(output / "packages", packages)

    with (glue / "QNLI" / "dev.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    answers = [(row["question"], row["sentence"]) for row in rows if row["label"] == "entailment"]
    write_retrieval(output / "qnli", answers, [row["sentence"] for row in rows])

    abstracts = [
        text.split(". ", 1) for text in medical.read_text(encoding="utf-8").split("\n\n") if ". " in text
    ]
    write_retrieval(
        output / "medical",
        [(title, rest) for title, rest in abstracts if len(title) > 20 and len(rest) > 200],
    )

    sections = [
        (max(section.splitlines(), key=len), book.stem.partition("-")[2])
        for book in sorted(books.glob("openstax-*.txt"))
        for section in book.read_text(encoding="utf-8").split("\n\n")
        if section.strip()
    ]
    write_clusters(output / "books", sections)
    for name in SETS:
        sys.stdout.write(
            f"{name}: {sum(file.stat().st_size for file in (output / name).rglob('*.*')) / 1e6:.1f} MB\n"
        )


def mixed(texts: Iterable[tuple[str, str]], most: int) -> list[tuple[str, str]]:
    """Return so many of the texts, in an order that follows from them alone, each once."""
    order = sorted(dict(texts).items(), key=lambda one: hashlib.sha256(one[0].encode()).hexdigest())
    return order[:most]


def write_retrieval(folder: Path, pairs: list[tuple[str, str]], more: Iterable[str] = ()) -> None:
    """Write questions and answers in the layout of BEIR; all answers, and `more` texts, are the corpus."""
    ids = {
        text: f"d{number}"
        for number, text in enumerate(dict.fromkeys([*(answer for _, answer in pairs), *more]))
    }
    asked = mixed(pairs, MOST_QUERIES)
    write_lines(folder / "corpus.jsonl", ({"_id": key, "text": text} for text, key in ids.items()))
    write_lines(
        folder / "queries.jsonl", ({"_id": f"q{at}", "text": text} for at, (text, _) in enumerate(asked))
    )
    (folder / "qrels").mkdir(exist_ok=True)
    judged = "".join(f"q{at}\t{ids[answer]}\t1\n" for at, (_, answer) in enumerate(asked))
    (folder / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{judged}", encoding="utf-8")


def write_clusters(folder: Path, texts: list[tuple[str, str]]) -> None:
    """Write texts with their class, of the classes that have most texts."""
    common = {name for name, _ in Counter(name for _, name in texts).most_common(CLASSES)}
    rows = mixed([one for one in texts if one[1] in common], MOST_TEXTS)
    write_lines(folder / "test.jsonl", ({"text": text, "label": name} for text, name in rows))


def write_lines(file: Path, rows: Iterable[dict[str, str]]) -> None:
    """Write JSON lines."""
    file.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")


class Static:
    """A static-embedding model: of model2vec, or the one that comes in the package wordllama."""

    def __init__(self, folder: str) -> None:
        if folder == WORDLLAMA:
            import wordllama

            home = Path(wordllama.__file__).parent
            self.weights = home / "weights"
            self.run = wordllama.WordLlama.load(cache_dir=home, disable_download=True).embed
        else:
            from model2vec import StaticModel

            self.weights, self.run = Path(folder), StaticModel.from_pretrained(folder).encode

    def encode(self, texts: list[str]) -> np.ndarray:
        """Return a vector for each text."""
        return np.asarray(self.run(texts))


def score_model(name: str, folder: str, teacher: str, sets: Path, output: Path) -> None:
    """Write a record for each set, with the bytes of the model's files."""
    is_static = not (Path(folder) / "export.json").is_file()
    for place, task in SETS.items():
        model = Static(folder) if is_static else folder
        given = (
            {} if is_static else {"reference": teacher}
        )  # the teacher's figures stand beside the encoder's
        record = evaluate(model, sets / place, task=task, progress=False, **given).record
        place_of_weights = model.weights if isinstance(model, Static) else Path(folder)
        weights = [*place_of_weights.glob("*.onnx"), *place_of_weights.glob("*.safetensors")]
        record |= {"name": name, "bytes": sum(file.stat().st_size for file in weights)}
        if beside := record.get("reference"):
            beside["name"] = "teacher"
        record["model"]["name"] = name
        (output / name).mkdir(parents=True, exist_ok=True)
        (output / name / f"{place}.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        kept = f", {beside['share']:.1%}, mixed {beside.get('mixed_share') or 0:.1%}" if beside else ""
        sys.stdout.write(f"{name} {place}: {record['score']:.4f}{kept}\n")
        sys.stdout.flush()


TIMED = """
import sys, statistics, time
folder, words = sys.argv[1:]
folder, _, engine = folder.partition("@")
if "static" in folder:
    from model2vec import StaticModel
    run = StaticModel.from_pretrained(folder).encode
else:
    from minialbert_runtime import Model
    run = Model(folder, threads=2, engine=engine or None).embed
texts, seconds = ["the house " * (int(words) // 2)], []
for _ in range(20):
    run(texts)
until = time.perf_counter() + 2
while time.perf_counter() < until:
    begun = time.perf_counter()
    run(texts)
    seconds.append(time.perf_counter() - begun)
print(statistics.median(seconds))
"""


def time_models(folders: dict[str, str], output: Path) -> None:
    """Write the median milliseconds of one text by model and tokens (two of them special), over five turns."""
    found: dict[str, dict[int, list[float]]] = {name: {16: [], 128: []} for name in folders}
    for _ in range(5):
        for name, folder in folders.items():
            for length, values in found[name].items():
                command = [sys.executable, "-c", TIMED, folder, str(length - 2)]
                answer = subprocess.run(command, capture_output=True, text=True, check=True)
                values.append(1000 * float(answer.stdout))
    record = {
        "kind": "latency", "threads": 2, "environment": environment(),
        "milliseconds": {
            name: {str(length): round(statistics.median(values), 3) for length, values in lengths.items()}
            for name, lengths in found.items()
        },
    }  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    (output / "latency.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"{json.dumps(record['milliseconds'])}\n")


if __name__ == "__main__":
    main()
