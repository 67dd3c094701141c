"""Questions from a file of SQuAD to answers: tuned, scored, predicted, exported, and the same without PyTorch."""

import json
import random
import shutil

import pytest
from minialbert_runtime import Model

import minialbert
from minialbert.errors import UserError
from minialbert.tasks.predict import Predictor

_FILLER = ["the", "of", "and", "to", "in", "is", "it", "was", "for", "on", "as", "with", "at", "by", "one"]


def squad(count, seed):
    """Articles of a text and a question each: who is there? The king, if he is."""
    draw, articles = random.Random(seed), []
    for number in range(count):
        words = draw.choices(_FILLER, k=draw.randint(3, 9))
        if number % 3:
            words.insert(draw.randint(0, len(words)), "king")
        text = " ".join(words)
        gold = [{"text": "king", "answer_start": text.index("king")}] if number % 3 else []
        asked = {"id": str(number), "question": "who", "answers": gold, "is_impossible": not gold}
        articles.append({"title": "", "paragraphs": [{"context": text, "qas": [asked]}]})
    return {"version": "v2.0", "data": articles}


@pytest.fixture(scope="module")
def learnt(tiny_student_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("qa")
    (folder / "data").mkdir()
    for seed, (split, count) in enumerate({"train": 120, "dev": 30}.items()):
        (folder / "data" / f"{split}-v2.0.json").write_text(json.dumps(squad(count, seed)))
    settings = {
        "tuning.dropout": 0,
        "task.max_length": 24,
        "task.overlap": 4,
        "tuning.evaluations_per_epoch": 1,
    }
    result = minialbert.finetune(
        tiny_student_dir, task="qa", data=folder / "data", batch_size=8, learning_rate=3e-3, epochs=6,
        settings=settings, output=folder / "tuned", progress=False,
    )  # fmt: skip
    return folder, result


def test_a_student_learns_where_an_answer_is_and_that_there_is_none(learnt):
    folder, result = learnt
    figures = result.record["metrics"]["validation"]
    assert result.score == figures["f1"] > 0.9 and figures["unanswerable_accuracy"] > 0.9
    assert figures["best_f1"] >= result.score
    assert "questions (train/validation): answer 80/20, no answer 40/10" in result.record["notes"]
    assert (result.model.config.id2label, result.record["problem"]) == (
        {0: "answer", 1: "end"},
        "question-answering",
    )
    scored = minialbert.evaluate(
        folder / "tuned" / "model", data=folder / "data", output=folder / "scores", progress=False
    )
    assert scored.record["metrics"]["validation"] == figures and scored.record["metric"] == "f1"
    answered = scored.record["certificate"]["per_class"]["answer"]
    assert answered["recall"] == pytest.approx(figures["answered_exact_match"]) and answered["support"] == 20
    lines = [json.loads(line) for line in (folder / "scores" / "predictions.jsonl").read_text().splitlines()]
    said = minialbert.predict(folder / "tuned" / "model", [(one["text"], one["pair"]) for one in lines])
    assert [one["answer"] for one in said] == [one["predicted"] for one in lines]
    assert [one["predicted"] == (one["answers"] or [None])[0] for one in lines].count(True) >= 27


def test_the_exported_graph_answers_alike_in_a_long_text(learnt):
    folder, _ = learnt
    exported = minialbert.export(folder / "tuned" / "model", folder / "exported", progress=False)
    assert exported.record["parity"]["max_difference"] < 1e-3
    long = " ".join(_FILLER * 4 + ["king"] + _FILLER * 2)
    pairs = [("who", long), ("who", "the king was in"), ("who", " ".join(_FILLER))]
    model, torch_model = Model(folder / "exported"), Predictor.load(str(folder / "tuned" / "model"))
    ours, theirs = list(model.predict(pairs)), list(torch_model.predict(pairs))
    for one, other in zip(ours, theirs, strict=True):
        assert all(one[key] == other[key] for key in ("text", "pair", "answer", "start", "end"))
        assert [one[key] for key in ("score", "answerable")] == pytest.approx(
            [other[key] for key in ("score", "answerable")], rel=1e-3
        )
    assert ours[0]["answer"] == "king" and ours[0]["start"] == long.index("king") and ours[0]["windows"] > 3
    assert ours[2]["answer"] is None and ours[2]["answerable"] < 0.5
    scored = minialbert.evaluate(folder / "exported", data=folder / "data", progress=False)
    assert scored.score == pytest.approx(
        minialbert.evaluate(folder / "tuned" / "model", data=folder / "data", progress=False).score
    )


def test_a_threshold_for_answers_is_chosen_and_kept(learnt, tmp_path):
    folder, _ = learnt
    model = shutil.copytree(folder / "tuned" / "model", tmp_path / "model")
    made = minialbert.calibrate(
        model, folder / "data", min_precision={"answer": 0.9}, min_recall={"answer": 0.5}, progress=False
    )
    assert made.record["labels"]["answer"]["after"]["precision"] >= 0.9
    least = json.loads((model / "task.json").read_text())["decision"]["thresholds"]["answer"]
    assert made.record["decision"]["thresholds"] == {"answer": least}
    scored = minialbert.evaluate(model, data=folder / "data", progress=False)
    found = scored.record["certificate"]["per_class"]["answer"]
    assert found["precision"] == pytest.approx(made.record["labels"]["answer"]["after"]["precision"])
    assert found["recall"] == pytest.approx(made.record["labels"]["answer"]["after"]["recall"])
    with pytest.raises(UserError, match="there is no 'king' in these rows: they have answer"):
        minialbert.calibrate(model, folder / "data", min_recall={"king": 0.5}, progress=False)


def test_the_command_line_reads_questions_from_a_table(learnt, call, tmp_path):
    folder, _ = learnt
    (tmp_path / "asked.jsonl").write_text('{"id": "a", "question": "who", "context": "to the king of it"}\n')
    asked = ("predict", "--model", folder / "tuned" / "model", "--input", tmp_path / "asked.jsonl")
    columns = ("--column", "question", "--pair-column", "context")
    status, out, err = call(*asked, *columns, "--format", "jsonl")
    assert status == 0, err
    answer = json.loads(out)
    assert (answer["id"], answer["answer"], answer["start"], answer["end"]) == ("a", "king", 7, 11)
    assert (
        call(*asked, *columns, "--format", "table")[1]
        == f"a: [king {answer['score']:.3g}] who  |  to the king of it\n"
    )
    table = call(*asked, *columns, "--format", "csv")[1].splitlines()
    assert table[0] == '"id","start","end","label","score","text","pair"' and '"a",7,11,"king"' in table[1]
