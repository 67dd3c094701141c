"""A teacher instead of gold labels: what it says becomes rows, soft or hard, kept on disk and read again."""

from __future__ import annotations

import gzip
import json
import math
import random
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertForTokenClassification

import minialbert
from minialbert.data.examples import Task, TokenExample, label_of
from minialbert.data.tables import load_table, read_pairs
from minialbert.data.task_inputs import encode_sentences
from minialbert.data.task_types import task_type
from minialbert.data.tasks import understood
from minialbert.errors import UserError
from minialbert.recipes.load import load_recipe
from minialbert.recipes.schema import FinetuneRecipe
from minialbert.runs.directory import RunDirectory
from minialbert.tasks import unlabelled
from minialbert.tasks.finetune import finetune, plan_finetuning, tuning_recipe
from minialbert.tasks.unlabelled import Taught, _plain, add_soft_labels, altered_texts, teach

_TEXT = "the sat on mat and a ran in sun it was big red small old new house tree to of is at"
WORDS = _TEXT.split(" ")
TAGS = ("I-Animal", "O", "B-Animal")  # not in the order that rows would give


def sentences(count: int, seed: int = 0) -> list[str]:
    """Different sentences; about half have a cat, about half a dog."""
    drawn, made = random.Random(seed), list[str]()
    while len(made) < count:
        words = drawn.choices(WORDS, k=drawn.randint(4, 10))
        for animal in ("cat", "dog"):
            if drawn.random() < 0.5:
                words.insert(drawn.randint(0, len(words)), animal)
        made += [text] if (text := " ".join(words)) not in made else []
    return made


def animals(texts: Sequence[str]) -> list[list[tuple[int, int, str]]]:
    """A callable teacher of a tagger, as somebody may have one."""
    return [
        [(text.index(one), text.index(one) + 3, "Animal") for one in ("cat", "dog") if one in text.split()]
        for text in texts
    ]


def with_cat(texts: Sequence[str]) -> list[dict[str, float]]:
    """A callable teacher of a classifier, sure to nine tenths."""
    return [
        {"with": 0.9, "without": 0.1} if "cat" in text.split() else {"with": 0.1, "without": 0.9}
        for text in texts
    ]


@pytest.fixture
def model_teacher(tiny_tokenizer, tmp_path) -> Callable[..., Path]:
    """Saves a tiny model with a task head and random weights; returns its folder."""

    def make(labels: Sequence[str], *, tagging: bool = False) -> Path:
        config = BertConfig(
            vocab_size=len(tiny_tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
            intermediate_size=64, max_position_embeddings=64, pad_token_id=tiny_tokenizer.pad_token_id,
            id2label=dict(enumerate(labels)), label2id={}, initializer_range=0.5,
        )  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = (BertForTokenClassification if tagging else BertForSequenceClassification)(config)
        model.save_pretrained(tmp_path / "teacher")
        tiny_tokenizer.save_pretrained(tmp_path / "teacher")
        return tmp_path / "teacher"

    return make


@pytest.fixture
def ask(tmp_path) -> Callable[..., Taught]:
    """Ask a teacher for labels without tuning on them."""

    def call(
        teacher: Any,
        texts: Any,
        data: Any = None,
        *settings: str,
        task: str | None = None,
        labels: str = "labels",
        **more: Any,
    ) -> Taught:
        place = str(teacher) if isinstance(teacher, str | Path) else teacher.__name__
        recipe = tuning_recipe(
            None, settings, model="m", task=task, teacher=place, unlabelled=["texts"], data=None
        )
        options = {"progress": False, "max_hours": None} | more
        asked = place if isinstance(teacher, str | Path) else teacher
        return teach(recipe, asked, [texts] if texts else (), data, tmp_path / labels, **options)

    return call


def tune(student: Path, output: Path, **options: Any) -> Any:
    """Tune on what a teacher says, with settings under which a tiny student learns."""
    settings = {"tuning.precision": "fp32", "tuning.logging_steps": 1} | options.pop("settings", {})
    usual = {"epochs": 6, "learning_rate": 5e-3, "batch_size": 8, "progress": False}
    return finetune(str(student), output=output, settings=settings, **usual | options)


# What a student learns


def test_a_student_learns_from_the_probabilities_of_a_callable(tiny_student_dir, tmp_path):
    tuned = tune(
        tiny_student_dir, tmp_path / "run", task="classification", teacher=with_cat, unlabelled=sentences(160)
    )
    record = tuned.record
    assert tuned.score > 0.9
    assert (record["split"], record["agreement"], record["teacher"]) == (
        "validation",
        ["validation"],
        "with_cat",
    )
    assert json.loads((tmp_path / "run" / "result.json").read_text()) == record
    assert any("agreement with the teacher" in note for note in record["notes"])
    assert "--teacher with_cat --unlabelled 'texts in memory'" in record["command"]
    assert json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[0])["loss_logit"] > 0


