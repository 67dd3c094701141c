"""spaCy's DocBin, where spaCy is installed; its JSON needs nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minialbert.data.convert_data import convert_data, read_documents
from minialbert.errors import UserError

SAMPLES = Path(__file__).parent / "samples"


def read(path):
    (documents,) = read_documents(path, []).values()
    return documents


def test_a_doc_bin_is_read_and_written(tmp_path):
    pytest.importorskip("spacy")
    first, nested = read(SAMPLES / "sample.spacy")
    assert [(one.label, first.text[one.start : one.end]) for one in first.entities] == [
        ("Chemical", "Naloxone"), ("Chemical", "clonidine"), ("Disease", "heart failure")
    ]  # fmt: skip
    assert first.labels == ("animal",)
    assert [nested.text[one.start : one.end] for one in nested.entities] == ["heart", "heart failure"]
    rows = [
        {
            "id": "a",
            "text": "25mg  of\n\nx",
            "spans": [[0, 2, "N"], [2, 4, "U"]],
            "ward": "B",
            "annotator": "7",
        },
        {"id": "b", "text": "a b", "spans": [[0, 3, "N"], [2, 3, "U"]], "ward": "A", "annotator": "8"},
        {"id": "e", "text": "a b", "spans": [{"start": 2, "end": 3, "label": "U", "identifier": "Q1"}]},
        {"id": "c", "text": "two", "label": ["x"]},
    ]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    made = convert_data(source, tmp_path / "out.spacy", format="spacy")
    assert made.notes == () and read(made.output) == read(source)
    source.write_text('{"text": "a  b", "spans": [[0, 2, "X"]]}')
    with pytest.raises(UserError, match="a span that begins or ends in whitespace"):
        convert_data(source, tmp_path / "x.spacy", format="spacy")
    source.rename(tmp_path / "broken.spacy")
    with pytest.raises(UserError, match=r"broken.spacy: not readable as spaCy's DocBin"):
        read(tmp_path / "broken.spacy")


def test_json_with_words_alone(tmp_path):
    tokens = [{"orth": "New", "ner": "B-LOC"}, {"orth": "York", "ner": "L-LOC"}, {"orth": ".", "ner": "-"}]
    record = [{"id": 3, "paragraphs": [{"sentences": [{"tokens": tokens}]}]}]
    path = tmp_path / "train.json"
    path.write_text(json.dumps(record))
    (document,) = read(path)
    assert (document.text, document.id) == ("New York .", "3")
    assert [(one.label, one.parts) for one in document.entities] == [("LOC", ((0, 8),))]
    record[0]["paragraphs"][0]["raw"] = "New Haven ."
    path.write_text(json.dumps(record))
    with pytest.raises(
        UserError, match=r"train.json:1: the token 'York' does not stand in the text after character 3"
    ):
        read(path)
