"""Questions with their answers: files of SQuAD, labels of tokens, the loss, and the official figures."""

import json
import pickle

import numpy as np
import pytest
import torch
from minialbert_runtime.questions import OPEN, SURE

from minialbert.data.examples import Task, TextExample
from minialbert.data.masking import IGNORED_LABEL
from minialbert.data.question_answering import Gold, squad_scores
from minialbert.data.tables import load_table
from minialbert.data.task_inputs import PaddingCollator
from minialbert.data.task_types import task_type
from minialbert.data.tasks import understood
from minialbert.errors import UserError
from minialbert.tasks.predictions import input_notes

KIND = task_type("question-answering")


def squad(*questions, context="The king was in the city."):
    asked = [
        {
            "id": f"q{at}",
            "question": question,
            "answers": [{"text": text, "answer_start": start} for text, start in gold],
        }
        for at, (question, gold) in enumerate(questions)
    ]
    return {
        "version": "v2.0",
        "data": [{"title": "Kings", "paragraphs": [{"context": context, "qas": asked}]}],
    }


def test_files_of_squad_and_flat_rows_are_one_task(tmp_path):
    record = squad(("Who was there?", [("king", 4), ("The king", 0)]), ("Who left?", []))
    for name, indent in (("lines.json", None), ("spread.json", 2)):
        (tmp_path / name).write_text(json.dumps(record, indent=indent))
    flat = [
        {"question": "Who was there?", "context": "The king was in the city.",
         "answers": {"text": ["king", "The king"], "answer_start": [4, 0]}},
        {"question": "Who left?", "context": "The king was in the city.", "answers": {"text": [], "answer_start": []}},
    ]  # fmt: skip
    (tmp_path / "flat.jsonl").write_text("".join(json.dumps(row) + "\n" for row in flat))
    tasks = [load_table(tmp_path / name, KIND.name) for name in ("lines.json", "spread.json", "flat.jsonl")]
    tasks.append(load_table({"train": flat}, KIND.name))
    for task in tasks:
        first, second = task.splits["train"]
        assert (first.text, first.pair) == ("Who was there?", "The king was in the city.")
        assert (first.label, first.label.starts, second.label) == (("king", "The king"), (4, 0), ())
        assert first.group == second.group and task.labels == OPEN and task.metric == "f1"
    assert "read as SQuAD" in tasks[0].columns
    assert understood(tasks[0])[-1] == "questions (train): answer 1, no answer 1"
    kept = pickle.loads(pickle.dumps(first.label))
    assert (kept, kept.starts) == (first.label, first.label.starts)


def test_without_unanswerable_questions_a_model_learns_to_answer_always():
    row = {"question": "Who?", "context": "A king.", "answers": [{"text": "king", "answer_start": 2}]}
    assert load_table([row], KIND.name).labels == SURE


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"answers": [("city", 3)]}, "paragraph 1, question q0: the answer 'city' does not stand at character 3, but"),
        ({"answers": [("", 0)]}, "question q0: expected answers as {'text': [...], 'answer_start': [...]}"),
        ({"answers": [(" ", 3)]}, "question q0: expected answers as {'text': [...], 'answer_start': [...]}"),
        ({"flat": {"text": ["king"], "answer_start": [None]}}, "each a text and where it starts; found"),
        ({"flat": {"text": ["king"], "answer_start": []}}, "each a text and where it starts; found"),
        ({"flat": {"text": ["king"], "answer_start": [2.5]}}, "each a text and where it starts; found"),
        ({"flat": {"text": ["king"], "answer_start": [True]}}, "each a text and where it starts; found"),
        ({"answers": [("king", 4)], "asked": {"is_impossible": True}}, "question q0: is_impossible is true, so"),
        ({"asked": {"is_impossible": False}}, "question q0: no label; every row of train needs one"),
        ({"flat": [7]}, "each a text and where it starts; found"),
        ({"context": 7}, "question q0: expected a text in column 'context', found 7"),
    ],
)  # fmt: skip
def test_an_answer_that_is_not_in_its_text_is_named(tmp_path, change, said):
    record = squad(("Who?", change.get("answers", [])))
    record["data"][0]["paragraphs"][0] |= {"context": change["context"]} if "context" in change else {}
    record["data"][0]["paragraphs"][0]["qas"][0] |= change.get("asked", {})
    if "asked" in change:  # beside one that is as it should be
        record["data"] += squad(("Who left?", [("king", 4)]))["data"]
    if "flat" in change:
        record = {"question": "Who?", "context": "A king.", "answers": change["flat"]}
    (tmp_path / "train.json").write_text(json.dumps(record))
    with pytest.raises(UserError) as caught:
        load_table(tmp_path, KIND.name)
    assert said in str(caught.value) and "train.json" in str(caught.value)