def test_spans_of_a_callable_are_hard_labels(tiny_student_dir, tmp_path, caplog):
    caplog.set_level("INFO")
    tuned = tune(
        tiny_student_dir, tmp_path / "run", task="ner", teacher=animals, epochs=8,
        unlabelled=[*sentences(160), sentences(1)[0], " "],
    )  # fmt: skip
    assert tuned.score > 0.9
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert not any("loss_logit" in line for line in log)
    said = "160 texts (in .txt one a line), left out 1 empty, 1 repeated, 0 too long"
    assert (
        f"labels: those of the teacher animals; {said}; 0 got no label; without probabilities"
        in tuned.record["notes"]
    )
    told = [line.getMessage() for line in caplog.records if line.getMessage().startswith("teacher animals: ")]
    assert told[0].startswith("teacher animals: 160 of 160 texts to label, ")
    assert told[1].endswith(" for the other texts")


def test_a_tagger_gives_soft_labels_by_word_in_the_tasks_order(
    model_teacher, tiny_student_dir, ask, tmp_path
):
    folder = model_teacher(TAGS, tagging=True)
    taught = ask(folder, sentences(30), None, "task.labels=[O, B-Animal, I-Animal]")
    assert (taught.task.problem, taught.task.labels) == ("token", ("O", "B-Animal", "I-Animal"))
    recipe = load_recipe("default", FinetuneRecipe).model_copy(
        update={"model": taught.recipe.model.model_copy(update={"name": str(tiny_student_dir)})}
    )
    plan = plan_finetuning(recipe, taught=taught)
    assert plan.teacher is not None
    assert plan.teacher.model is None
    expected = {answer["text"]: answer for answer in minialbert.load(str(folder)).predict(sentences(30))}
    rows, train = plan.encoded["train"], plan.task.splits["train"]
    for row, owner in zip(rows.rows, rows.owners, strict=True):
        held = np.array(row["labels"]) >= 0
        best = row["teacher_logits"][held].argmax(1)
        entities = minialbert_spans(train[owner], plan.task.labels, best)
        assert entities == [(one["start"], one["end"]) for one in expected[train[owner].text]["entities"]]
        assert np.allclose(np.exp(row["teacher_logits"][held].astype(float)).sum(1), 1, atol=2e-2)


def minialbert_spans(sentence: Any, labels: Sequence[str], ids: Sequence[int]) -> list[tuple[int, int]]:
    from minialbert_runtime.words import tags_to_spans

    return [(one.start, one.end) for one in tags_to_spans([labels[at] for at in ids], sentence.offsets)]


@pytest.mark.parametrize("all_pieces", [False, True])
def test_words_that_the_teacher_cuts_otherwise(tiny_tokenizer, all_pieces):
    labels = ("O", "B-X", "I-X")
    words = ("red", "-", "house", "of")  # of "red-house of", which the teacher cuts in two
    offsets = ((0, 3), (3, 4), (4, 9), (10, 12))
    example = TokenExample(words, ("B-X", "I-X", "I-X", "O"), "red-house of", offsets)
    task = Task("t", "token", labels, "entity_f1", {})
    encoded = encode_sentences(
        [example], tiny_tokenizer, task, max_length=32, overlap=0, all_pieces=all_pieces
    )
    chances = np.array([[0.1, 0.7, 0.2], [0.8, 0.1, 0.1]])
    soft = {"red-house of": ([[0, 9], [10, 12]], np.log(chances).astype(np.float16))}
    add_soft_labels(encoded, [example], task, soft)
    window, given = encoded.windows[0], np.exp(encoded.rows[0]["teacher_logits"].astype(float))
    positions, found = window.first_pieces
    inside = [0.1, 0, 0.9]  # what begins an entity goes on there
    expected = dict(zip(found, [[0.1, 0.7, 0.2], inside, inside, [0.8, 0.1, 0.1]], strict=True))
    for position, word in enumerate(window.words):
        if word < 0:
            assert given[position].tolist() == [1, 1, 1]
        elif position in positions:
            assert np.allclose(given[position], expected[word], atol=1e-3)
        else:
            assert np.allclose(given[position], inside if word < 3 else [0.8, 0, 0.2], atol=1e-3)


