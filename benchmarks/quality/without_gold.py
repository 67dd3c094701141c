"""Taggers that learn from a tuned teacher alone, without one gold label: diseases (NCBI) and chemicals (BC5CDR).

python benchmarks/quality/without_gold.py run DATA TEACHER STUDENT WORK
python benchmarks/quality/without_gold.py page

DATA holds ner/NCBI-disease, ner/BC5CDR-chem and corpus/biomedical; TEACHER and STUDENT are encoders, WORK a folder for
runs. The first command tunes the teacher on gold rows, lets the student learn what it says of the texts of the train
split and of other abstracts, scores both on the gold test split, and leaves the records in results/without-gold. A run
that is there goes on. The second command writes the page and its table there from the records.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

from minialbert.runs.files import write_atomically

RESULTS = Path("results") / "without-gold"
SETS = {"ncbi-disease": "NCBI-disease", "bc5cdr-chem": "BC5CDR-chem"}
TEACHER, STUDENT, GOLD = "teacher", "student", "student-gold"
ROWS = {
    TEACHER: "teacher, tuned on gold rows",
    STUDENT: "student, tuned on the teacher's labels alone",
    GOLD: "the same student, tuned on gold rows",
}
ABSTRACTS = "pmc-ccby-abstracts.txt"
CHARACTERS = 1_000_000  # of other abstracts
TEACHER_OPTIONS = ("--epochs", "3", "--lr", "3e-4", "--seed", "1")
STUDENT_OPTIONS = ("--epochs", "5", "--lr", "5e-4", "--seed", "1")
HEAD = """# Students without gold labels

F1 of entities on the gold test split, one seed. The teacher has 6 layers and 22.6 M parameters. The student has 3
iterations, 384 wide. It learns from the teacher's probabilities for the texts of the train split, without their labels,
and for other abstracts; it never sees a gold label, not even to choose its checkpoint. Made by
`python benchmarks/quality/without_gold.py page` from the records here; the module says how they are made.

"""
COLUMNS = """| | set | precision | recall | F1 | behind the teacher | minutes |
| --- | --- | ---: | ---: | ---: | ---: | ---: |
"""


def run(data: Path, teacher: str, student: str, work: Path) -> None:
    """Leave the records of both sets."""
    for name, folder in SETS.items():
        gold, texts, place = data / "ner" / folder, work / f"{name}.txt", work / name
        _write_texts(gold / "train.tsv", data / "corpus" / "biomedical" / ABSTRACTS, texts)
        from_rows = ("--task", "ner", "--data", gold)
        _tune(place / TEACHER, "--model", teacher, *from_rows, *TEACHER_OPTIONS)
        learned = place / TEACHER / "model"
        _tune(
            place / STUDENT, "--model", student, "--teacher", learned, "--unlabelled", texts, *STUDENT_OPTIONS
        )
        _tune(place / GOLD, "--model", student, *from_rows, *STUDENT_OPTIONS)
        for row in ROWS:
            scores = place / f"{row}-scores"
            if not (scores / "result.json").exists():
                _minialbert("evaluate", "--model", place / row / "model", "--data", gold, "--split", "test",
                            "--output", scores)  # fmt: skip
            for part, source in (("tuning", place / row), ("scores", scores)):
                target = RESULTS / name / row / part
                target.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source / "result.json", target / "result.json")


def _write_texts(train: Path, abstracts: Path, output: Path) -> None:
    """Write one text a line: the words of the train split, without their tags, and the first abstracts."""
    blocks = train.read_text(encoding="utf-8").strip().split("\n\n")
    sentences = [" ".join(line.split("\t")[0] for line in block.splitlines()) for block in blocks]
    others, left = [], CHARACTERS
    for line in abstracts.read_text(encoding="utf-8").splitlines():
        left -= len(line)
        if left < 0:
            break
        others += [line] if line.strip() else []
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("\n".join([*sentences, *others]) + "\n", encoding="utf-8")


def _tune(output: Path, *options: object) -> None:
    if not (output / "result.json").exists():
        _minialbert("finetune", *options, "--output", output, "--resume")


def _minialbert(*words: object) -> None:
    subprocess.run([sys.executable, "-m", "minialbert", *map(str, words)], check=True)


def table() -> str:
    """Return the table, made from the records."""
    lines = []
    for name, folder in SETS.items():
        found = {row: _records(name, row) for row in ROWS if (RESULTS / name / row).is_dir()}
        best = 100 * found[TEACHER][1]["metrics"]["test"]["entity_f1"]
        for row, (tuning, scores) in found.items():
            test = scores["metrics"]["test"]
            figures = [100 * test[f"entity_{one}"] for one in ("precision", "recall", "f1")]
            behind = "-" if row == TEACHER else f"{best - figures[2]:.1f}"
            minutes = tuning["training"]["wall_seconds"] / 60
            shown = " | ".join(f"{figure:.1f}" for figure in figures)
            lines.append(f"| {ROWS[row]} | {folder} | {shown} | {behind} | {minutes:.0f} |")
    return COLUMNS + "\n".join(lines) + "\n"


def page() -> str:
    """Return the page, made from the records."""
    notes = [
        "",
        "Minutes are those of the training steps on two cores, beside other processes. What the student read:",
        "",
    ]
    for name, folder in SETS.items():
        tuning, _ = _records(name, STUDENT)
        notes += [f"- {folder}: {note}." for note in tuning["notes"] if note.startswith("labels: ")]
        notes += [f"- {folder}: `{tuning['command']}`"]
    return HEAD + table() + "\n".join(notes) + "\n"


def _records(name: str, row: str) -> list[dict]:
    return [
        json.loads((RESULTS / name / row / part / "result.json").read_text()) for part in ("tuning", "scores")
    ]


if __name__ == "__main__":
    if sys.argv[1:] == ["page"]:
        write_atomically(RESULTS / "README.md", page())
        write_atomically(RESULTS / "table.md", table())
    else:
        _, verb, given, teacher_, student_, folder_ = sys.argv
        run(Path(given), teacher_, student_, Path(folder_))
