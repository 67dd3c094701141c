"""What a task is scored by: the official figures of GLUE, and entity F1 by word (strict IOB2).

All figures are fractions, except errors and correlations, which are what they are. scikit-learn, SciPy and
seqeval compute them.
"""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minialbert.errors import MissingExtraError


def check_package(module: str, package: str) -> None:
    """Refuse figures that cannot be computed here, before anything is trained (MissingExtraError)."""
    _load(module, package)


def single_label_metrics(gold: Sequence[int], predicted: Sequence[int], num_labels: int) -> dict[str, float]:
    """Return accuracy, F1 and Matthews' correlation of one class out of several, given as ids.

    With two classes `f1` is that of class 1, as in GLUE, else the macro mean.
    """
    scores = _load("sklearn.metrics", "scikit-learn")
    ids = list(range(num_labels))
    macro = float(scores.f1_score(gold, predicted, labels=ids, average="macro", zero_division=0))
    binary = num_labels == 2
    seen = len({*gold, *predicted})
    return {
        "accuracy": float(scores.accuracy_score(gold, predicted)),
        "f1": float(scores.f1_score(gold, predicted, zero_division=0)) if binary else macro,
        "f1_macro": macro,
        # Undefined where only one class occurs; scikit-learn returns 0 too, but warns.
        "matthews_correlation": float(scores.matthews_corrcoef(gold, predicted)) if seen > 1 else 0.0,
    }


def multi_label_metrics(gold: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> dict[str, float]:
    """Return micro and macro F1, and the share of rows with exactly the right classes, of (rows, classes)."""
    scores = _load("sklearn.metrics", "scikit-learn")
    # scikit-learn reads one column as two classes, whose micro mean would be the accuracy.
    single = gold.shape[1] == 1
    micro, macro = ("binary", "binary") if single else ("micro", "macro")
    return {
        "f1_micro": float(scores.f1_score(gold, predicted, average=micro, zero_division=0)),
        "f1_macro": float(scores.f1_score(gold, predicted, average=macro, zero_division=0)),
        "accuracy": float((gold == predicted).all(axis=1).mean()),
    }


def regression_metrics(gold: Sequence[float], predicted: Sequence[float]) -> dict[str, float]:
    """Return both correlations (0 where all scores are equal), their mean and the mean squared error."""
    stats = _load("scipy.stats", "scipy")
    defined = len(set(gold)) > 1 and len(set(predicted)) > 1
    pearson = float(stats.pearsonr(gold, predicted).statistic) if defined else 0.0
    spearman = float(stats.spearmanr(gold, predicted).statistic) if defined else 0.0
    return {
        "pearson": pearson,
        "spearmanr": spearman,
        "pearson_spearman": (pearson + spearman) / 2,
        "mean_squared_error": float(np.mean((np.asarray(gold) - np.asarray(predicted)) ** 2)),
    }


def entity_metrics(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return precision, recall and F1 of entities, over all (micro) and per type (seqeval, strict IOB2).

    An entity counts when its type and both of its ends are right. In strict IOB2 it begins with B-: a
    predicted I- that follows nothing is no entity. Both are tags per sentence, as many in one as in the
    other.
    """
    seqeval = _load("seqeval.metrics", "seqeval")
    scheme = _load("seqeval.scheme", "seqeval").IOB2
    rows, other_rows = (
        [list(tags) for tags in gold],
        [list(tags) for tags in predicted],
    )  # it takes only lists
    report: dict[str, Any] = {}
    if rows or other_rows:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about types that are never predicted: they score 0
            report = seqeval.classification_report(
                rows, other_rows, mode="strict", scheme=scheme, output_dict=True, zero_division=0
            )
    micro = report.pop("micro avg", {"precision": 0.0, "recall": 0.0, "f1-score": 0.0})
    words = sum(map(len, gold))
    right = sum(
        g == p for row, other in zip(gold, predicted, strict=True) for g, p in zip(row, other, strict=True)
    )
    return {
        "entity_f1": float(micro["f1-score"]),
        "entity_precision": float(micro["precision"]),
        "entity_recall": float(micro["recall"]),
        "token_accuracy": right / words if words else 0.0,
        "per_type": {
            name: {
                "precision": float(values["precision"]),
                "recall": float(values["recall"]),
                "f1": float(values["f1-score"]),
                "support": int(values["support"]),
            }
            for name, values in sorted(report.items())
            if not name.endswith(" avg")
        },
    }


def subword_f1(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> float:
    """Return the release's figure: micro F1 of entities over word pieces, each with a copy of its word's tag.

    A word of several pieces tagged B-X counts as so many entities, so the figure is not comparable with F1 by
    word. seqeval in its default (lenient) mode, as the release called it. The release also trained and
    predicted every piece by itself; here a word is predicted once, and its tag copied to its pieces like the
    gold one.
    """
    seqeval = _load("seqeval.metrics", "seqeval")
    rows, other_rows = [list(tags) for tags in gold], [list(tags) for tags in predicted]
    if not rows and not other_rows:
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(seqeval.f1_score(rows, other_rows, zero_division=0))


def _load(module: str, package: str) -> Any:  # noqa: ANN401 - a module
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(package, "tasks", "scoring a task") from error
