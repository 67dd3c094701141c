"""What a task is scored by: the official figures of GLUE, and F1 of entities.

All figures are fractions, except errors and correlations, which are what they are. scikit-learn, SciPy and
seqeval compute them.
"""

from __future__ import annotations

import importlib
import re
import string
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain
from operator import eq
from typing import Any

import numpy as np
from minialbert_runtime.words import Span, tags_to_spans
from numpy.typing import NDArray

from minialbert.errors import listed, needs_extra, quoted

AREAS = ("auroc", "average_precision")
_MOST_AREAS = 100  # classes; each sorts all rows
_ARTICLES, _PUNCTUATION = re.compile(r"\b(a|an|the)\b"), str.maketrans("", "", string.punctuation)


def single_label_metrics(
    gold: Sequence[int], predicted: Sequence[int], num_labels: int, positive: int = 1
) -> dict[str, float]:
    """Return accuracy, F1 and Matthews' correlation of one class out of several, given as ids.

    With two classes `f1` is that of the positive one, in GLUE class 1, else the macro mean.
    """
    scores = check_package("sklearn.metrics", "scikit-learn")
    true, claimed = (np.equal.outer(side, np.arange(num_labels)) for side in (gold, predicted))
    f1 = (true & claimed).sum(axis=0) / np.maximum((true.sum(axis=0) + claimed.sum(axis=0)) / 2, 0.5)
    # Undefined where only one class occurs; scikit-learn returns 0 too, but warns.
    matthews = float(scores.matthews_corrcoef(gold, predicted)) if len({*gold, *predicted}) > 1 else 0.0
    return {
        "accuracy": float(np.equal(gold, predicted).mean()),
        "f1": float(f1[positive] if num_labels == 2 else f1.mean()),
        "f1_macro": float(f1.mean()),
        "matthews_correlation": matthews,
    }


def class_metrics(
    gold: NDArray[np.bool_],
    predicted: NDArray[np.bool_],
    scores: NDArray[np.floating],
    labels: Sequence[str],
    positive: int | None = None,
) -> dict[str, Any]:
    """Return figures by class, their means over classes, and areas under the curves of scores, all (rows, classes).

    The areas (of ROC: `auroc`; of precision over recall: `average_precision`) are those of the positive class where
    there is one, else means over the classes that some rows have and others have not; absent where none is so, and
    of more than 100 classes.
    """
    sklearn = check_package("sklearn.metrics", "scikit-learn")
    right = (gold & predicted).sum(axis=0)
    support, claimed = gold.sum(axis=0), predicted.sum(axis=0)
    wholes = {"precision": claimed, "recall": support, "f1": (support + claimed) / 2}
    columns = {name: right / np.maximum(whole, 0.5) for name, whole in wholes.items()}
    found, per_class = dict[str, Any](), dict[str, Any]()
    for index, label in enumerate(labels):
        figures = {name: float(column[index]) for name, column in columns.items()}
        per_class[label] = {**figures, "support": int(support[index]), "predicted": int(claimed[index])}
    for name, column in columns.items():
        found[f"{name}_macro"] = float(column.mean())
        found[f"{name}_weighted"] = float(column @ support / max(support.sum(), 1))
    chosen = [positive] if positive is not None else range(len(labels) if len(labels) <= _MOST_AREAS else 0)
    varied = [index for index in chosen if 0 < support[index] < len(gold)]
    for name, area in zip(AREAS, (sklearn.roc_auc_score, sklearn.average_precision_score), strict=True):
        if varied:
            found[name] = float(np.mean([area(gold[:, index], scores[:, index]) for index in varied]))
    return {**found, "per_class": per_class}


def confusion(
    gold: Sequence[int], predicted: Sequence[int], labels: Sequence[str]
) -> dict[str, dict[str, int]]:
    """Return how many rows of each class were given which; what never happens is left out."""
    found: dict[str, dict[str, int]] = {}
    for (true, claimed), count in sorted(Counter(zip(gold, predicted, strict=True)).items()):
        found.setdefault(labels[true] if true >= 0 else "(unknown)", {})[labels[claimed]] = count
    return found