def test_a_file_without_a_question_is_refused(tmp_path):
    (tmp_path / "train.json").write_text(json.dumps(squad()))
    with pytest.raises(UserError, match=r"train\.json: 0 questions; expected at least one"):
        load_table(tmp_path, KIND.name)


def test_a_file_that_only_looks_like_squad_is_refused(tmp_path):
    (tmp_path / "train.json").write_text(
        json.dumps({"data": [{"paragraphs": [{"qas": [{"question": "Who?"}]}]}]})
    )
    with pytest.raises(UserError, match=r"train\.json: article 1: not SQuAD \(KeyError: 'context'\)"):
        load_table(tmp_path, KIND.name)


def test_the_right_answer_is_the_nearest_of_several():
    # By SQuAD 2.0's script: lower case, no punctuation, no articles; F1 of words; the best of all right answers.
    assert squad_scores(("the King", "old king of Ur"), "King!") == (1.0, 1.0)
    assert squad_scores(("old king of Ur",), "king of the city") == (
        0.0,
        pytest.approx(2 * (2 / 3) * (2 / 4) / (2 / 3 + 2 / 4)),
    )
    assert squad_scores(("a b b",), "b b b") == (
        0.0,
        pytest.approx(0.8),
    )  # 2 of 3, and 2 of 2 without the article
    assert squad_scores((), "") == (1.0, 1.0)
    assert squad_scores((), "king") == squad_scores(("king",), "") == (0.0, 0.0)
    assert squad_scores(("The",), "") == (1.0, 1.0)  # nothing is left of it


def encode(tokenizer, *examples, labels=SURE, **lengths):
    task = Task("qa", KIND.name, labels, "f1", {})
    return task, KIND.encode(examples, tokenizer, task, **({"max_length": 64, "overlap": 8} | lengths))


def test_tokens_of_an_answer_are_marked_in_the_windows_that_hold_it(tiny_tokenizer):
    text = "all was the king . all was the house ."
    gold = Gold(["the house"], [text.index("the house")])
    _, encoded = encode(tiny_tokenizer, TextExample("king", text, gold), max_length=12, overlap=2)
    marked = []
    for row in encoded.rows:
        tokens = tiny_tokenizer.convert_ids_to_tokens(row["input_ids"])
        marked.append([(token, mark) for token, mark in zip(tokens, row["labels"], strict=True) if mark > 0])
        assert row["labels"][1] == IGNORED_LABEL  # of the question
    assert len(marked) > 1 and marked[-1] == [("the", 1), ("house", 2)]
    assert marked[0] == [("[CLS]", 3)]
    _, whole = encode(tiny_tokenizer, TextExample("king", text, Gold([text], [0])), max_length=12, overlap=2)
    assert (encoded.unheld, whole.unheld) == (0, 1)
    assert any(
        "holds the answer of 1 of 1 questions" in note for note in input_notes("train", [0], whole, 12)
    )
    _, encoded = encode(tiny_tokenizer, TextExample("king " * 20, text, gold), max_length=12, overlap=2)
    assert encoded.tokens[1] > 10  # of the question
    _, encoded = encode(tiny_tokenizer, TextExample("king", text, Gold(["house"], [32])))
    assert [mark for mark in encoded.rows[0]["labels"] if mark > 0] == [3]  # one token is both


