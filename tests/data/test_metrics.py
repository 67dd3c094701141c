"""Figures of a task, against cases counted by hand and the libraries called directly."""

from __future__ import annotations

import importlib
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from minialbert_runtime.words import Span
from seqeval.metrics import classification_report
from seqeval.metrics import f1_score as lenient_f1
from seqeval.scheme import IOB2
from sklearn.metrics import precision_recall_fscore_support

from minialbert.data import metrics
from minialbert.data.examples import check_metric
from minialbert.data.metrics import (
    check_package,
    class_metrics,
    confusion,
    entity_metrics,
    multi_label_metrics,
    never_predicted,
    regression_metrics,
    single_label_metrics,
    span_metrics,
    subword_f1,
)
from minialbert.data.task_types import TASK_TYPES, task_type
from minialbert.errors import MissingExtraError, UserError

# One class of several


def test_two_classes_by_hand():
    # Class 1: 3 found, 1 missed, 2 wrongly claimed; 4 rows of class 0 found.
    gold = [1, 1, 1, 1, 0, 0, 0, 0, 0, 0]
    predicted = [1, 1, 1, 0, 1, 1, 0, 0, 0, 0]
    f1_of_1, f1_of_0 = 2 * 3 / (2 * 3 + 1 + 2), 2 * 4 / (2 * 4 + 2 + 1)
    assert single_label_metrics(gold, predicted, 2) == pytest.approx(
        {
            "accuracy": 0.7,
            "f1": f1_of_1,
            "f1_macro": (f1_of_1 + f1_of_0) / 2,
            "matthews_correlation": (3 * 4 - 2 * 1) / math.sqrt((3 + 2) * (3 + 1) * (4 + 2) * (4 + 1)),
        }
    )


def test_a_class_that_the_model_does_not_have_is_missed():
    # Class 1: 1 found, 1 missed, 1 wrongly claimed where gold is another class.
    figures = single_label_metrics([0, 1, -100, 1], [0, 1, 1, 0], 2)
    assert (figures["accuracy"], figures["f1"]) == (0.5, 0.5)


def test_three_classes_by_hand():
    gold = [0, 0, 0, 1, 1, 2]
    predicted = [0, 0, 1, 1, 2, 2]
    # Per class: true positives, and how often it is gold or predicted.
    macro = (2 * 2 / (3 + 2) + 2 * 1 / (2 + 2) + 2 * 1 / (1 + 2)) / 3
    # Gorodkin's R_K: c rows right of s, t_k gold and p_k predicted rows of class k.
    c, s, t, p = 4, 6, np.array([3, 2, 1]), np.array([2, 2, 2])
    r_k = (c * s - p @ t) / math.sqrt((s * s - p @ p) * (s * s - t @ t))
    assert single_label_metrics(gold, predicted, 3) == pytest.approx(
        {"accuracy": 4 / 6, "f1": macro, "f1_macro": macro, "matthews_correlation": r_k}
    )