def test_gold_rows_beside_the_teachers(ask, tiny_student_dir):
    texts = sentences(60)
    gold = {
        "train": [(text, "with" if "cat" in text.split() else "without") for text in texts[:10]],
        "validation": [(text, "with" if "cat" in text.split() else "without") for text in sentences(12, 9)],
    }
    taught = ask(with_cat, texts, gold, "teacher.gold_weight=3", task="classification")
    assert (taught.agreement, len(taught.task.splits["train"])) == ((), 3 * 10 + 50)
    assert taught.task.splits["validation"][0].text == gold["validation"][0][0]
    assert any(
        "60 texts (in .txt one a line), left out 0 empty, 0 repeated, 0 too long; 10 more are gold rows" in n
        for n in taught.task.notes
    )
    recipe = taught.recipe.model_copy(
        update={"model": taught.recipe.model.model_copy(update={"name": str(tiny_student_dir)})}
    )
    plan = plan_finetuning(recipe, taught=taught)
    assert plan.encoded["train"].rows[0]["input_ids"] == plan.encoded["train"].rows[10]["input_ids"]
    assert all("teacher_logits" in row for row in plan.encoded["train"].rows)


def test_altered_copies_of_gold_texts(ask):
    gold = {
        "train": [(text, "with" if "cat" in text.split() else "without") for text in sentences(20)],
        "validation": [(text, "with" if "cat" in text.split() else "without") for text in sentences(12, 9)],
    }
    taught = ask(with_cat, (), gold, "teacher.altered=3", task="classification")
    train = [row.text for row in taught.task.splits["train"]]
    copies = altered_texts(train[:20], 3, [text for text, _ in gold["validation"]])
    assert train[20:] == copies and 20 < len(copies) <= 60
    assert f"{len(copies)} altered gold texts" in " ".join(taught.task.notes)
    labels = [row.label for row in taught.task.splits["train"][20:]]
    assert labels == ["with" if "cat" in text.split() else "without" for text in copies]
    more = ask(
        with_cat,
        copies[:5] + sentences(30, 7),
        gold,
        "teacher.altered=3",
        task="classification",
        labels="more",
    )
    assert [row.text for row in more.task.splits["train"]].count(copies[0]) == 1


def test_a_copy_differs_from_its_text_in_one_place_and_from_every_other_text():
    text, others = "one two three four", ("one three two four", "ONE two, four!")
    copies = altered_texts([text, "a b", "c", ""], 200, others)
    assert copies == altered_texts([text, "a b", "c", ""], 200, others) and len({*copies}) == len(copies)
    assert {*copies} == {
        "one three four",  # "one two four" is one of the others
        "one two two three four", "one three two three four", "one two three three four",
        "one three three four", "one two two four",
        "two one three four",  # and so is "one three two four"
    }  # fmt: skip


def test_gold_texts_that_a_teacher_does_not_answer_are_said(ask):
    texts = sentences(30)
    rows = [
        (text, "with" if "cat" in text.split() else "without") for text in (*texts[:10], *sentences(9, 9))
    ]
    gold = {"train": rows[:10], "validation": rows[10:]}

    def teacher(asked: Sequence[str]) -> list[dict[str, float] | None]:
        return [None if text == texts[0] else one for text, one in zip(asked, with_cat(asked), strict=True)]

    with pytest.raises(UserError, match="gave none of the 0 texts beside the gold rows a label"):
        ask(teacher, texts[1:5], gold, task="classification", labels="few")
    taught = ask(teacher, texts, gold, task="classification")
    (note,) = (one for one in taught.task.notes if one.startswith("labels: those of"))
    assert not taught.soft and note.endswith(
        "; 0 got no label; without probabilities, which 1 of 30 answers lack"
    )


def test_a_model_labels_gold_texts_of_any_length(ask, model_teacher, monkeypatch):
    monkeypatch.setattr(unlabelled, "MAX_CHARACTERS", 60)
    teacher = minialbert.load(str(model_teacher(("with", "without"))), max_characters=60)
    teacher.__name__ = "teacher"
    long = "the cat sat on the mat and it was big " * 3
    gold = {"train": [(long, "with")] * 4 + [(text, "without") for text in sentences(5)]}
    taught = ask(teacher, [*sentences(9), long + "red"], gold, task="classification")
    assert long in taught.soft and "left out 0 empty, 0 repeated, 1 too long" in " ".join(taught.task.notes)
    assert teacher.max_characters == 60


# Kept on disk


class Killed(BaseException):
    """Stands for SIGKILL."""


