"""An afternoon at small scale, by its commands: from an export of PubTator to a served model with a proof."""

import contextlib
import http.client
import json
import re
import subprocess
import sys

import pytest
from conftest import write_tiny_task

import minialbert

pytest.importorskip("uvicorn")
pytest.importorskip("starlette")


@contextlib.contextmanager
def served(folder):
    """A server of its own; yields its port."""
    command = [sys.executable, "-m", "minialbert_runtime", "serve", str(folder), "--port", "0"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            lines = iter(process.stderr.readline, "")
            yield int(
                next(found[1] for line in lines if (found := re.search(r"listening at .*:(\d+)$", line)))
            )
        finally:
            process.terminate()
            process.communicate(timeout=20)
    assert process.returncode == 0


def test_from_annotations_to_a_served_model(tmp_path, monkeypatch, call, tiny_student_dir):
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        status, out, err = call(*arguments)
        assert status == 0, err
        return out + err

    sentences = (write_tiny_task(tmp_path / "given", "ner") / "train.tsv").read_text().rstrip().split("\n\n")
    documents = ["\n\n".join(sentences[at : at + 2]) for at in range(0, len(sentences), 2)]
    text = "".join(
        f"# newdoc id = {100 + number}\n{document}\n\n" for number, document in enumerate(documents)
    )
    (tmp_path / "given.conll").write_text(text)
    run("convert-data", "given.conll", "corpus.pubtator", "--format", "pubtator")
    assert "100|t|" in (tmp_path / "corpus.pubtator").read_text()

    said = run(
        "convert-data", "corpus.pubtator", "cdr", "--format", "bioc", "--split", "70,15,15", "--seed", "0"
    )
    assert "56 train, 12 validation, 12 test documents" in said
    run(
        "finetune", "--model", tiny_student_dir, "--task", "ner", "--data", "cdr", "--output", "tuned",
        *("--epochs", 12, "--batch-size", 8, "--lr", "3e-3", "--set", "tuning.dropout=0"),
        *("--set", "tuning.evaluations_per_epoch=1", "--set", "task.max_length=32", "--set", "task.overlap=8"),
    )  # fmt: skip

    run("evaluate", "--model", "tuned/model", "--data", "cdr", "--output", "scores")
    record = json.loads((tmp_path / "scores" / "result.json").read_text())
    known = record["certificate"]
    assert (
        record["split"] == "test" and known["units"] == 12 and set(known["per_type"]) == {"Person", "Place"}
    )
    for figures in known["per_type"].values():
        low, high = figures["intervals"]["recall"]
        assert figures["support"] > 5 and 0.6 < low <= figures["recall"] <= high <= 1

    run(
        "export", "--model", "tuned/model", "--quantize", "int8", "--task", "ner", "--data", "cdr",
        *("--max-drop", 5, "--output", "exported"),
    )  # fmt: skip
    exported = json.loads((tmp_path / "exported" / "result.json").read_text())
    assert set(exported["metrics"]["certificates"]) and exported["precision"] == "int8"

    test = minialbert.convert_data("cdr/test.xml", "test.jsonl", format="jsonl")
    rows = [json.loads(line) for line in test.output.read_text().splitlines()]
    with (
        served("exported") as port,
        contextlib.closing(http.client.HTTPConnection("127.0.0.1", port)) as link,
    ):
        asked = {"documents": [{"id": row["id"], "text": row["text"]} for row in rows]}
        link.request("POST", "/predict", json.dumps(asked))
        answers = json.loads(link.getresponse().read())["results"]
    assert [one["id"] for one in answers] == [row["id"] for row in rows]

    run("predict", "--model", "exported", "--input", "test.jsonl", "--format", "brat", "--output", "answers")
    minialbert.convert_data("answers", "back.jsonl", format="jsonl")
    back = {row["id"]: row for row in map(json.loads, (tmp_path / "back.jsonl").read_text().splitlines())}
    for answer in answers:
        ours = [(one["start"], one["end"], one["label"]) for one in answer["entities"]]
        assert [(one["start"], one["end"], one["label"]) for one in back[answer["id"]]["spans"]] == ours
    assert sum(len(answer["entities"]) for answer in answers) > 10

    (tmp_path / "notes.txt").write_text("".join(row["text"].replace("\n", " ") + "\n" for row in rows))
    command = [sys.executable, "-m", "minialbert_runtime", "exported", "--input", "notes.txt"]
    lines = subprocess.run(
        [*command, "--prove-offline", "proof.json"], capture_output=True, text=True, check=True
    )
    proof = json.loads((tmp_path / "proof.json").read_text())
    assert proof["offline"] and proof["texts"] == len(rows) == lines.stdout.count("\n")