def test_a_class_that_occurs_nowhere_counts_in_the_macro_mean():
    assert single_label_metrics([0, 1], [0, 1], 3)["f1_macro"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(("only", "f1"), [(0, 0.0), (1, 1.0)])
def test_one_class_alone_gives_no_correlation_and_no_warning(only, f1):
    found = single_label_metrics([only] * 3, [only] * 3, 2)
    assert found == {"accuracy": 1.0, "f1": f1, "f1_macro": 0.5, "matthews_correlation": 0.0}


def test_a_constant_prediction_has_no_correlation():
    found = single_label_metrics([0, 1, 1], [0, 0, 0], 2)
    assert found["matthews_correlation"] == 0.0
    assert found["f1"] == 0.0


# Several classes at once


def test_multi_label_by_hand():
    gold = np.array([[1, 0, 1], [0, 1, 0], [1, 0, 0], [0, 0, 0]], dtype=bool)
    predicted = np.array([[1, 0, 0], [0, 1, 1], [1, 0, 0], [0, 1, 0]], dtype=bool)
    # True positives 2, 1, 0; gold 2, 1, 1; predicted 2, 2, 1.
    assert multi_label_metrics(gold, predicted) == pytest.approx(
        {
            "f1_micro": 2 * 3 / (4 + 5),
            "f1_macro": (2 * 2 / 4 + 2 * 1 / 3 + 0) / 3,
            "accuracy": 1 / 4,
        }
    )


def test_no_class_anywhere_is_zero_without_a_warning():
    none = np.zeros((2, 3), dtype=bool)
    assert multi_label_metrics(none, none) == {"f1_micro": 0.0, "f1_macro": 0.0, "accuracy": 1.0}


def test_a_single_class_is_not_scored_as_two():
    gold, predicted = np.array([[1], [0], [0], [0]], dtype=bool), np.array([[1], [1], [0], [0]], dtype=bool)
    assert multi_label_metrics(gold, predicted) == pytest.approx(
        {"f1_micro": 2 / 3, "f1_macro": 2 / 3, "accuracy": 3 / 4}
    )


# By class


def test_figures_by_class_by_hand():
    # Gold a a a b b, predicted a a b b a.
    gold, predicted = np.array([0, 0, 0, 1, 1]), np.array([0, 0, 1, 1, 0])
    hot = np.eye(2, dtype=bool)
    chance = np.array([0.9, 0.8, 0.4, 0.3, 0.6], np.float32)
    found = class_metrics(hot[gold], hot[predicted], np.stack([chance, 1 - chance], axis=1), ("a", "b"), 1)
    a, b = 2 / 3, 1 / 2  # precision and recall alike, and so F1
    assert found["per_class"]["a"] == pytest.approx(
        {"precision": a, "recall": a, "f1": a, "support": 3, "predicted": 3}
    )
    assert found["per_class"]["b"] == pytest.approx(
        {"precision": b, "recall": b, "f1": b, "support": 2, "predicted": 2}
    )
    for name in ("precision", "recall", "f1"):
        assert found[f"{name}_macro"] == pytest.approx((a + b) / 2)
        assert found[f"{name}_weighted"] == pytest.approx((3 * a + 2 * b) / 5)
    # Of the six pairs of a row of b and one of a five have b's before a's: 0.7 beats all, 0.4 beats 0.1 and 0.2.
    assert found["auroc"] == pytest.approx(5 / 6)
    # Rows by the chance of b: b, a, b, ...: precision 1 at the first half of the recall, 2/3 at the second.
    assert found["average_precision"] == pytest.approx((1 + 2 / 3) / 2)
    assert confusion(gold.tolist(), predicted.tolist(), ("a", "b")) == {
        "a": {"a": 2, "b": 1},
        "b": {"a": 1, "b": 1},
    }
    assert never_predicted(found) == []


def test_areas_over_classes_leave_out_what_has_no_curve():
    gold = np.array([[1, 1, 0], [0, 1, 0], [1, 1, 0]], bool)
    scores = np.array([[0.9, 0.1, 0.5], [0.5, 0.2, 0.5], [0.7, 0.3, 0.5]], np.float32)
    found = class_metrics(gold, scores > 0.6, scores, ("a", "b", "c"))
    assert found["auroc"] == found["average_precision"] == 1.0  # of a alone
    assert found["per_class"]["c"] == {
        "precision": 0.0,
        "recall": 0.0,
        "f1": 0.0,
        "support": 0,
        "predicted": 0,
    }
    absent = "no row has 'c': 0 in means over classes, whatever was predicted"
    assert never_predicted(found) == ["never predicted: 'b' (3 rows)", absent]
    assert found["f1_macro"] == pytest.approx((1 + 0 + 0) / 3)
    people, place = [Span(0, 1, "P"), Span(2, 3, "P")], [Span(4, 5, "L")]
    found = span_metrics([people, place], [[Span(0, 2, "P")], place])
    assert never_predicted(found) == ["none found: 'P' (2 entities)"]
    for found in ([[]], [people]):
        told = never_predicted(span_metrics([[]], found))
        assert told == ["no row has an entity: F1 is 0, whatever was found"]
    assert "auroc" not in class_metrics(gold[:, 1:], gold[:, 1:], scores[:, 1:], ("b", "c"))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=30))
@settings(max_examples=30, deadline=None)
def test_figures_by_class_are_scikit_learns(pairs):
    gold, predicted = (np.array(part) for part in zip(*pairs, strict=True))
    hot = np.eye(4, dtype=bool)
    found = class_metrics(hot[gold], hot[predicted], hot[predicted].astype(np.float32), tuple("abcd"))
    report = precision_recall_fscore_support(gold, predicted, labels=[0, 1, 2, 3], zero_division=0)
    for index, one in enumerate(found["per_class"].values()):
        assert [one[name] for name in ("precision", "recall", "f1", "support")] == pytest.approx(
            [column[index] for column in report]
        )
    for average in ("macro", "weighted"):
        expected = precision_recall_fscore_support(
            gold, predicted, labels=[0, 1, 2, 3], average=average, zero_division=0
        )
        assert [found[f"{name}_{average}"] for name in ("precision", "recall", "f1")] == pytest.approx(
            expected[:3]
        )


