"""The demo's second half: the student is adapter-tuned to tell from which package a docstring comes, and exported."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import Tensor

from minialbert.deploy.bench import DEFAULT_ENGINES, benchmark
from minialbert.errors import needs_extra
from minialbert.experiments.demo.text import package_texts
from minialbert.recipes.load import apply_overrides, load_recipe
from minialbert.recipes.schema import FinetuneRecipe
from minialbert.report.sections import ENGINE_NAMES
from minialbert.runs.files import write_atomically
from minialbert.runs.muon import has_muon
from minialbert.runs.progress import size
from minialbert.tasks.finetune import finetune
from minialbert.tasks.predict import Predictor

_SHOWN = 4
_LENGTHS = (16, 128)
_TURNS = 9
_SECONDS = 10.0  # of a model, engine and length
_ENGINES = ("torch-fp32", "onnx-int8", "openvino-int8", "native-int8")


def tune_on_packages(
    student: Path, output: Path, embed: Callable[[list[str]], Tensor], tell: Callable[[Any], None]
) -> dict[str, Any]:
    """Adapter-tune a student on docstrings and compare it with two simple answers.

    The folder gets the examples (`data/`, as a user would write them) and the run (`tuned/`). Returns what the tuning
    cost, and `accuracy` of the student, of the most frequent class and of a logistic regression on the teacher's
    vectors, on docstrings of modules that were not trained on.
    """
    training, test = package_texts()
    data = output / "data"
    for name, examples in (("train", training), ("test", test)):
        lines = [json.dumps({"text": text, "label": package}) for text, package in examples]
        write_atomically(data / f"{name}.jsonl", "\n".join(lines) + "\n")
    classes = sorted({package for _, package in training})
    tell(
        f"Task: from which package does a docstring come? {', '.join(classes)}; {len(training)} docstrings to train "
        f"on, {len(test)} of other modules to test. Tuning the adapters; a minute or two."
    )
    own = {"model.name": str(student), "task.data": str(data)}
    own |= {"tuning.optimizer": "muon" if has_muon() else "adamw"}
    recipe = apply_overrides(load_recipe("demo", FinetuneRecipe), own)
    record = finetune(recipe=recipe, output=output / "tuned", overwrite=True).record
    answers = [package for _, package in test]
    frequent = Counter(package for _, package in training).most_common(1)[0][0]
    accuracy = {"student": record["score"], "majority": answers.count(frequent) / len(answers)}
    accuracy["teacher_features"] = _logistic_regression(training, test, embed)
    trainable, total = record["model"]["trainable_parameters"], record["model"]["parameters"]
    told = {
        f"most frequent class ({frequent})": "majority",
        f"student, {trainable:,} of {total:,} parameters tuned ({100 * trainable / total:.1f} %)": "student",
        "teacher's mean-pooled vectors, logistic regression": "teacher_features",
    }
    rows = [(label, f"{100 * accuracy[name]:.1f} %") for label, name in told.items()]
    tell(table_of("Adapter-tuning", ("accuracy on docstrings of other modules", ""), rows))
    tell(_examples(output / "tuned" / "model", test))
    cost = {"rows": record["data"]["rows"], "tuning": record["training"]}
    return {"accuracy": accuracy, "classes": classes, **cost}


def export_and_time(tuned: Path, output: Path, teacher: Path, tell: Callable[[Any], None]) -> dict[str, Any]:
    """Export a tuned student to int8; return the proof of parity, and sizes and milliseconds beside its teacher.

    Both run in every engine of `_ENGINES` that is installed, as in `minialbert bench`.
    """
    with needs_extra("demo", "the demo's export"):
        from minialbert.deploy.onnx.export import export_onnx
    from minialbert.deploy.onnx.parity import parity_line

    tell("Export: the tuned student as one ONNX file with int8 weights, each stored once.")
    record = export_onnx(str(tuned), output, precision="int8", overwrite=True)
    tell(f"Parity with PyTorch: {parity_line(record['parity'])}.")
    tell("Student and teacher in several engines, each in a process of its own, in turns; a minute or two.")
    bench = benchmark(
        [f"student={tuned}", f"teacher={teacher}"], engines=[one for one in _ENGINES if one in DEFAULT_ENGINES],
        lengths=_LENGTHS, batch_size=1, repeats=_TURNS, seconds=_SECONDS,
    )  # fmt: skip
    for note in bench["notes"]:
        tell(note)
    held, times = {}, {}
    for model, engine in ((model, engine) for model, cells in bench["metrics"].items() for engine in cells):
        cell, name = bench["metrics"][model][engine], f"{model}, {ENGINE_NAMES[engine]}"
        medians = {str(one["length"]): 1000 * one["seconds"]["median"] for one in cell["timings"]}
        if medians:
            held[name], times[name] = cell["bytes"], {key: round(value, 3) for key, value in medians.items()}
    fastest_first = sorted(times, key=lambda name: [*times[name].values()][-1])
    rows = [(name, size(held[name]), *(f"{ms:.1f}" for ms in times[name].values())) for name in fastest_first]
    columns = ("model", "bytes", *(f"ms, 1 x {length} tokens" for length in _LENGTHS))
    tell(table_of("Latency, the fastest first", columns, rows))
    return {"bytes": held, "parity": record["parity"], "milliseconds": times}


def _logistic_regression(
    training: list[tuple[str, str]], test: list[tuple[str, str]], embed: Callable[[list[str]], Tensor]
) -> float:
    with needs_extra("demo", "the demo's comparison", "scikit-learn"):
        from sklearn.linear_model import LogisticRegression
    texts, labels = zip(*training, strict=True)
    classifier = LogisticRegression(max_iter=2000, C=10.0).fit(embed(list(texts)).numpy(), labels)
    texts, labels = zip(*test, strict=True)
    return float(classifier.score(embed(list(texts)).numpy(), labels))


def _examples(model: Path, test: list[tuple[str, str]]) -> Table:
    shown = [example for example in test if len(example[0].split()) > 3][:_SHOWN]  # some are a mere sign
    results = Predictor.load(str(model)).predict(text for text, _ in shown)
    rows = []
    for (text, package), result in zip(shown, results, strict=True):
        rows.append((text.splitlines()[0][:60], package, result["label"], f"{result['score']:.2f}"))
    heads = ("docstring of a module it has not seen", "package", "predicted", "score")
    return table_of("What it says", heads, rows)


def table_of(title: str, columns: Iterable[str], rows: Iterable[Sequence[str]]) -> Table:
    """Return a table that breaks what is too long for a terminal into lines."""
    table = Table(title=title)
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*row)
    return table
