"""A word and its tag a line: columns of CoNLL-U, documents, and the schemes of tags."""

from __future__ import annotations

import json

import pytest

from minialbert.data.convert_data import convert_data, read_documents
from minialbert.data.formats import fit
from minialbert.data.formats.documents import Document
from minialbert.data.tables import load_table

CONLLU = """# newdoc id = news-1
# text = Dr. Wu's cells
1-2\tDr.Wu\t_\t_\t_\t_\t_\t_\t_\t_
1\tDr.\tdr\tX\t_\t_\t0\t_\t_\tNER=O
2\tWu\twu\tX\t_\t_\t0\t_\t_\tNER=B-PER|SpaceAfter=No
3\t's\ts\tX\t_\t_\t0\t_\t_\t_

# newdoc
1\tcells\tcell\tX\t_\t_\t0\t_\t_\tNER=B-CELL
"""
UNER = "# sent_id = a\n1\tWu\tB-PER\t-\tme\n2\tsleeps\tO\t-\tme\n\n"


def read(path):
    (documents,) = read_documents(path, []).values()
    return documents


def test_conll_u_has_tags_in_its_last_column_or_beside_the_annotator(tmp_path):
    path = tmp_path / "train.conllu"
    path.write_text(CONLLU)
    first, second = read(path)
    assert (first.id, first.text, second.id, second.text) == ("news-1", "Dr. Wu's", None, "cells")
    assert [(one.label, one.parts) for one in first.entities] == [("PER", ((4, 6),))]
    assert [row.tags for row in load_table(path, "token").splits["train"]] == [
        ("O", "B-PER", "O"),
        ("B-CELL",),
    ]
    path = tmp_path / "train.iob2"
    path.write_text(UNER)
    task = load_table(path, "token", labels=["O", "B-PER", "I-PER"])
    assert task.splits["train"][0].tags == ("B-PER", "O")
    assert "train: tags are read from column 3, since the last has none" in task.notes


def test_sentences_of_a_document_stay_together(tmp_path):
    path = tmp_path / "train.conll"
    body = "".join(
        f"-DOCSTART- -X- -X- O\n\nin NN B-PP O\nBonn{n} NNP B-NP B-LOC\n\nhe NN B-NP B-PER\n\n"
        for n in range(9)
    )
    path.write_text(body)
    assert [one.text for one in read(path)][:2] == ["in Bonn0\nhe", "in Bonn1\nhe"]
    rows = load_table(path, "token").splits["train"]
    assert len({row.group for row in rows}) == 9 and rows[0].group == rows[1].group != rows[2].group


def test_a_text_without_a_word_is_counted():
    notes = []
    splits = {"train": [Document(" ", ()), Document("a", ())], "test": [Document("", ())]}
    assert list(fit(splits, "conll", "refuse", notes)) == ["train", "test"]
    assert notes == ["left out, since CoNLL cannot hold them: texts without a word (2)"]


@pytest.mark.parametrize("scheme", ["iob2", "conllu", "bioes"])
def test_documents_of_one_id_that_follow_each_other_are_two(tmp_path, scheme):
    rows = [{"id": "a", "text": text, "spans": [[0, 1, "X"]]} for text in ("x y", "x y", "z")]
    made = convert_data(rows, tmp_path / "a.conll", format=scheme)
    notes = []
    (found,) = read_documents(made.output, notes).values()
    assert [(one.id, one.text, len(one.entities)) for one in found] == [
        ("a", text, 1) for text in ("x y", "x y", "z")
    ]
    assert notes[-1] == "train: 2 documents have the id of an earlier one, as 'a'; all are kept"
    assert {row.group for row in load_table(made.output, "token").splits["train"]} == {"a"}


@pytest.mark.parametrize(
    ("scheme", "tags"),
    [
        ("iob1", "I-A I-A B-A I-B O I-A"),
        ("iob2", "B-A I-A B-A B-B O B-A"),
        ("bioes", "B-A E-A S-A S-B O S-A"),
        ("bilou", "B-A L-A U-A U-B O U-A"),
    ],
)
def test_schemes(tmp_path, scheme, tags):
    source = tmp_path / "a.jsonl"
    spans = [[0, 3, "A"], [4, 5, "A"], [6, 7, "B"], [10, 11, "A"]]
    source.write_text(json.dumps({"text": "a b c d e f", "spans": spans}))
    made = convert_data(source, tmp_path / "a.conll", format=scheme)
    lines = [line.split("\t") for line in made.output.read_text().splitlines() if "\t" in line]
    assert " ".join(tag for _, tag in lines) == tags
    assert [(one.label, one.parts) for one in read(made.output)[0].entities] == [
        (label, ((start, end),)) for start, end, label in spans
    ]


def test_words_are_the_files_own_where_it_has_them(tmp_path):
    source = tmp_path / "a.iob2"
    source.write_text("beta-blocker\tB-Drug\n5-FU\tB-Drug\n\nb.i.d.\tO\n\n")
    made = convert_data(source, tmp_path / "b.conll", format="bioes")
    text = "".join(line for line in made.output.read_text().splitlines(keepends=True) if line[0] != "#")
    assert text == "beta-blocker\tS-Drug\n5-FU\tS-Drug\n\nb.i.d.\tO\n\n"