def test_a_killed_labelling_goes_on_where_it_was(ask, tmp_path, monkeypatch):
    monkeypatch.setattr(unlabelled, "_SHARD", 8)
    texts, asked = sentences(30), list[int]()

    def teacher(shard: Sequence[str]) -> list[dict[str, float]]:
        asked.append(len(shard))
        if len(asked) == 3:
            raise Killed
        return with_cat(shard)

    with pytest.raises(Killed):
        ask(teacher, texts, task="classification")
    file = tmp_path / "labels" / "labels.jsonl"
    whole = file.read_bytes()
    assert whole.count(b"\n") == 16
    file.write_bytes(whole + json.dumps({"text": texts[16], "label": "with"}).encode() + b'\n{"text": "th')
    taught = ask(teacher, texts, task="classification")
    assert asked == [8, 8, 8, 8, 6]
    (tmp_path / "labels").rename(tmp_path / "resumed")
    assert ask(with_cat, texts, task="classification").task.splits == taught.task.splits
    assert file.read_bytes() == (tmp_path / "resumed" / "labels.jsonl").read_bytes()
    with pytest.raises(UserError, match="another teacher or other texts"):
        ask(with_cat, texts[1:], task="classification")


def test_a_finished_labelling_is_part_of_the_run(tiny_student_dir, tmp_path):
    calls = []

    def teacher(texts: Sequence[str]) -> list[dict[str, float]]:
        calls.append(len(texts))
        return with_cat(texts)

    options = {"task": "classification", "teacher": teacher, "unlabelled": sentences(40), "epochs": 1}
    tune(tiny_student_dir, tmp_path / "run", **options)
    (tmp_path / "run" / "result.json").unlink()
    tune(tiny_student_dir, tmp_path / "run", resume=True, **options)
    assert calls == [40]
    with pytest.raises(UserError, match="not empty"):
        tune(tiny_student_dir, tmp_path / "run", **options)
    tune(tiny_student_dir, tmp_path / "run", overwrite=True, **options)
    assert calls == [40, 40]
    assert RunDirectory(tmp_path / "run").teacher_labels.is_dir()


def test_a_labelling_that_would_take_days_is_refused(ask, monkeypatch):
    monkeypatch.setattr(unlabelled, "_SHARD", 8)
    ticks = iter([0.0, 3600.0])
    monkeypatch.setattr(unlabelled.time, "monotonic", lambda: next(ticks))
    with pytest.raises(UserError, match=r"needs 2:45:00, more than 1 hours.*--yes --resume"):
        ask(with_cat, sentences(30), task="classification", max_hours=1)


# What teachers say, and what is refused


@pytest.mark.parametrize(
    ("kind", "given", "expected"),
    [
        ("single-label", "a", {"label": "a"}),
        ("single-label", None, {"label": None}),
        ("single-label", {"a": 0.2, "b": 0.8}, {"label": "b", "scores": {"a": 0.2, "b": 0.8}}),
        ("single-label", {"label": "a", "score": 0.9}, {"label": "a"}),
        ("multi-label", ["a", "b"], {"label": ["a", "b"]}),
        ("multi-label", {"a": 0.2, "b": 0.8}, {"label": ["b"], "scores": {"a": 0.2, "b": 0.8}}),
        ("multi-label", {"labels": [], "scores": {"a": 0.2}}, {"label": [], "scores": {"a": 0.2}}),
        ("regression", 2, {"label": 2}),
        ("regression", {"score": 2.5}, {"label": 2.5}),
        ("token", [(0, 3, "X")], {"spans": [(0, 3, "X")]}),
        ("token", {"entities": []}, {"spans": []}),
        ("token", None, {"spans": None}),
    ],
)
def test_what_a_teacher_may_say(kind, given, expected):
    assert _plain(given, task_type(kind)) == expected


def test_texts_without_a_label_are_left_out_and_counted(ask):
    taught = ask(
        lambda texts: [None if "mat" in text else "a" if "cat" in text else "b" for text in texts],
        sentences(40), task="classification",
    )  # fmt: skip
    rows = [row for split in taught.task.splits.values() for row in split]
    without = sum("mat" in text for text in sentences(40))
    assert 0 < without == 40 - len(rows)
    assert any(
        note.endswith(f"; {without} got no label; without probabilities") for note in taught.task.notes
    )
    assert taught.soft == {}


def test_spans_of_a_pipeline_and_of_numpy(ask):
    def teacher(texts: Sequence[str]) -> list[list[dict[str, Any]]]:
        return [
            [
                {"start": np.int64(start), "end": end, "entity_group": label, "score": np.float32(1)}
                for start, end, label in spans
            ]
            for spans in animals(texts)
        ]

    taught = ask(teacher, sentences(20), task="ner")
    assert taught.task.labels == ("O", "B-Animal", "I-Animal")


