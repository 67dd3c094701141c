"""What a page tells about a model's errors: figures by label, confusions, and texts with right and wrong entities."""

from __future__ import annotations

import json

import pytest

import minialbert
from minialbert.errors import UserError
from minialbert.report import _runs
from minialbert.report.blocks import Section
from minialbert.report.errors import error_section
from minialbert.report.page import html_page
from minialbert.report.tables import show


def entity(text, start, end, label, score=0.5):
    return {"start": start, "end": end, "text": text[start:end], "label": label, "score": score}


def blocks(folder, lines=(), metrics=None, **record):
    """Return what a page shows of a record in a folder."""
    values = {"kind": "evaluation", "task": "t", "split": "test", "metrics": {"test": metrics or {}}} | record
    (folder / "result.json").write_text(json.dumps(values))
    if lines:
        text = "".join(json.dumps({"split": "test"} | line) + "\n" for line in lines)
        (folder / "predictions.jsonl").write_text(text)
    return [block for part in error_section(_runs([folder])).sections for block in part.blocks]


def told(table):
    return [tuple(map(show, row)) for row in table.rows]


TEXT = "a cat and a dog <b>x</b>"
CAT, DOG = entity(TEXT, 2, 5, "Pet", 0.9), entity(TEXT, 12, 15, "Pet", 0.6)
WIDE, OTHER = entity(TEXT, 0, 5, "Pet", 0.7), entity(TEXT, 2, 5, "Beast", 0.8)


@pytest.mark.parametrize(
    ("gold", "found", "error", "shown", "sure"),
    [
        ([CAT], [CAT], "right", "a [cat Pet 0.9] and", "0.9"),
        ([CAT], [], "missed", "a [cat missed: Pet (none found: 0.9)] and", "0.9"),
        ([], [DOG], "invented", "[dog invented: Pet 0.6]", "0.6"),
        (
            [CAT],
            [WIDE],
            "wrong boundary",
            "[a cat wrong boundary: found a cat 0.7; annotated: cat] and",
            "0.9",
        ),
        ([CAT], [OTHER], "wrong type", "a [cat wrong type: found Beast 0.8; annotated: Pet] and", "0.9"),
        ([CAT, DOG], [CAT], "missed", "a [cat Pet 0.9] and a [dog missed: Pet (none found: 0.6)]", "0.6"),
        ([CAT, DOG], [WIDE], "wrong boundary, missed", "annotated: cat] and a [dog missed", "0.9"),
        ([], [], "right", TEXT, "1"),
    ],
)
def test_what_became_of_entities(tmp_path, gold, found, error, shown, sure):
    table = blocks(tmp_path, [{"text": TEXT, "gold": gold, "entities": found}])[-1]
    ((first, text, confidence),) = told(table)
    assert (first, confidence) == (error, sure) and shown in text
    assert "how sure the model was" in table.notes[1] and "that there is none" in table.notes[1]


def test_the_surest_errors_come_first_then_the_least_sure_right_ones_and_what_is_left_is_told(tmp_path):
    errors = [{"text": "x", "label": "a", "predicted": "b", "score": one} for one in (0.5, 0.9)]
    right = [{"text": "y", "label": "b", "predicted": "b", "score": one / 100} for one in range(60)]
    table = blocks(tmp_path, [*right, *errors])[-1]
    assert told(table)[:3] == [("a → b", "x", "0.9"), ("a → b", "x", "0.5"), ("right", "y", "0")]
    assert len(table.rows) == 32
    assert "2 of 62 texts have an error. The table shows 2 of them" in table.notes[0]
    assert "then 30 correct texts, the least sure first" in table.notes[0]


def test_what_became_of_entities_what_is_confused_and_what_to_check(tmp_path):
    lines = [
        {"text": TEXT, "gold": [CAT], "entities": [WIDE]},
        {"text": TEXT, "gold": [CAT, DOG], "entities": [OTHER, DOG]},
        {"text": TEXT, "gold": [], "entities": [entity(TEXT, 12, 15, "Pet", 0.95)]},
        {"text": TEXT, "gold": [], "entities": [entity(TEXT, 12, 15, "Pet", 0.99)]},
    ]
    fates, pairs, doubts, _ = blocks(tmp_path, lines)
    assert fates.columns == ("entity type", "right", "missed", "invented", "wrong boundary", "wrong type")
    assert told(fates) == [("Pet", "1", "0", "2", "1", "1")]
    assert told(pairs) == [("Pet", "Beast", "1")]
    assert told(doubts) == [
        ("dog", "-", "dog (Pet)", "2", "0.99"),
        ("a cat", "cat (Pet)", "a cat (Pet)", "1", "0.9"),
        ("cat", "cat (Pet)", "cat (Beast)", "1", "0.9"),
    ]
    pairs, doubts, _ = blocks(tmp_path, [{"text": "x", "label": "a", "predicted": "b", "score": 0.97}])
    assert told(pairs) == [("a", "b", "1")] and told(doubts) == [("x", "a", "b", "1", "0.97")]


