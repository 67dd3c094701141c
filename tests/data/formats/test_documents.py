"""Every format's sample, written by the tool's own library, and what is wrong with a file, with file and row."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import pytest

from minialbert.data.convert_data import convert_data, read_documents
from minialbert.data.formats import NAMES
from minialbert.data.formats.documents import Document, Entity, Span
from minialbert.errors import UserError

SAMPLES = Path(__file__).parent / "samples"
FOUND = [("Chemical", "Naloxone"), ("Chemical", "clonidine"), ("Disease", "heart failure")]


def read(path, **options):
    notes: list[str] = []
    (documents,) = list(read_documents(path, notes, **options).values())[:1]
    return documents, notes


def words(document):
    return [
        (one.label, " ".join(document.text[start:end] for start, end in one.parts))
        for one in document.entities or ()
    ]


@pytest.mark.parametrize(
    ("name", "title", "more"),
    [
        ("bioc.xml", "BioC's XML", [("Disease", "kidney failure")]),
        ("bioc.json", "BioC's JSON", [("Disease", "kidney failure")]),
        ("brat", "brat", [("Disease", "kidney failure")]),
        ("sample.pubtator", "PubTator", []),
        ("spacy.json", "spaCy's JSON", []),
        ("label-studio.json", "Label Studio", []),
        ("label-studio-min.json", "Label Studio's JSON-MIN", []),
    ],
)
def test_a_sample_is_recognised_and_read(name, title, more):
    documents, notes = read(SAMPLES / name)
    first = documents[0]
    assert first.text.replace("\n", " ").startswith(
        "Naloxone reverses the effect of clonidine. In rats, kidney and"
    )
    assert words(first) == FOUND + more
    assert notes[-1] == f"train: read as {title}"
    assert [one.strip() for one in notes[:-1]] == (
        ["train: left out: relations (1)"] if "bioc" in name else []
    )


def test_what_samples_say_beside_entities():
    bioc = read(SAMPLES / "bioc.xml")[0][0]
    assert bioc == read(SAMPLES / "bioc.json")[0][0]
    assert (bioc.id, bioc.meta, bioc.entities[0].meta) == (
        "1",
        {"journal": "Sample"},
        {"identifier": "D009270"},
    )
    assert bioc.passages == ((0, 42, {"type": "title"}), (43, 88, {"type": "abstract"}))
    tator = read(SAMPLES / "sample.pubtator")[0]
    assert [one.id for one in tator] == ["1", "2"] and tator[0].entities[0].meta == {"identifier": "D009270"}
    tasks = read(SAMPLES / "label-studio.json")[0]
    assert [(one.id, one.annotator, one.labels, one.meta) for one in tasks] == [
        ("7", "3", ("animal",), {"ward": "B"}), ("8", "4", ("human",), {"ward": "A"})
    ]  # fmt: skip
    assert tasks[1].entities == ()
    short = read(SAMPLES / "label-studio-min.json")[0]
    assert (short[0].annotator, short[0].meta["species"], short[1].entities) == ("3", "animal", ())
    assert read(SAMPLES / "spacy.json")[0][0].labels == ("animal",)


def test_words_of_label_studio_and_of_the_datasets_library():
    first, *_ = read(SAMPLES / "label-studio.conll")[0]
    assert words(first) == [
        ("Chemical", "Naloxone"),
        ("Chemical", "clonidine."),
        ("Disease", "heart failure"),
    ]
    for folder in ("datasets", "parquet"):
        (document,) = read(SAMPLES / folder)[0]
        assert (document.text, words(document)) == ("Naloxone works .", [("Chemical", "Naloxone")])


def test_what_was_read_goes_back_unchanged(tmp_path):
    for name, format in (
        ("bioc.xml", "bioc"),
        ("bioc.json", "bioc-json"),
        ("brat", "brat"),
        ("sample.pubtator", "pubtator"),
    ):
        given = read(SAMPLES / name)[0]
        made = convert_data(SAMPLES / name, tmp_path / name, format=format)
        assert not [note for note in made.notes if "since" in note]
        assert read(made.output)[0] == given
    assert (tmp_path / "brat" / "1.ann").read_bytes() == (SAMPLES / "brat" / "1.ann").read_bytes()


def test_entities_touch_their_text():
    document = Document(
        "kidney and heart\nfailure", (Entity("A", ((0, 6), (17, 24))), Entity("B", ((11, 16), (17, 24))))
    )
    assert [(one.start, one.end, one.label) for one in document.spans] == [(11, 24, "B")]


DOCUMENT = {"id": "1", "passages": [{"offset": 0, "text": "a b", "annotations": []}]}
TASK = {"id": 1, "data": {"text": "a b"}, "annotations": [{"result": []}]}


def with_annotation(**changes):
    one = {
        "id": "T1",
        "infons": {"type": "X"},
        "text": "a",
        "locations": [{"offset": 0, "length": 1}],
        **changes,
    }
    return json.dumps(
        {"documents": [{**DOCUMENT, "passages": [{**DOCUMENT["passages"][0], "annotations": [one]}]}]}
    )


def with_result(**changes):
    value = {"start": 0, "end": 1, "text": "a", "labels": ["X"], **changes}
    return json.dumps([{**TASK, "annotations": [{"result": [{"type": "labels", "value": value}]}]}])


XML = (
    '<?xml version="1.0"?>\n{}<collection>\n<document><id>1</id>\n<passage><offset>0</offset><text>a b</text>{}'
    "</passage></document></collection>"
)
INFON = "<infon key='type'>X</infon>"
PRODIGY = '{"text": "a", "spans": [], "answer": "accept", "_task_hash": 1}\n'
QUOTES = "".join(f"1\t{at}\t{at + 2}\t{quote}\tX\n" for at, quote in ((1, "ab"), (4, "cd"), (7, "ef")))
SPANS = [
    {"start": at, "end": at + 2, "text": quote, "label": "X"}
    for at, quote in ((1, "ab"), (4, "cd"), (7, "ef"))
]
BYTES = json.dumps({"text": "ab cd ef.", "spans": SPANS})
BOMB = '<!DOCTYPE collection [<!ENTITY a "aaaa">]>\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.pubtator", "1|t|a b\n1|a|c\n1\t0\t9\ta\tX\n", ":3: the entity 0-9 (X) is empty or outside the text, which"),
        ("t.pubtator", "1|t|a b\n1\t0\t1\n", ":2: expected ID|t|TITLE, ID|a|ABSTRACT"),
        ("t.pubtator", "1|t|a b\n2\t0\t1\ta\tX\n", ":2: expected ID|t|TITLE"),
        ("t.txt", "1|t|a b\n1|a|c\n2|a|d\n", ":3: a second text within document '1': an empty line is missing"),
        ("t.xml", XML.format(BOMB, ""), ":2: entities are declared: a file with entities of its own is not read"),
        ("t.xml", XML.format("", f"<annotation id='1'>{INFON}</annotation>"), "1: the entity  (X) is empty"),
        ("t.xml", XML.format("", "<annotation id='1'/>"), ", annotation 1: the annotation has no infon 'type'"),
        ("t.xml", XML.format("", "<text>"), ":4: not readable as XML (mismatched tag"),
        ("t.xml", "<html></html>", "an XML file of 'html': of XML, BioC's <collection> is read"),
        ("t.json", with_annotation(locations=[{"offset": "x", "length": 1}]), "T1: expected an offset or a length"),
        ("t.json", with_annotation(locations=3), ":1: not a document of BioC (TypeError"),
        ("t.json", with_annotation(locations=[{"offset": 2, "length": 5}]), "annotation T1: the entity 2-7 (X)"),
        ("t.json", with_result(start="0"), ":1: expected a region with start and end (integers)"),
        ("t.json", with_result(end=9), ":1: the entity 0-9 (X) is empty or outside the text, which has 3 characters"),
        ("t.json", json.dumps([TASK | {"annotations": 3}]), ":1: not a task of Label Studio (TypeError"),
        ("t.json", json.dumps([TASK | {"data": {"a": "x", "b": "y"}}]), ":1: expected a text in `data`, under"),
        ("t.json", '[{"text": "a"},\n{"text": }]', ":2: not JSON (Expecting value: line 2 column 10"),
        ("t.json", '{\n"documents": [\n{"id": "1",\n', ":4: not JSON (Expecting"),
        ("t.pubtator", "1|t|a b\n1\t-1\t1\ta\tX\n", ":2: expected ID|t|TITLE"),
        ("t.pubtator", "1|t|a b\n1\t 0\t1\ta\tX\n", ":2: expected ID|t|TITLE"),
        ("t.pubtator", "1|a|a b\n\n1\t0\t1\n", ":3: expected ID|t|TITLE"),
        ("t.pubtator", "1|t|a b\r1|a|c\r1\t0\t1\ta\tX\r", ":1: its lines end with CR alone"),
        ("t.conll", "a\tO\rb\tO\r", ":1: its lines end with CR alone"),
        ("t.pubtator", "1|t|a  b\n1\t1\t3\t  \tX\n", ":2: the entity 1-3 (X) holds only whitespace"),
        ("t.jsonl", '{"text": "a  b", "spans": [[1, 3, "X"]]}', ":1: the entity 1-3 (X) holds only whitespace"),
        ("t.jsonl", PRODIGY + PRODIGY.replace("accept", "skip"), ":2: expected accept, reject or ignore as an answer"),
        ("t.pubtator", "1|t|ab cd ef.\n" + QUOTES, ":2: the entity 1-3 quotes 'ab', where 'b ' stands; so do 3 of 3"),
        ("t.jsonl", BYTES, ":1: the span 1-3 quotes 'ab', where 'b ' stands; so do 3 of 3: offsets count characters"),
        ("t.jsonl", '{"text": "a", "label": [[0, "X"]]}', ":1: expected a span as start, end (integers) and label"),
    ],
)  # fmt: skip
def test_bad_input_is_told_with_file_and_row(tmp_path, name, content, message):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        read_documents(path, [])
    assert str(caught.value).startswith(str(path)) and message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "content", ['{"x": 1}', '{"data": {}, "paragraphs": 3}', '{"data": [], "paragraphs": []}']
)
@pytest.mark.parametrize("name", sorted({*NAMES} - {"table", "spacy"}))
def test_another_file_than_the_format_says_is_told(tmp_path, name, content):
    path = tmp_path / "t.json"
    path.write_text(content)
    with pytest.raises(UserError) as caught:
        read_documents(path, [], read_as=name)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_rows_have_no_format():
    with pytest.raises(UserError, match="rows in memory: these are rows, not a file in the format doccano"):
        read_documents([{"text": "a", "spans": []}], [], read_as="doccano")


def test_characters_that_xml_lacks_are_counted(tmp_path):
    rows = [{"text": "a\r\n\x0bb", "spans": [[4, 5, "X"]]}]
    made = convert_data(rows, tmp_path / "a.xml", format="bioc")
    assert made.notes[-1].endswith("cannot hold them: control characters of texts (1)")
    ((document,), _) = read(made.output)
    assert (document.text, document.spans) == ("a \n b", [Span(4, 5, "X")])


def test_quotes_that_stand_elsewhere_are_noted(tmp_path):
    path = tmp_path / "t.pubtator"
    path.write_text("1|t|a b\n1|a|c\n1\t0\t1\tb\tX\n1\t2\t3\ta\tX\n")
    notes = read(path)[1]
    assert notes[0] == (
        f"train: {path}:3: the entity 0-1 quotes 'b', where 'a' stands: offsets count characters from 0, the end "
        "exclusive (2 such entities)"
    )


@pytest.mark.skipif(find_spec("spacy") is not None, reason="spaCy is installed")
def test_spacy_is_an_extra():
    with pytest.raises(UserError, match=r"reading .spacy files needs spaCy: pip install .*\[spacy\]"):
        read(SAMPLES / "sample.spacy")


def test_annotations_of_a_document_are_those_of_its_text(tmp_path):
    one = {"id": "1", "infons": {"type": "A"}, "text": "b", "locations": [{"offset": 2, "length": 1}]}
    document = {
        "id": "d",
        "passages": [{"offset": 0, "text": "a"}, {"offset": 2, "text": "b"}],
        "annotations": [one],
    }
    (tmp_path / "a.json").write_text(json.dumps({"documents": [document]}))
    (read,) = read_documents(tmp_path / "a.json", [])["train"]
    assert [(read.text, entity.label, entity.parts) for entity in read.entities] == [("a\nb", "A", ((2, 3),))]
