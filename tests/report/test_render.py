"""Answers as pages, tables, and files for brat."""

from __future__ import annotations

import csv
import io
import json
import re

import pytest

import minialbert
from minialbert.errors import UserError


def entity(text, start, end, label, score=0.123456789):
    return {"start": start, "end": end, "text": text[start:end], "label": label, "score": score}


NOTE = "Pain in breast\ncancer.\r\n<script>x</script>"
ARABIC = "\u0645\u0631\u0636 \u0634\u062f\u064a\u062f"
ANSWERS = [
    {
        "id": "../x",
        "text": NOTE,
        "entities": [entity(NOTE, 0, 4, "Adverse event"), entity(NOTE, 8, 21, "Disease")],
    },
    {"id": "../x", "text": ARABIC, "entities": [entity(ARABIC, 0, 3, "Adverse_event")]},
    {"id": 3, "text": "=none", "entities": []},
]


def rows(answers):
    return list(csv.DictReader(io.StringIO(minialbert.render(answers, format="csv"), newline="")))


def test_a_page_marks_escapes_and_loads_nothing():
    page = minialbert.render(ANSWERS)
    assert "<script>x" not in page and "&lt;script&gt;x&lt;/script&gt;" in page
    assert '<mark class="look-0">Pain<bdi>Adverse event 0.123</bdi></mark>' in page
    assert '<mark class="look-1">breast\ncancer<bdi>Disease 0.123</bdi></mark>' in page
    assert "default-src &#39;none&#39;" in page
    shown = page._repr_html_()
    assert shown.startswith("<iframe srcdoc=") and "<script>" not in shown
    assert minialbert.render(ANSWERS, format="jsonl")._repr_html_() is None


def test_a_page_holds_so_many_texts_and_says_so():
    page = minialbert.render({"text": "a", "entities": []} for _ in range(400))
    assert "These are the first 300 of 400 texts." in page
    late = [{"text": "a", "label": "A" if number < 300 else "B", "score": 1.0} for number in range(301)]
    assert ">B</bdi></mark></th>" in minialbert.render(late)  # of a text that is left out, yet in the legend
    long = "a" * 3000
    assert len(minialbert.render({"text": long, "entities": []} for _ in range(400))) < 1_000_000


def test_a_row_per_entity(caplog):
    with caplog.at_level("INFO", "minialbert"):
        first, second, third = rows(ANSWERS)
    assert first == {
        "id": "../x", "start": "0", "end": "4", "label": "Adverse event", "score": "0.123457", "text": "Pain",
    }  # fmt: skip
    assert (second["text"], third["text"]) == ("breast\ncancer", ARABIC[:3])
    assert "1 of 3 texts have no entity, and so no row" in caplog.text


def test_a_row_per_text_with_its_classes():
    one = {"file": "a.csv", "text": "=cmd()", "label": "a", "score": 0.75, "scores": {"a": 0.75, "b": 0.25}}
    assert rows([one]) == [
        {"file": "a.csv", "id": "1", "start": "", "end": "", "label": "a", "score": "0.75", "text": "'=cmd()"}
    ]
    two = {"text": "t", "labels": ["a", "b"], "scores": {"a": 0.75, "b": 0.5}}
    assert [(row["label"], row["score"]) for row in rows([two, two | {"labels": []}])] == [
        ("a|b", "0.75|0.5"),
        ("", ""),
    ]
    fewer = two | {"scores": {"a": 0.75}}  # with top_k of 1
    assert [(row["label"], row["score"]) for row in rows([fewer])] == [("a|b", "0.75|")]
    (row,) = rows([{"text": "t", "pair": "u", "score": 4.25}])
    assert (row["label"], row["score"], row["pair"]) == ("", "4.25", "u")


def test_the_answer_of_one_text():
    answer = {"text": "a", "label": "x", "score": 0.5, "scores": {"x": 0.5}}
    assert (
        minialbert.render(answer, format="csv")
        == minialbert.render([answer], format="csv")
        != minialbert.render([], format="csv")
    )


def test_json_is_one_array():
    assert json.loads(minialbert.render(ANSWERS, format="json"))[0]["entities"][0]["score"] == 0.123457
    assert json.loads(minialbert.render([], format="json")) == []