def test_the_loss_is_over_the_tokens_of_the_text_whatever_the_padding(tiny_tokenizer):
    logits = torch.zeros(2, 6, 2)
    logits[0, 3] = torch.tensor([1.0, 2.0])
    labels = torch.tensor(
        [[0, IGNORED_LABEL, IGNORED_LABEL, 3, 0, IGNORED_LABEL], [3, IGNORED_LABEL, 0, 0, 0, 0]]
    )
    loss, weight = KIND.loss(logits, labels)
    first = -(1 - np.log(np.e + 2)) - (2 - np.log(np.e**2 + 2))
    assert loss.item() == pytest.approx((first + 2 * np.log(5)) / 2, rel=1e-5) and weight.item() == 2
    padded = torch.nn.functional.pad(labels, (0, 3), value=IGNORED_LABEL)
    wide = torch.nn.functional.pad(logits, (0, 0, 0, 3), value=50.0).requires_grad_()
    again, _ = KIND.loss(wide, padded)
    again.backward()
    assert again.item() == pytest.approx(loss.item()) and wide.grad[:, 6:].abs().max() == 0
    assert KIND.logit_loss(logits, logits, labels, 2.0).item() == pytest.approx(0)
    assert KIND.logit_loss(logits, logits + 1, labels, 1.0).item() == pytest.approx(0, abs=1e-6)
    assert KIND.logit_loss(logits, -logits, labels, 1.0).item() > 0.1
    nobody = torch.full((1, 6), IGNORED_LABEL)  # a row that only fills up a batch
    assert KIND.loss(logits[:1], nobody)[0].item() == KIND.weight(nobody).item() == 0
    batch = PaddingCollator(0, "answer")(
        [{"input_ids": [2, 4], "labels": [0, 3]}, {"input_ids": [2], "labels": [3]}]
    )
    assert batch["labels"].tolist() == [[0, 3], [3, IGNORED_LABEL]]


def test_figures_are_those_of_all_questions_and_of_both_kinds(tiny_tokenizer):
    examples = [
        TextExample("who", "the king was", Gold(["king"], [4])),
        TextExample("who", "the king was", Gold(["the king was"], [0])),
        TextExample("who", "the king was", Gold([], [])),
        TextExample("who", "the king was", Gold([], [])),
    ]
    task, encoded = encode(tiny_tokenizer, *examples, labels=OPEN)
    at = encoded.rows[0]["window"].first + 1  # king
    logits = []
    for margin in (3.0, 1.0, 2.0, -1.0):  # of "king" over no answer
        values = np.full((len(encoded.rows[0]["input_ids"]), 2), -9, np.float32)
        values[0], values[at] = 0, margin / 2
        logits.append(values)
    said, figures = KIND.results(task, examples, encoded, logits)
    assert [one["answer"] for one in said] == ["king", "king", "king", None]
    half = pytest.approx(2 * (1 / 2) / (1 + 1 / 2))  # king of "king was"
    assert figures["answered_f1"] == pytest.approx((1 + 2 / 3) / 2) and half == 2 / 3
    assert (figures["answered_exact_match"], figures["unanswerable_accuracy"]) == (0.5, 0.5)
    assert figures["exact_match"] == 0.5 and figures["f1"] == pytest.approx((1 + 2 / 3 + 0 + 1) / 4)
    # The third would be right above its chance, and the second is lost with it: 1 + 0 + 1 + 1 of 4.
    assert figures["best_f1"] == pytest.approx(3 / 4)
    assert 1 / (1 + np.exp(-2)) < figures["best_threshold"] < 1 / (1 + np.exp(-3))
    shifted = [KIND.shifted(values, np.array([np.log(0.9 / 0.1), 0.0])) for values in logits]
    assert KIND.results(task, examples, encoded, shifted)[1]["f1"] == pytest.approx(3 / 4)
    _, figures = KIND.results(
        Task("qa", KIND.name, SURE, "f1", {}),
        examples[:2],
        encode(tiny_tokenizer, *examples[:2])[1],
        logits[:2],
    )
    assert set(figures) == {"f1", "exact_match"}
