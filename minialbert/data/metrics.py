"""What a task is scored by: the official figures of GLUE, and F1 of entities.

All figures are fractions, except errors and correlations, which are what they are. scikit-learn, SciPy and
seqeval compute them.
"""

from __future__ import annotations

import importlib
import warnings
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np
from minialbert_runtime.words import Span, tags_to_spans
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
        # As class 1 alone: a gold label may be of a class that the model does not have.
        "f1": float(scores.f1_score(gold, predicted, labels=[1], average="micro", zero_division=0))
        if binary
        else macro,
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
    """Return the figures of `span_metrics` for tags per sentence, as many in one as in the other, and those of tags.

    Tags are read as `predict` reads them: an I- that follows nothing begins an entity. `entity_f1_strict` is seqeval's
    strict IOB2, in which it is none; of well-formed tags both are the same.
    """
    seqeval = _load("seqeval.metrics", "seqeval")
    scheme = _load("seqeval.scheme", "seqeval").IOB2
    rows, other_rows = (
        [list(tags) for tags in gold],
        [list(tags) for tags in predicted],
    )  # it takes only lists
    strict = 0.0
    if rows or other_rows:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about types that are never predicted: they score 0
            strict = float(seqeval.f1_score(rows, other_rows, mode="strict", scheme=scheme, zero_division=0))
    words = sum(map(len, gold))
    right = sum(
        g == p for row, other in zip(gold, predicted, strict=True) for g, p in zip(row, other, strict=True)
    )
    by_word = [
        [tags_to_spans(tags, [(at, at + 1) for at in range(len(tags))]) for tags in side]
        for side in (gold, predicted)
    ]
    return {
        **span_metrics(*by_word),
        "entity_f1_strict": strict,
        "token_accuracy": right / words if words else 0.0,
    }


def span_metrics(gold: Sequence[Sequence[Span]], found: Sequence[Sequence[Span]]) -> dict[str, Any]:
    """Return precision, recall and F1 of the entities of each text, over all (micro) and per type.

    An entity counts when its type and both of its ends are right.
    """
    counts: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])  # right, found, gold
    for row, other in zip(gold, found, strict=True):
        for place, spans in enumerate((set(row) & set(other), set(other), set(row))):
            for span in spans:
                counts[span.label][place] += 1
    total = [sum(column) for column in zip(*counts.values(), strict=True)] or [0, 0, 0]
    return {
        **{f"entity_{name}": value for name, value in _ratios(*total).items()},
        "per_type": {
            name: {**_ratios(*counted), "support": counted[2]} for name, counted in sorted(counts.items())
        },
    }


def _ratios(right: int, found: int, gold: int) -> dict[str, float]:
    precision, recall = right / found if found else 0.0, right / gold if gold else 0.0
    f1 = 2 * precision * recall / (precision + recall) if right else 0.0
    return {"precision": precision, "recall": recall, "f1": f1}


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