def test_unlabelled_texts_are_read_as_a_corpus_is(ask, tmp_path):
    texts = sentences(30)
    with gzip.open(tmp_path / "one.txt.gz", "wt") as file:
        file.write("\n".join(texts[:10]))
    (tmp_path / "two.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[10:]))
    places = [tmp_path / "one.txt.gz", tmp_path / "two.jsonl"]
    recipe = tuning_recipe(None, task="classification", teacher="with_cat", unlabelled=list(map(str, places)))
    options = {"progress": False, "max_hours": None}
    taught = teach(recipe, with_cat, places, None, tmp_path / "labels", **options)
    rows = [row for split in taught.task.splits.values() for row in split]
    assert sorted(row.text for row in rows) == sorted(texts)


def test_what_was_asked_is_named_and_no_word_of_a_text_or_path_is_changed(ask, tmp_path):
    odd = tmp_path / "--column text_field"
    odd.mkdir()
    file = odd / "--documents.jsonl"
    file.write_text('{"--column": "a", "text_field": "b"}\n')
    with pytest.raises(UserError) as caught:
        ask(with_cat, file, task="classification")
    told = "no field 'text'; the fields are: --column, text_field (teacher.text_field)"
    assert str(caught.value) == f"{file}:1: {told}"
    (odd / "a.txt").write_bytes(b"word " * 4_000_000)
    with pytest.raises(UserError) as caught:
        ask(with_cat, odd / "a.txt", None, "teacher.documents=file", task="classification")
    cuts = "teacher.documents=blank-line or teacher.documents=line cuts the file into documents"
    assert str(caught.value) == f"{odd}/a.txt:1: the document that starts here is longer than 16 MB; {cuts}"
    with pytest.raises(UserError, match="^teacher.text_field 'b': no file of the corpus"):
        ask(with_cat, odd / "a.txt", None, "teacher.text_field=b", task="classification")


def test_scores_are_learnt_as_they_are(tiny_student_dir, tmp_path):
    def count(texts: Sequence[str]) -> list[float]:
        return [1.5 * text.split().count("cat") for text in texts]

    tuned = tune(
        tiny_student_dir,
        tmp_path / "run",
        task="regression",
        teacher=count,
        unlabelled=sentences(40),
        epochs=1,
    )
    assert math.isfinite(tuned.score)
    assert tuned.record["agreement"] == ["validation"]


def test_pairs_of_texts(ask, model_teacher, tmp_path):
    def alike(asked: Sequence[tuple[str, str]]) -> list[float]:
        return [0.5 * len({*first.split()} & {*second.split()}) for first, second in asked]

    made = sentences(60)
    gold = {
        split: [
            {"sentence1": one, "sentence2": two, "label": 1.0} for one, two in zip(ones, twos, strict=True)
        ]
        for split, ones, twos in (("train", made[:10], made[10:20]), ("validation", made[20:30], made[30:40]))
    }
    more = tmp_path / "more.csv"
    rows = [*zip(made[40:50], made[50:], strict=True), (made[0], made[10]), (made[40], made[50])]
    more.write_text("premise,hypothesis,label\n" + "".join(f"{one},{two},?\n" for one, two in rows))
    taught = ask(alike, str(more), gold, "teacher.altered=2", task="regression")
    train = [(row.text, row.pair) for row in taught.task.splits["train"]]
    own = list(zip(made[:10], made[10:20], strict=True))
    copies = altered_texts(own, 2)
    assert train == [*own, *rows[:10], *copies] and len(copies) > 15
    assert all((one == a) != (two == b) for one, two in copies for a, b in own if one == a or two == b)
    assert sum(one in made for one, _ in copies) not in (0, len(copies))  # either text is altered
    scores = [row.label for row in taught.task.splits["train"]]
    assert scores == [1.0] * 10 + alike(train[10:])  # gold rows keep theirs
    assert taught.soft[own[0]][1] == pytest.approx([alike(own[:1])[0]])  # and learn the teacher's beside it
    note = " ".join(taught.task.notes)
    assert f"11 pairs of texts, left out 0 empty, 1 repeated, 0 too long; {len(copies)} altered" in note
    line = json.loads((tmp_path / "labels" / "labels.jsonl").read_text().splitlines()[0])
    assert line == {"sentence1": made[0], "sentence2": made[10], "label": alike(own[:1])[0]}
    again = ask(
        alike, [{"text1": one, "text2": two} for one, two in rows], gold, task="regression", labels="b"
    )
    assert [(row.text, row.pair) for row in again.task.splits["train"]] == train[:20]
    named = ask(alike, str(more), gold, "task.text=sentence1", task="regression", labels="n")
    assert [(row.text, row.pair) for row in named.task.splits["train"]] == train[
        :20
    ]  # the usual names do, too
    alone = tmp_path / "alone.csv"
    alone.write_text("text,label\nthe cat,1\n")
    with pytest.raises(
        UserError, match="pairs are to be labelled: set task.text and task.pair to their columns; found"
    ):
        ask(alike, str(alone), gold, task="regression", labels="c")


def test_pairs_of_a_callable_without_gold_rows(ask, tmp_path, tiny_student_dir):
    def same(asked: Sequence[tuple[str, str]]) -> list[str]:
        return ["yes" if "cat" in first else "no" for first, _ in asked if isinstance(first, str)]

    pairs = list(zip(sentences(20), sentences(20, 1), strict=True))
    options = {"task": "classification", "teacher": same, "epochs": 1}
    tuned = tune(
        tiny_student_dir, tmp_path / "run", unlabelled=[*pairs, ("", "the dog"), (None, " ")], **options
    )
    assert "20 pairs of texts, left out 2 empty, 0 repeated, 0 too long" in " ".join(tuned.record["notes"])
    (tmp_path / "more").mkdir()
    for name in ("train", "dev", "other"):
        rows = "".join(f"{one},{two} {name},accept\n" for one, two in pairs)
        (tmp_path / "more" / f"{name}.csv").write_text(f"one,two,answer\n{rows}a cat,,accept\na,b,reject\n")
    taught = ask(
        same,
        str(tmp_path / "more"),
        None,
        "task.text=one",
        "task.pair=two",
        task="classification",
        labels="m",
    )
    note = " ".join(taught.task.notes)
    assert "40 pairs of texts, left out 2 empty, 0 repeated, 0 too long; more: left out other.csv" in note
    assert "train: 1 row left out that an annotator rejected" in note
    lost = tmp_path / "unsplit"
    lost.mkdir()
    for at in (0, 10):
        rows = [{"premise": one, "hypothesis": two} for one, two in pairs[at : at + 10]]
        (lost / f"part{at}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    assert list(read_pairs([lost], {}, [])) == [*pairs[:10], *pairs[10:20]]
    (lost / "part0.jsonl").write_text('{"left": "a", "right": "b"}\n')
    with pytest.raises(
        UserError, match="part0.jsonl: .* set task.text and task.pair to their columns; found"
    ):
        list(read_pairs([lost], {"text": "left", "pair": None}, []))
    for given in (lost / "part0.jsonl", [{"left": "a", "right": "b"}]):
        with pytest.raises(UserError, match=r"the fields are: left, right \(teacher.text_field\)"):
            ask(with_cat, given, task="classification")
    with pytest.raises(
        UserError, match="pairs are to be labelled: give tuples of two texts, found 'the cat'"
    ):
        list(read_pairs([["the cat", "a dog", "it"]], {}, []))  # two would be a pair
    half = [*pairs, ("the cat \ud800", "it")]
    with pytest.raises(UserError, match="row 21: holds half of a surrogate pair"):
        tune(tiny_student_dir, tmp_path / "half", unlabelled=half, **options)
    assert not (tmp_path / "half" / "teacher-labels").exists()
    gold = {"train": [(text, "yes" if "cat" in text else "no") for text in sentences(9)]}
    with pytest.raises(UserError, match="labels single texts here, and unlabelled has pairs of texts"):
        tune(tiny_student_dir, tmp_path / "single", unlabelled=pairs, data=gold, **options)


def test_scores_of_any_size_are_learnt_in_the_units_of_training(ask, tiny_student_dir):
    texts = sentences(40)
    price = {text: 250_000.0 + 20_000 * text.split().count("cat") + 0.5 * len(text) for text in texts}
    gold = {
        "train": [(text, price[text] + 1000) for text in texts[:10]],
        "validation": [(text, price[text]) for text in texts[10:20]],
    }

    def worth(asked: Sequence[str]) -> list[float]:
        return [price[text] for text in asked]

    taught = ask(worth, texts[20:], gold, task="regression")
    recipe = taught.recipe.model_copy(
        update={"model": taught.recipe.model.model_copy(update={"name": str(tiny_student_dir)})}
    )
    plan = plan_finetuning(recipe, taught=taught)
    rows, train = plan.encoded["train"], taught.task.splits["train"]
    gold_scores = np.array([row.label for row in train])
    assert plan.teacher is not None
    for row, owner in zip(rows.rows, rows.owners, strict=True):
        batch = {"teacher_logits": torch.from_numpy(row["teacher_logits"])}
        expected = (price[train[owner].text] - gold_scores.mean()) / gold_scores.std()
        assert plan.teacher.view(batch)[0].item() == pytest.approx(expected, abs=1e-4)
    for given in (math.nan, "high", math.inf):  # of a gold text, too
        with pytest.raises(UserError, match="expected a label, a number, or probabilities"):
            ask(
                lambda asked, one=given: [one, *worth(asked[1:])],
                texts[20:],
                gold,
                task="regression",
                labels="x",
            )
    without = ask(lambda asked: [None, *worth(asked[1:])], texts[20:], gold, task="regression", labels="y")
    assert "; without scores, which 1 of 30 answers lack" in " ".join(without.task.notes)


def test_a_student_of_pairs_learns_from_a_model(tiny_student_dir, tmp_path):
    def sat(texts: Sequence[str]) -> list[dict[str, Any]]:
        return [{"sentence1": one, "sentence2": one, "label": "ab"["cat" in one]} for one in texts]

    options: dict[str, Any] = {"task": "classification", "epochs": 1}
    tune(tiny_student_dir, tmp_path / "teacher", data={"train": sat(sentences(40))}, **options)
    folder, pairs = str(tmp_path / "teacher" / "model"), sat(sentences(30, 3))
    tuples = [(one["sentence1"], one["sentence2"]) for one in pairs]
    tuned = tune(tiny_student_dir, tmp_path / "run", teacher=folder, unlabelled=tuples, **options)
    assert tuned.record["agreement"] == ["validation"] and "30 pairs of texts" in " ".join(
        tuned.record["notes"]
    )
    with pytest.raises(UserError, match="was tuned on pairs of texts, and the gold rows are single texts"):
        tune(
            tiny_student_dir, tmp_path / "other", teacher=folder, unlabelled=pairs, **options,
            data={"train": [(text, "ab"["cat" in text]) for text in sentences(40)]},
        )  # fmt: skip


def test_gold_rows_with_labels_that_the_teacher_lacks(ask, model_teacher):
    folder = model_teacher(("with", "without"))
    rows = [("the cat sat", "cat"), ("the dog sat", "without")] * 4
    with pytest.raises(
        UserError, match="gold rows have 'cat', which teacher teacher does not label.*teacher.labels"
    ):
        ask(folder, sentences(9), {"train": rows}, task="classification")
    gold = {"train": [(text, "dog" if label == "without" else label) for text, label in rows]}
    with pytest.raises(UserError, match="'cat' is not among those of the model: 'with', 'without'"):
        ask(folder, sentences(9), gold, task="classification")
    named = ask(folder, sentences(9), gold, "teacher.labels=[cat, dog]", task="classification")
    assert named.task.labels == ("cat", "dog")


@pytest.mark.parametrize(
    ("settings", "task", "message"),
    [
        ((), "ner", "teacher teacher was tuned for a single-label task, this is a token task"),
        (("teacher.labels=[a]",), None, "teacher.labels: teacher has with, without; give a name for each"),
        (("task.labels=[a, b]",), None, "was tuned for other labels"),
    ],
)
def test_teachers_that_do_not_fit(settings, task, message, ask, model_teacher):
    with pytest.raises(UserError, match=message):
        ask(model_teacher(("with", "without")), sentences(9), None, *settings, task=task)


def test_answers_that_are_none(ask, tmp_path):
    with pytest.raises(UserError, match="expected an answer a text, 9, found 8"):
        ask(lambda texts: ["a"] * 8, sentences(9), task="classification")
    for given, said in (
        (None, "expected a list with an answer for each text, found None"),
        ("a" * 9, "expected a list with an answer for each text"),
        ([object()] * 9, "expected a label, a number"),
        ([{"a": 9.0, "b": 1.0}] * 9, "probabilities from 0 to 1 by label of "),
        ([{"a": math.nan, "b": 0.5}] * 9, "probabilities from 0 to 1 by label of "),
        ([{"a": "high"}] * 9, "probabilities from 0 to 1 by label of "),
    ):
        with pytest.raises(UserError, match=said):
            ask(lambda texts, given=given: given, sentences(9), task="classification")
    with pytest.raises(UserError, match="answers questions, and only classes"):
        ask(lambda texts: texts, sentences(9), task="qa")
    with pytest.raises(UserError, match="unlabelled holds no text"):
        finetune(tmp_path, task="classification", teacher=with_cat, unlabelled=[])
    with pytest.raises(UserError, match="teacher with_cat labels texts, and there are none"):
        finetune(tmp_path, task="classification", teacher=with_cat, data=[("a", "b")])
    with pytest.raises(UserError, match="no task: give --task"):
        ask(with_cat, sentences(9))
    with pytest.raises(UserError, match="2 texts to label, of which a tenth is to be held out: expected 5"):
        ask(with_cat, sentences(2), task="classification")
    for setting, texts in product(("teacher.gold_weight=5", "teacher.altered=1"), (sentences(9), ())):
        with pytest.raises(UserError, match=f"{setting[:-2]} is about gold rows, and there are none"):
            ask(with_cat, texts, None, setting, task="classification")
    short = {"train": [("a cat", "with"), ("one dog", "without"), ("猫和狗在这里", "with")] * 4}
    with pytest.raises(UserError, match="0 altered gold texts, none of 8 with fewer than three words"):
        ask(with_cat, (), short, "teacher.altered=1", task="classification")
    taught = ask(with_cat, sentences(9), short, "teacher.altered=1", task="classification", labels="short")
    assert "0 altered gold texts, none of 8 with fewer" in " ".join(taught.task.notes)
    with pytest.raises(UserError, match="less than or equal to 100"):
        ask(with_cat, (), short, "teacher.altered=101", task="classification")
    with pytest.raises(UserError, match="teacher.altered needs a teacher to label the texts"):
        finetune(tmp_path, task="classification", data=[("a", "b")], settings={"teacher.altered": 2})


def test_a_refused_run_leaves_nothing_or_says_where_the_labels_are(tiny_student_dir, tmp_path, caplog):
    options = {"task": "classification", "unlabelled": sentences(20), "epochs": 1}
    for teacher, said in ((lambda texts: None, "found None"), (animals, "expected a label, a number")):
        with pytest.raises(UserError, match=said):
            tune(tiny_student_dir, tmp_path / "new" / "run", teacher=teacher, **options)
        assert not (tmp_path / "new").exists()
    caplog.set_level("INFO")
    options["teacher"] = with_cat
    with pytest.raises(UserError, match="class_weights has 1 values"):
        tune(
            tiny_student_dir,
            tmp_path / "run",
            **options,
            settings={"tuning.class_weights": [1.0]},
            progress=True,
        )
    kept = tmp_path / "run" / "teacher-labels"
    assert f"teacher with_cat: its labels are in {kept}, and --resume goes on with them" in caplog.text
    before = (kept / "labels.jsonl").read_bytes()
    tune(tiny_student_dir, tmp_path / "run", **options, resume=True)
    assert (kept / "labels.jsonl").read_bytes() == before


def test_a_teacher_of_one_class(ask, model_teacher, tmp_path):
    with pytest.raises(UserError, match="teacher teacher has one class, 'O': it tells nothing apart"):
        ask(model_teacher(("O",), tagging=True), sentences(9))
    with pytest.raises(UserError, match="teacher with_cat has one class, 'with': it tells nothing apart"):
        ask(with_cat, sentences(9), None, "teacher.labels=[with]", task="classification")
    taught = ask(
        lambda texts: ["a"] * len(texts), sentences(20), None, "task.labels=[a, b]", task="classification"
    )
    assert "train: nothing to tell apart: the labels are a" in understood(taught.task)
    (tmp_path / "labels").rename(tmp_path / "former")
    spans = ask(
        lambda texts: [[]] * len(texts), sentences(21), None, f"task.labels=[{','.join(TAGS)}]", task="ner"
    )
    assert "train: nothing to tell apart: the entities are none" in understood(spans.task)


def test_settings_that_exclude_each_other(tiny_student_dir):
    with pytest.raises(UserError, match="teacher.unlabelled needs a teacher"):
        tuning_recipe(None, unlabelled=["a.txt"])
    with pytest.raises(UserError, match="teacher.hidden_weight needs labelled rows"):
        tuning_recipe(None, ["teacher.hidden_weight=1"], teacher="t", unlabelled=["a.txt"])
    recipe = tuning_recipe(None, model=str(tiny_student_dir), task="ner", teacher="t", unlabelled=["a.txt"])
    with pytest.raises(UserError, match="for a single run"):
        plan_finetuning(recipe)


def test_spans_that_a_language_model_wrote_are_labelled_data(tmp_path):
    rows = [
        {"text": "Aspirin helps.", "entities": [{"text": "Aspirin", "start": 0, "end": 7, "label": "Drug"}]},
        {"text": "It was aspirin.", "entities": [{"text": "aspirin", "start": 6, "end": 13, "type": "Drug"}]},
        {"text": "Nothing helps.", "entities": []},
    ]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = load_table(str(tmp_path), "token")
    assert [label_of(row) for row in task.splits["train"]][0] == ("B-Drug", "O", "O")
    assert label_of(task.splits["train"][2]) == ("O", "O", "O")
    assert any("the span 6-13 quotes 'aspirin', where ' aspiri' stands" in note for note in task.notes)