def test_f1_is_that_of_the_positive_class():
    gold, predicted = [0, 0, 0, 1], [0, 0, 1, 1]
    assert single_label_metrics(gold, predicted, 2)["f1"] == pytest.approx(2 / 3)
    assert single_label_metrics(gold, predicted, 2, positive=0)["f1"] == pytest.approx(4 / 5)


# Scores


def test_correlations_by_hand():
    gold, predicted = [1.0, 2.0, 3.0, 4.0], [1.0, 3.0, 2.0, 8.0]
    # Deviations from the means 2.5 and 3.5: products 3.75 + 0.25 - 0.75 + 6.75, squares 5 and 29.
    pearson = 10 / math.sqrt(5 * 29)
    spearman = 1 - 6 * (0 + 1 + 1 + 0) / (4 * (16 - 1))
    assert regression_metrics(gold, predicted) == pytest.approx(
        {
            "pearson": pearson,
            "spearmanr": spearman,
            "pearson_spearman": (pearson + spearman) / 2,
            "mean_squared_error": (0 + 1 + 1 + 16) / 4,
            "r2": 1 - 18 / 5,  # the gold scores' squared deviations sum to 5
        }
    )


def test_tied_scores_share_their_rank():
    # Ranks 1.5, 1.5, 3 and 1, 2, 3.
    assert regression_metrics([1.0, 1.0, 2.0], [1.0, 2.0, 3.0])["spearmanr"] == pytest.approx(
        1.5 / math.sqrt(1.5 * 2)
    )


@pytest.mark.parametrize(
    ("gold", "predicted"),
    [([1.0, 2.0, 3.0], [3.0, 3.0, 3.0]), ([2.0, 2.0], [1.0, 3.0]), ([1.0], [2.0])],
)
def test_constant_scores_have_no_correlation(gold, predicted):
    found = regression_metrics(gold, predicted)
    assert (found["pearson"], found["spearmanr"], found["pearson_spearman"]) == (0.0, 0.0, 0.0)
    assert ("r2" in found) == (len(set(gold)) > 1)
    assert found["mean_squared_error"] == pytest.approx(
        sum((g - p) ** 2 for g, p in zip(gold, predicted, strict=True)) / len(gold)
    )


# Entities by word

GOLD = [
    ["B-Gene", "I-Gene", "O", "B-Drug"],  # found; found
    ["O", "B-Gene", "I-Gene", "I-Gene"],  # found one word short
    ["B-Drug", "I-Drug", "O", "O"],  # found with the wrong type
    ["O", "O", "B-Gene", "I-Gene"],  # predicted I- alone begins an entity, but not in strict IOB2
    ["B-Drug", "B-Drug", "O", "O"],  # both found
]
PREDICTED = [
    ["B-Gene", "I-Gene", "O", "B-Drug"],
    ["O", "B-Gene", "I-Gene", "O"],
    ["B-Gene", "I-Gene", "O", "O"],
    ["O", "O", "I-Gene", "I-Gene"],
    ["B-Drug", "B-Drug", "O", "B-Drug"],
]


def test_entities_by_hand():
    found = entity_metrics(GOLD, PREDICTED)
    # Gene: 3 gold, 4 predicted, 2 right. Drug: 4 gold, 4 predicted, 3 right.
    assert found["per_type"] == {
        "Drug": pytest.approx({"precision": 3 / 4, "recall": 3 / 4, "f1": 3 / 4, "support": 4}),
        "Gene": pytest.approx({"precision": 2 / 4, "recall": 2 / 3, "f1": 4 / 7, "support": 3}),
    }
    assert found["entity_precision"] == pytest.approx(5 / 8)
    assert found["entity_recall"] == pytest.approx(5 / 7)
    assert found["entity_f1"] == pytest.approx(10 / 15)
    assert found["entity_f1_strict"] == pytest.approx(8 / 14)
    # Wrong: one tag in the second row, two in the third, one in the fourth, one in the fifth.
    assert found["token_accuracy"] == pytest.approx(15 / 20)


