"""Answers to questions: the best spans over windows, no answer, and where an answer stands in the text."""

import json

import numpy as np
import pytest
from conftest import IDS, VOCABULARY, wordpiece

from minialbert_runtime import Model, RuntimeUserError
from minialbert_runtime.questions import OPEN, SURE, answer_in
from minialbert_runtime.windows import Cutter, Row

TEXT = "new king  was city"
ROW = Row([2, 4, 3, 8, 4, 9, 6, 3], None, 3, [(0, 3), (4, 8), (10, 13), (14, 18)])


def logits(starts, ends, none=(0.0, 0.0)):
    table = np.full((8, 2), 90.0, np.float32)  # of the question and of special tokens, where no answer is
    table[0] = none
    table[3:7, 0], table[3:7, 1] = starts, ends
    return table


def test_an_answer_ends_where_it_begins_or_later():
    values = logits([0, 2, 9, 0], [8, 1, 0, 3])  # 9 + 8 is no span: it would end before it begins
    found = answer_in(TEXT, [ROW], [values], over=None, most=3)
    assert (found["answer"], found["start"], found["end"]) == ("was city", 10, 18)
    # Sums: was city 12, was 9, new 8, then king ... city 5, king 3, new ... city 3, and so on.
    assert [one["answer"] for one in found["answers"]] == ["was city", "was", "new"]
    sums = np.array([12, 9, 8, 5, 3, 3, 2, 1, 0, 3])
    assert found["score"] == pytest.approx(np.exp(12) / np.exp(sums).sum(), rel=1e-6)
    assert "answerable" not in found


def test_the_best_window_answers_and_the_least_sure_one_says_that_there_is_none():
    other = Row([2, 4, 3, 6, 3], None, 3, [(14, 18)])
    second = np.array([[4, 4], [90, 90], [90, 90], [6, 6], [90, 90]], np.float32)
    both = [logits([0, 5, 0, 0], [0, 5, 0, 0], (1, 2)), second]
    found = answer_in(TEXT, [ROW, other], both, over=0.0)
    assert (found["answer"], found["start"]) == ("city", 14)
    assert found["answerable"] == pytest.approx(
        1 / (1 + np.exp(3 - 12))
    )  # 1 + 2 of the first window, not 4 + 4
    none = answer_in(TEXT, [ROW, other], both, over=9.5)
    assert (none["answer"], none["start"], none["end"]) == (None, None, None)
    assert none["answerable"] == found["answerable"]


def test_a_text_without_words_has_no_answer():
    row = Row([2, 4, 3, 3], None, 3, [])
    found = answer_in("", [row], [np.zeros((4, 2), np.float32)], over=None)
    assert found == {"answer": None, "start": None, "end": None, "score": 1.0}


def test_windows_of_a_text_repeat_the_question():
    cutter = Cutter(wordpiece(), max_length=10, overlap=2, pad_token_id=0, unknown_token_id=1)
    cutter.tokenizer.no_truncation()
    cutter.tokenizer.no_padding()
    text = "the king was new. A city was new"
    ((part),) = cutter.contexts([("king city", text)])
    assert [row.input_ids[:4] for row in part.rows] == [[2, 4, 6, 3]] * len(part.rows)
    kept = [[text[start:end] for start, end in row.offsets] for row in part.rows]
    assert kept == [
        ["the", "king", "was", "new", "."],
        ["new", ".", "A", "city", "was"],
        ["city", "was", "new"],
    ]
    for row in part.rows:
        words = [VOCABULARY[one] for one in row.input_ids[row.first : row.first + len(row.offsets)]]
        assert len(words) == len(row.offsets) and row.token_type_ids[row.first] == 1
    ((cut),) = cutter.contexts([("king " * 9, "city")])
    assert cut.cut == 6 and len(cut.rows) == 1


@pytest.fixture
def asked(exported):
    """Every city may be an answer, and "king" at the end of one; [CLS] says that there is none."""
    table = np.zeros((len(VOCABULARY), 2))
    table[IDS["city"]] = [5, 4]
    table[IDS["king"]] = [1, 5]
    table[IDS["[CLS]"]] = [4, 4]

    def write(labels):
        folder = exported("question-answering", labels, table, max_length=12, overlap=3)
        task = json.loads((folder / "task.json").read_text())
        (folder / "task.json").write_text(json.dumps(task | {"pairs": True}))
        return folder

    return write


def test_a_model_answers_in_a_long_text(asked):
    model = Model(asked(SURE))
    text = "new " * 9 + "city king " + "new " * 9
    found = model("river", text)
    assert (found["answer"], found["start"], found["end"]) == ("city king", 36, 45)
    assert found["windows"] > 1 and found["pair"] == text and 0.5 < found["score"] < 1
    assert list(model.predict([("river", text), ("new", "new")]))[1]["answer"] == "new"  # it always answers
    with pytest.raises(RuntimeUserError, match="pairs of texts"):
        model("river")


def test_the_threshold_of_a_model_that_knows_questions_without_an_answer(asked):
    folder = asked(OPEN)
    text = "the city was"  # city 5 + 4, none 4 + 4
    assert Model(folder)("river", text)["answer"] == "city"
    assert Model(folder)("river", "the king was")["answer"] is None
    assert Model(folder, threshold=0.8)("river", text)["answer"] is None  # it is 0.73
    task = json.loads((folder / "task.json").read_text())
    (folder / "task.json").write_text(json.dumps(task | {"decision": {"thresholds": {"answer": 0.8}}}))
    assert Model(folder)("river", text)["answer"] is None
    assert Model(folder, top_k=1)("river", text)["answers"][0]["answer"] == "city"
