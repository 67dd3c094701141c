"""The demo's second half: the distilled student is adapter-tuned to tell from which package a docstring comes."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.table import Table
from torch import Tensor

from .demo_text import package_texts
from .errors import MissingExtraError
from .finetuning import finetune
from .prediction import Predictor
from .recipe import apply_overrides, load_recipe
from .runs import write_atomically
from .tuning_schema import FinetuneRecipe

_SHOWN = 4


def tune_on_packages(
    student: Path, output: Path, embed: Callable[[list[str]], Tensor], tell: Callable[[Any], None]
) -> dict[str, Any]:
    """Adapter-tune a student on docstrings and compare it with two simple answers.

    Args:
        student: directory of the distilled student.
        output: directory for the examples (`data/`, as a user would write them) and the run (`tuned/`).
        embed: returns the teacher's vector of each text, (texts, D).
        tell: receives what to show.

    Returns:
        `accuracy` of the student, of the most frequent class and of a logistic regression on the teacher's
        vectors, on docstrings of modules that were not trained on; and what the tuning cost.

    Raises:
        MissingExtraError: without scikit-learn.
    """
    training, test = package_texts()
    data = output / "data"
    data.mkdir(parents=True, exist_ok=True)
    for name, examples in (("train", training), ("test", test)):
        lines = [json.dumps({"text": text, "label": package}) for text, package in examples]
        write_atomically(data / f"{name}.jsonl", "\n".join(lines) + "\n")
    classes = sorted({package for _, package in training})
    tell(
        f"Task: from which package does a docstring come? {', '.join(classes)}; {len(training)} docstrings to train "
        f"on, {len(test)} of other modules to test. Tuning the adapters; a minute or two."
    )
    recipe = apply_overrides(
        load_recipe("demo", FinetuneRecipe),
        [f"model.name={json.dumps(str(student))}", f"task.data={json.dumps(str(data))}"],
    )
    record = finetune(recipe, output=output / "tuned", overwrite=True)
    answers = [package for _, package in test]
    frequent = Counter(package for _, package in training).most_common(1)[0][0]
    accuracy = {
        "student": record["score"],
        "majority": answers.count(frequent) / len(answers),
        "teacher_features": _logistic_regression(training, test, embed),
    }
    trainable, total = record["model"]["trainable_parameters"], record["model"]["parameters"]
    table = Table("accuracy on docstrings of other modules", "", title="Adapter-tuning")
    table.add_row(f"most frequent class ({frequent})", f"{100 * accuracy['majority']:.1f} %")
    table.add_row(
        f"student, {trainable:,} of {total:,} parameters tuned ({100 * trainable / total:.1f} %)",
        f"{100 * accuracy['student']:.1f} %",
    )
    table.add_row(
        "teacher's mean-pooled vectors, logistic regression", f"{100 * accuracy['teacher_features']:.1f} %"
    )
    tell(table)
    tell(_examples(output / "tuned" / "model", test))
    return {
        "accuracy": accuracy,
        "classes": classes,
        "rows": record["data"]["rows"],
        "tuning": record["training"],
    }


def _logistic_regression(
    training: list[tuple[str, str]], test: list[tuple[str, str]], embed: Callable[[list[str]], Tensor]
) -> float:
    try:
        from sklearn.linear_model import LogisticRegression
    except ImportError as error:
        raise MissingExtraError("scikit-learn", "demo", "the demo's comparison") from error
    texts, labels = zip(*training, strict=True)
    classifier = LogisticRegression(max_iter=2000, C=10.0).fit(embed(list(texts)).numpy(), labels)
    texts, labels = zip(*test, strict=True)
    return float(classifier.score(embed(list(texts)).numpy(), labels))


def _examples(model: Path, test: list[tuple[str, str]]) -> Table:
    table = Table(title="What it says")
    for column in ("docstring of a module it has not seen", "package", "predicted", "score"):
        table.add_column(column, overflow="fold")
    shown = [example for example in test if len(example[0].split()) > 3][:_SHOWN]  # some are a mere sign
    results = Predictor.load(str(model)).predict(text for text, _ in shown)
    for (text, package), result in zip(shown, results, strict=True):
        table.add_row(text.splitlines()[0][:60], package, result["label"], f"{result['score']:.2f}")
    return table