def test_precision_and_recall_are_not_confused():
    found = entity_metrics([["B-A", "O", "B-A", "B-A"]], [["B-A", "O", "O", "O"]])
    assert (found["entity_precision"], found["entity_recall"]) == pytest.approx((1.0, 1 / 3))
    assert found["entity_f1"] == pytest.approx(0.5)


def test_a_type_that_is_only_predicted_has_no_support():
    found = entity_metrics([["O", "B-A"]], [["B-B", "B-A"]])
    assert found["per_type"]["B"] == {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 0}
    assert found["entity_precision"] == pytest.approx(1 / 2)


@pytest.mark.parametrize("row", [["O", "O"], []])
def test_no_entity_at_all(row):
    found = entity_metrics([row], [row])
    assert found == {
        "entity_f1": 0.0,
        "entity_precision": 0.0,
        "entity_recall": 0.0,
        "entity_f1_strict": 0.0,
        "token_accuracy": float(bool(row)),
        "per_type": {},
    }
    assert subword_f1([row], [row]) == 0.0


def test_no_sentence_at_all():
    assert entity_metrics([], [])["entity_f1"] == 0.0
    assert subword_f1([], []) == 0.0


def test_tags_may_be_tuples():
    assert entity_metrics(tuple(map(tuple, GOLD)), tuple(map(tuple, PREDICTED))) == entity_metrics(
        GOLD, PREDICTED
    )
    assert subword_f1([("B-A", "O")], [("B-A", "O")]) == 1.0


@pytest.mark.parametrize("predicted", [[["B-A"]], [["B-A", "O"], ["O"]]])
def test_sentences_of_other_lengths_are_refused(predicted):
    with pytest.raises(ValueError, match="inconsistent numbers"):
        entity_metrics([["B-A", "O"]], predicted)


def spans(rows, *, strict=False):
    """Entities of rows as (row, first, last, type); an I- that continues nothing begins one, but not in strict IOB2."""
    found = set()
    for number, row in enumerate(rows):
        for first, tag in enumerate(row):
            goes_on = first and row[first - 1][1:] == tag[1:]
            if tag.startswith("B-") or (tag.startswith("I-") and not goes_on and not strict):
                last = first
                while last + 1 < len(row) and row[last + 1] == f"I-{tag[2:]}":
                    last += 1
                found.add((number, first, last, tag[2:]))
    return found


def ratio(part, whole):
    return part / whole if whole else 0.0


def counted(gold, predicted):
    right = len(gold & predicted)
    return ratio(right, len(predicted)), ratio(right, len(gold)), ratio(2 * right, len(gold) + len(predicted))


@st.composite
def valid_row(draw, length):
    """Only I- tags that continue an entity of their type."""
    row = []
    for _ in range(length):
        before = row[-1] if row else "O"
        choices = ["O", "B-A", "B-B", "B-C"] + ([f"I-{before[2:]}"] if before != "O" else [])
        row.append(draw(st.sampled_from(choices)))
    return row


any_tag = st.sampled_from(["O", "B-A", "I-A", "B-B", "I-B", "B-C", "I-C"])


@st.composite
def splits(draw, *, valid):
    lengths = draw(st.lists(st.integers(1, 8), min_size=1, max_size=5))
    if valid:
        make = valid_row
    else:

        def make(length):
            return st.lists(any_tag, min_size=length, max_size=length)

    return [draw(make(n)) for n in lengths], [draw(make(n)) for n in lengths]


def check_against_sets_of_spans(rows):
    gold, predicted = map(spans, rows)
    found = entity_metrics(*rows)
    assert (found["entity_precision"], found["entity_recall"], found["entity_f1"]) == pytest.approx(
        counted(gold, predicted)
    )
    strict = (spans(side, strict=True) for side in rows)
    assert found["entity_f1_strict"] == pytest.approx(counted(*strict)[2])
    types = {entity[3] for entity in gold | predicted}
    assert set(found["per_type"]) == types
    for name in types:
        of_type = [{entity for entity in side if entity[3] == name} for side in (gold, predicted)]
        values = found["per_type"][name]
        assert (values["precision"], values["recall"], values["f1"]) == pytest.approx(counted(*of_type))
        assert values["support"] == len(of_type[0])


@settings(max_examples=60, deadline=None)
@given(splits(valid=True))
def test_entities_of_valid_tags_are_those_of_a_naive_counter(rows):
    check_against_sets_of_spans(rows)