def test_intervals_stand_beside_the_figures(tmp_path):
    one = {"f1": 0.5, "precision": 0.25, "recall": 1.0, "support": 3, "predicted": 2}
    sure = one | {"intervals": {"f1": [0.25, 0.75], "precision": None, "recall": [0.5, 1.0]}}
    certificate = {"resamples": 1000, "units": 7, "drawn": "groups", "per_class": {"a": sure}}
    (table,) = blocks(tmp_path, metrics={"per_class": {"a": one}}, certificate=certificate)
    assert told(table) == [("a", "50.0% (25% to 75%)", "25.0%", "100.0% (50% to 100%)", "3")]
    assert "1,000 bootstrap samples of 7 groups" in table.notes[0]


def test_labels_of_any_number_and_scores(tmp_path):
    lines = [
        {"text": "x", "label": ["a", "b"], "predicted": ["b", "c"], "score": 0.7},
        {"text": "y", "label": 4.0, "predicted": 2.5},
        {"text": "z", "label": None, "predicted": "a"},
    ]
    (table,) = blocks(tmp_path, lines[::2])
    assert "of several labels that of the least sure one" in table.notes[1]
    (table,) = blocks(tmp_path, lines[1:])
    assert table.columns[-1] == "difference" and "the largest first" in table.notes[0]
    (table,) = blocks(tmp_path, lines)
    assert told(table) == [("4 → 2.5", "y", "1.5"), ("missed: a; invented: c", "x", "0.7")]


def test_figures_by_label_and_a_confusion_matrix(tmp_path):
    one = {"f1": 0.5, "precision": 0.25, "recall": 1.0, "support": 3, "predicted": 2}
    counts = {"a": {"a": 3, "b": 1}, "b": {"b": 1000}}
    by_class, matrix = blocks(tmp_path, metrics={"per_class": {"a": one}, "confusion": counts})
    assert told(by_class) == [("a", "50.0%", "25.0%", "100.0%", "3")]
    assert told(matrix) == [("b", "1,000 (100%)", "-"), ("a", "1 (25%)", "3 (75%)")]
    figures = {"1 word": one, "2 words": {**one, "support": 5}}
    for key, first in (
        ("per_type", "2 words"),
        ("per_length", "1 word"),
    ):  # the most frequent, and the shortest
        (table,) = blocks(tmp_path, metrics={key: figures})
        assert told(table)[0][0] == first
    many = {f"c{number}": {f"c{number}": 1} for number in range(40)}
    (large,) = blocks(tmp_path, metrics={"confusion": many})
    assert (len(large.rows), len(large.columns)) == (25, 26)
    assert "The 25 most frequent of 40" in large.notes[1]


def test_a_page_escapes_texts_and_draws_shares(tmp_path):
    lines = [{"text": TEXT, "gold": [CAT], "entities": [DOG]}]
    page = html_page(
        "t", [Section("Errors", blocks(tmp_path, lines, {"confusion": {"a": {"a": 1, "b": 1}}}))]
    )
    assert '<mark class="look-1">cat<bdi>missed: Pet (none found: 0.9)</bdi></mark>' in page
    assert "&lt;b&gt;x" in page and "<b>x" not in page
    assert '1 (50%)<meter value="0.5"></meter>' in page


def test_old_and_broken_files(tmp_path):
    assert blocks(tmp_path) == []
    old = [{"tokens": ["a"], "tags": ["O"], "predicted": ["O"]}]
    assert blocks(tmp_path, old) == []
    assert blocks(tmp_path, [{"text": "x", "label": "a", "predicted": "b"}])[-1].rows[0][0] == "a → b"
    (tmp_path / "predictions.jsonl").write_text("[1]\n")
    with pytest.raises(UserError, match=r"predictions.jsonl is not a file of predictions .*: evaluate again"):
        blocks(tmp_path)


def test_a_report_has_a_part_on_errors_and_of_many_runs_only_the_first(tmp_path):
    one = {"f1": 0.5, "precision": 0.25, "recall": 1.0, "support": 3, "predicted": 2}
    for number in range(8):
        (folder := tmp_path / f"run{number}").mkdir()
        blocks(folder, metrics={"per_class": {"a": one}})
    part = error_section(_runs([tmp_path]))
    assert [inner.title for inner in part.sections] == [f"run{number}: t, test" for number in range(6)]
    assert "These are 6 of 8 runs" in part.blocks[0].text
    blocks(tmp_path / "run0", [{"text": "secret", "label": "a", "predicted": "b"}], {"per_class": {"a": one}})
    page = minialbert.report(tmp_path / "run0", tmp_path / "page")
    assert "F1 by class" in page and "secret" not in page
    assert "secret" in (tmp_path / "page" / "report.html").read_text()