def never_predicted(figures: Mapping[str, Any]) -> list[str]:
    """Return lines about classes and types of entities that were never found, and those that were not there to find."""
    lines = []
    for part, figure, told, units in (
        ("per_class", "predicted", "never predicted", ("row", "rows")),
        ("per_type", "recall", "none found", ("entity", "entities")),
    ):
        counts = {name: one["support"] for name, one in (figures.get(part) or {}).items() if not one[figure]}
        missed = [f"{quoted(name)} ({n:,} {units[n > 1]})" for name, n in counts.items() if n]
        lines += [f"{told}: {listed(missed)}"] if missed else []
    if absent := [name for name, one in (figures.get("per_class") or {}).items() if not one["support"]]:
        lines.append(
            f"no row has {listed(map(quoted, absent))}: 0 in means over classes, whatever was predicted"
        )
    if "per_type" in figures and not any(one["support"] for one in figures["per_type"].values()):
        lines.append("no row has an entity: F1 is 0, whatever was found")
    return lines


def multi_label_metrics(gold: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> dict[str, float]:
    """Return micro and macro F1, and the share of rows with exactly the right classes, of (rows, classes)."""
    scores = check_package("sklearn.metrics", "scikit-learn")
    # scikit-learn reads one column as two classes, whose micro mean would be the accuracy.
    single = gold.shape[1] == 1
    micro, macro = ("binary", "binary") if single else ("micro", "macro")
    return {
        "f1_micro": float(scores.f1_score(gold, predicted, average=micro, zero_division=0)),
        "f1_macro": float(scores.f1_score(gold, predicted, average=macro, zero_division=0)),
        "accuracy": float((gold == predicted).all(axis=1).mean()),
    }


def regression_metrics(gold: Sequence[float], predicted: Sequence[float]) -> dict[str, float]:
    """Return both correlations (0 where all scores are equal), their mean, the mean squared error, and the share of the
    variance that it leaves out (`r2`).
    """
    stats = check_package("scipy.stats", "scipy")
    defined = len(set(gold)) > 1 and len(set(predicted)) > 1
    error, variance = float(np.mean((np.asarray(gold) - np.asarray(predicted)) ** 2)), float(np.var(gold))
    pearson = float(stats.pearsonr(gold, predicted).statistic) if defined else 0.0
    spearman = float(stats.spearmanr(gold, predicted).statistic) if defined else 0.0
    both = {"pearson": pearson, "spearmanr": spearman, "pearson_spearman": (pearson + spearman) / 2}
    return both | {"mean_squared_error": error} | ({"r2": 1 - error / variance} if variance > 0 else {})


def entity_metrics(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return the figures of `span_metrics` for tags per sentence, as many in one as in the other, and those of tags.

    Tags are read as `predict` reads them: an I- that follows nothing begins an entity. `entity_f1_strict` is seqeval's
    strict IOB2, in which it is none; of well-formed tags both are the same.
    """
    scheme = check_package("seqeval.scheme", "seqeval").IOB2
    strict = _seqeval_f1(gold, predicted, mode="strict", scheme=scheme)
    words = sum(map(len, gold))
    right = sum(map(eq, chain(*gold), chain(*predicted)))
    by_word = [
        [tags_to_spans(tags, [(at, at + 1) for at in range(len(tags))]) for tags in side]
        for side in (gold, predicted)
    ]
    accuracy = right / words if words else 0.0
    return {**span_metrics(*by_word), "entity_f1_strict": strict, "token_accuracy": accuracy}


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
    whole = {f"entity_{name}": value for name, value in _ratios(*total).items()}
    by_type = {name: {**_ratios(*of), "support": of[2]} for name, of in sorted(counts.items())}
    return {**whole, "per_type": by_type}


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
    return _seqeval_f1(gold, predicted)


def _seqeval_f1(gold: Sequence[Sequence[str]], predicted: Sequence[Sequence[str]], **mode: Any) -> float:
    seqeval = check_package("seqeval.metrics", "seqeval")
    if not gold:
        return 0.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about types that are never predicted: they score 0
        rows, others = ([list(tags) for tags in side] for side in (gold, predicted))  # it takes only lists
        return float(seqeval.f1_score(rows, others, zero_division=0, **mode))


def normalised(text: str) -> str:
    """Return a text in lower case without punctuation, articles and blanks that are more than one."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def check_package(module: str, package: str) -> Any:
    """Return a module; refuse figures that cannot be computed here (MissingExtraError)."""
    with needs_extra("tasks", "scoring a task", package):
        return importlib.import_module(module)