@settings(max_examples=60, deadline=None)
@given(splits(valid=False))
def test_entities_of_any_tags_are_those_of_a_naive_counter(rows):
    check_against_sets_of_spans(rows)


@settings(max_examples=40, deadline=None)
@given(splits(valid=True))
def test_figures_are_seqevals_own(rows):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        report = classification_report(*rows, mode="strict", scheme=IOB2, output_dict=True, zero_division=0)
    found = entity_metrics(*rows)
    assert found["entity_f1"] == found["entity_f1_strict"] == report["micro avg"]["f1-score"]
    assert found["entity_precision"] == report["micro avg"]["precision"]
    assert found["entity_recall"] == report["micro avg"]["recall"]
    assert {name: values["f1"] for name, values in found["per_type"].items()} == {
        name: values["f1-score"] for name, values in report.items() if not name.endswith(" avg")
    }


# Entities by piece, as the release counted


def test_a_long_word_counts_once_by_word_and_often_by_piece():
    # A missed word of one piece, and a found word of three.
    gold, predicted = [["B-A", "O", "B-A"]], [["B-A", "O", "O"]]
    pieces = [3, 1, 1]
    by_piece = [
        [[tag for tag, n in zip(row, pieces, strict=True) for _ in range(n)] for row in rows]
        for rows in (gold, predicted)
    ]
    assert entity_metrics(gold, predicted)["entity_f1"] == pytest.approx(2 * 1 / (2 + 1))
    assert subword_f1(*by_piece) == pytest.approx(2 * 3 / (4 + 3))
    assert subword_f1(*by_piece) == lenient_f1(*by_piece)


def test_an_inner_tag_alone_begins_an_entity_as_in_predict_but_not_in_strict_iob2():
    assert subword_f1([["B-A", "O"]], [["I-A", "O"]]) == 1.0
    found = entity_metrics([["B-A", "O"]], [["I-A", "O"]])
    assert (found["entity_f1"], found["entity_f1_strict"]) == (1.0, 0.0)


# What can be asked for


def test_every_figure_that_is_listed_is_returned():
    both = np.eye(2, dtype=bool)
    by_class = class_metrics(both, both, both.astype(np.float32), ("a", "b"))
    returned = {
        "single-label": {**single_label_metrics([0, 1], [0, 1], 2), **by_class},
        "multi-label": {
            **multi_label_metrics(np.ones((1, 2), bool), np.ones((1, 2), bool)),
            **by_class,
        },
        "regression": regression_metrics([0.0, 1.0], [0.0, 1.0]),
        "token": {**entity_metrics(GOLD, PREDICTED), "entity_f1_subword": 0.0},
    }
    assert {*returned, "question-answering"} == set(TASK_TYPES)  # whose figures come with its answers
    for problem, kind in TASK_TYPES.items():
        for name in kind.metrics:
            check_metric(kind, name)
        if problem not in returned:
            continue
        assert set(returned[problem]) - {"per_type", "per_class"} == set(kind.metrics)


def test_a_figure_of_another_problem_is_refused():
    with pytest.raises(UserError, match="'entity_f1': a regression task has pearson_spearman, pearson"):
        check_metric(task_type("regression"), "entity_f1")


@pytest.mark.parametrize(
    ("call", "module", "package"),
    [
        (lambda: single_label_metrics([0], [0], 2), "sklearn", "scikit-learn"),
        (
            lambda: multi_label_metrics(np.ones((1, 2), bool), np.ones((1, 2), bool)),
            "sklearn",
            "scikit-learn",
        ),
        (lambda: regression_metrics([0.0], [0.0]), "scipy", "scipy"),
        (lambda: entity_metrics(GOLD, PREDICTED), "seqeval", "seqeval"),
        (lambda: subword_f1(GOLD, PREDICTED), "seqeval", "seqeval"),
        (lambda: check_package(*task_type("single-label").package), "sklearn", "scikit-learn"),
        (lambda: check_package(*task_type("multi-label").package), "sklearn", "scikit-learn"),
        (lambda: check_package(*task_type("regression").package), "scipy", "scipy"),
        (lambda: check_package(*task_type("token").package), "seqeval", "seqeval"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, call, module, package):
    real = importlib.import_module

    def without(name, *args):
        if name.split(".")[0] == module:
            raise ImportError(name)
        return real(name, *args)

    call()
    monkeypatch.setattr(metrics.importlib, "import_module", without)
    with pytest.raises(MissingExtraError, match=rf"needs {package}: pip install .*\[tasks\]'"):
        call()