def test_brat_files_stay_in_the_folder_and_quote_the_text(tmp_path, caplog):
    folder = tmp_path / "brat"
    with caplog.at_level("INFO", "minialbert"):
        assert minialbert.render(ANSWERS, folder, format="brat") == ""
    assert [path.name for path in tmp_path.iterdir()] == ["brat"]
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["3.ann", "3.txt", "x.ann", "x.txt", "x_text_2.ann", "x_text_2.txt"]
    lines = (folder / "x.ann").read_text().splitlines()
    assert lines == ["T1\tAdverse_event 0 4\tPain", "T2\tDisease 8 14;15 21\tbreast cancer"]
    text = (folder / "x.txt").read_bytes().decode()
    assert text == NOTE
    for line in lines:
        _, where, quote = line.split("\t")
        ends = [tuple(map(int, part.split())) for part in where.partition(" ")[2].split(";")]
        assert " ".join(text[start:end] for start, end in ends) == quote
    # Two labels never become one.
    assert (folder / "x_text_2.ann").read_text().startswith("T1\tAdverse_event-2 0 3\t")
    assert re.search(r"changed: 'Adverse event' is Adverse_event.*'\.\./x' is x", caplog.text)
    with pytest.raises(UserError, match="is not empty"):
        minialbert.render(ANSWERS, folder, format="brat")


def test_texts_of_one_name_from_several_folders_are_told_apart(tmp_path):
    one = {"text": "Pain", "entities": []}
    answers = [one | {"file": file} for file in ("in/1/note.txt", "in/2/note.txt", "in/2/note.txt", "x.txt")]
    tasks = json.loads(minialbert.render(answers, format="label-studio"))
    assert [task["data"]["document"] for task in tasks] == ["note", "2/note", "x"]
    minialbert.render(answers[:2], tmp_path / "brat", format="brat")
    names = sorted(path.name for path in (tmp_path / "brat").glob("*.txt"))
    assert names == ["2_note.txt", "note.txt"]


def test_a_doc_bin_has_the_entities_of_each_text(tmp_path):
    pytest.importorskip("spacy")
    from minialbert.data.convert_data import read_documents

    file = tmp_path / "answers.spacy"
    assert minialbert.render(ANSWERS, file, format="spacy") == ""
    (documents,) = read_documents(file, []).values()
    assert [one.text for one in documents] == [one["text"] for one in ANSWERS]
    assert [(one.label, one.start, one.end) for one in documents[0].entities] == [
        ("Adverse event", 0, 4), ("Disease", 8, 21)
    ]  # fmt: skip
    with pytest.raises(UserError, match="exists"):
        minialbert.render(ANSWERS, file, format="spacy")
    with pytest.raises(UserError, match="spacy takes entities or classes, and this model gives none"):
        minialbert.render([{"text": "x", "score": 1.0}], tmp_path / "scores.spacy", format="spacy")
    assert not (tmp_path / "scores.spacy").exists()


@pytest.mark.parametrize("format", ["label-studio", "doccano", "conll", "brat"])
def test_answers_that_a_format_cannot_hold_leave_nothing(tmp_path, format):
    output = tmp_path / "new" / "out" if format == "brat" else tmp_path / "out"
    with pytest.raises(UserError, match=r"and this model gives none: take csv or jsonl$"):
        minialbert.render([{"text": "x", "score": 1.0}] * 2, output, format=format)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_keeps_the_answers_that_had_room(tmp_path):
    resource = pytest.importorskip("resource")
    answers = [{"text": f"text {n}", "label": "x", "score": 0.5, "scores": {"x": 0.5}} for n in range(3000)]
    limits, output = resource.getrlimit(resource.RLIMIT_FSIZE), tmp_path / "answers.jsonl"
    partial = tmp_path / ".answers.jsonl.partial"
    for size, told in ((100_000, f"; the answers that had room are in {partial}"), (0, "")):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))  # no file grows beyond it
        try:
            with pytest.raises(UserError) as caught:
                minialbert.render(answers, output)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert str(caught.value) == f"{output} cannot be written (File too large){told}"
        assert [path.name for path in tmp_path.iterdir()] == ([partial.name] if told else [])
    assert not output.exists()


def test_the_name_of_an_output_tells_its_format(tmp_path):
    for name, format in (("a.CSV", "csv"), ("a.jsonl", "jsonl"), ("a.conll", "conll"), ("a.page", "html")):
        minialbert.render(ANSWERS, tmp_path / name)
        assert (tmp_path / name).read_bytes().decode() == minialbert.render(ANSWERS, format=format)
    for ending in ("tsv", "xlsx", "parquet"):
        with pytest.raises(UserError, match=f"answers are not written as {ending}: end its name with .csv"):
            minialbert.render(ANSWERS, tmp_path / f"b.{ending}")
    minialbert.render(ANSWERS, tmp_path / "b.tsv", format="csv")


def test_an_unknown_format_is_refused_and_a_file_kept(tmp_path):
    for format, output in (("xml", tmp_path / "a"), ("brat", None)):
        with pytest.raises(
            UserError,
            match="expected table, json, jsonl, csv, html, label-studio, doccano, conll, or brat with",
        ):
            minialbert.render(ANSWERS, output, format=format)
    assert minialbert.render(ANSWERS, tmp_path / "page.html") == ""
    with pytest.raises(UserError, match="exists"):
        minialbert.render(ANSWERS, tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == minialbert.render(ANSWERS)
