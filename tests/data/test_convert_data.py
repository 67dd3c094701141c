"""Any format into any: round trips, what a target cannot hold, splits, and what is wrong with the input."""

from __future__ import annotations

import json
import math

import pytest

from minialbert.data.convert_data import convert_data, read_documents
from minialbert.data.formats import FORMATS
from minialbert.data.tables import load_table
from minialbert.errors import UserError

TEXT = "Ebola causes fever\nand heart failure in \U0001f600 men ."
ROWS = [
    {
        "id": "d1", "text": TEXT, "annotator": "7", "ward": "B",
        "spans": [
            {"start": 0, "end": 5, "label": "Virus", "id": "T1"},
            {"start": 13, "end": 18, "label": "Sign", "id": "T2", "code": "R50"},
            {"start": 23, "end": 36, "label": "Sign", "id": "T3"},
        ],
    },
    {"id": "d2", "text": "No finding here today .", "annotator": "8", "ward": "A", "spans": []},
]  # fmt: skip


def write_rows(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def entities(document):
    return None if document.entities is None else [(one.label, one.parts) for one in document.entities]


def read(path, **options):
    notes: list[str] = []
    (documents,) = read_documents(path, notes, **options).values()
    return sorted(documents, key=lambda one: str(one.id)), notes


def there(tmp_path, rows, format, **options):
    source = write_rows(tmp_path / "given.jsonl", rows)
    target = tmp_path / (f"out-{format}" + FORMATS[format].suffix)
    return target, convert_data(source, target, format=format, **options)


@pytest.mark.parametrize("format", sorted(set(FORMATS) - {"spacy"}))
def test_a_round_trip_keeps_what_the_format_holds(tmp_path, format):
    target, made = there(tmp_path, ROWS, format)
    assert made.documents == {"train": 2} and made.output == target
    (first, second), notes = read(target)
    assert first.text == (TEXT.replace("\n", " ") if format == "pubtator" else TEXT)
    assert second.text == ROWS[1]["text"]
    assert entities(first) == [("Virus", ((0, 5),)), ("Sign", ((13, 18),)), ("Sign", ((23, 36),))]
    assert entities(second) == []
    holds = FORMATS[format].holds
    assert (first.id, second.id) == (("d1", "d2") if "id" in holds else (None, None))
    assert (first.annotator, second.annotator) == (("7", "8") if "annotator" in holds else (None, None))
    assert first.meta.get("ward") == ("B" if "meta" in holds else None)
    if "details" in holds and format != "pubtator":
        assert first.entities[1].meta == {"code": "R50"}
    said = " ".join(made.notes)
    for what, word in {"id": "ids (2)", "annotator": "annotators (2)", "meta": "'ward' of texts (2)"}.items():
        assert (word in said) == (what not in holds)
    # A second trip changes nothing any more.
    again = convert_data(target, tmp_path / f"again{FORMATS[format].suffix}", format=format)
    assert [entities(one) for one in read(again.output)[0]] == [entities(first), []]
    if format not in ("conll2003", "brat"):
        assert again.output.read_bytes() == target.read_bytes()


@pytest.mark.parametrize("format", ["brat", "bioc", "bioc-json"])
def test_entities_in_several_parts_and_their_ids_survive(tmp_path, format):
    folder = tmp_path / "given"
    folder.mkdir()
    (folder / "a.txt").write_text("left and right kidney")
    (folder / "a.ann").write_text(
        "T3\tSite 0 4;15 21\tleft kidney\nT5\tSite 9 21\tright kidney\nR1\tPart Arg1:T3 Arg2:T5\n"
    )
    made = convert_data(folder, tmp_path / f"out{FORMATS[format].suffix}", format=format)
    (document,), _ = read(made.output)
    assert entities(document) == [("Site", ((0, 4), (15, 21))), ("Site", ((9, 21),))]
    assert [one.id for one in document.entities] == ["T3", "T5"] and document.id == "a"
    if format == "brat":
        assert (made.output / "a.ann").read_bytes() == (folder / "a.ann").read_bytes()
    flat = convert_data(made.output, tmp_path / "flat.conll", format="conll")
    assert "entities in several parts (1)" in " ".join(flat.notes)
    assert (tmp_path / "flat.conll").read_text() == (
        "# newdoc id = a\nleft\tO\nand\tO\nright\tB-Site\nkidney\tI-Site\n\n"
    )


def test_overlaps_are_kept_chosen_or_refused(tmp_path):
    nested = [
        {"id": "n", "text": "chronic kidney disease", "spans": [[8, 14, "Site"], [0, 22, "Disease"]]},
        {"id": "o", "text": "none", "spans": []},
    ]
    both = [("Site", ((8, 14),)), ("Disease", ((0, 22),))]
    assert entities(read(there(tmp_path, nested, "doccano")[0])[0][0]) == both
    with pytest.raises(
        UserError, match=r"given.jsonl:1: entities overlap, and CoNLL has one tag for a word: .* layers"
    ):
        there(tmp_path, nested, "conll")
    assert not (tmp_path / "out-conll.conll").exists()
    target, made = there(tmp_path, nested, "conll", overlaps="longest")
    assert entities(read(target)[0][0]) == [("Disease", ((0, 22),))]
    assert "entities that overlap a kept one (longest) (1)" in made.notes[0]
    twice = [{"id": "t", "text": "chronic pain", "spans": [[8, 12, "Sign"], [8, 12, "Sign"]]}]
    assert "repeated entities (1)" in there(tmp_path, twice, "iob2")[1].notes[0]
    with pytest.raises(
        UserError, match=r"given.jsonl:2: doccano has entities or classes, and this text has both"
    ):
        rows = [{"text": "a", "label": ["x"]}, {"text": "a", "spans": [[0, 1, "A"]], "label": ["x"]}]
        there(tmp_path, rows, "doccano", overwrite=True)
    assert not list(tmp_path.glob(".*"))  # nothing half-written


@pytest.mark.parametrize(
    ("format", "found"),
    [
        ("conll", "a_b|c d"),
        ("conll2003", "a_b|c_d"),
        ("conllu", "a_b_c d"),
        ("pubtator", "a_b|c d"),
        ("brat", "a_b_c_d"),
    ],
)
def test_a_type_that_would_end_a_cell_is_changed_and_counted(tmp_path, format, found):
    rows = [{"text": "pain", "spans": [[0, 4, "a\tb|c d"]]}, {"text": "none", "spans": []}]
    target, made = there(tmp_path, rows, format)
    assert sorted(one.label for document in read(target)[0] for one in document.entities) == [found]
    assert any(
        "characters of types, which became _ (1)" in note or "names that" in note for note in made.notes
    )


def test_overlaps_become_layers_where_a_word_has_one_tag(tmp_path):
    spans = [[8, 14, "Site"], [0, 22, "Disease"], [0, 14, "Sign"], [28, 32, "Sign"], [8, 14, "Site"]]
    text = "chronic kidney disease with pain"
    rows = [{"id": "n", "text": text, "spans": spans}, {"id": "o", "text": "none", "spans": []}]
    source = write_rows(tmp_path / "given.jsonl", rows)
    made = convert_data(source, tmp_path / "out", format="conll", overlaps="layers")
    assert made.documents == {"layer-1/train": 2, "layer-2/train": 2, "layer-3/train": 2}
    assert made.notes[-4:] == (
        "layer-1: 2 train entities", "layer-2: 1 train entities", "layer-3: 2 train entities",
        "left out, since CoNLL cannot hold them: repeated entities (1)",
    )  # fmt: skip
    expected = {
        1: [("Disease", ((0, 22),)), ("Sign", ((28, 32),))],
        2: [("Sign", ((0, 14),))],
        3: [("Site", ((8, 14),))],
    }
    for layer, those in expected.items():
        first, second = read(tmp_path / "out" / f"layer-{layer}")[0]
        assert entities(first) == those and entities(second) == []
    together = convert_data(source, tmp_path / "all", format="brat", overlaps="layers")
    assert "brat can hold entities that overlap: all are written together, not in layers" in together.notes
    assert len(read(tmp_path / "all")[0][0].entities) == 5


@pytest.mark.parametrize("format", ["doccano", "prodigy", "label-studio", "jsonl"])
def test_classes_of_texts(tmp_path, format):
    rows = [{"id": "a", "text": "one", "label": ["x", "y"]}, {"id": "b", "text": "two", "label": ["z"]}]
    (first, second), _ = read(there(tmp_path, rows, format)[0])
    assert (first.labels, second.labels) == (("x", "y"), ("z",))
    assert first.entities is None
    with pytest.raises(UserError, match=r"given.jsonl:1: brat has no classes of texts"):
        there(tmp_path, rows, "brat")


def test_texts_that_nobody_annotated_stay_apart_from_those_without_an_entity(tmp_path):
    rows = [{"id": "a", "text": "one", "spans": []}, {"id": "b", "text": "two"}]
    (first, second), _ = read(there(tmp_path, rows, "label-studio")[0])
    assert (first.entities, second.entities) == ((), None)
    assert "that a text is not annotated (1)" in " ".join(there(tmp_path, rows, "conll")[1].notes)


def test_splits_keep_patients_together_and_every_class_in_each_part(tmp_path):
    rows = [
        {"id": f"d{n}", "text": f"patient number {n} has a{n} today", "spans": [[0, 7, "AB"[n % 2]]], "p": n // 4}
        for n in range(80)
    ]  # fmt: skip
    source = write_rows(tmp_path / "all.jsonl", rows)
    made = convert_data(source, tmp_path / "out", format="jsonl", split=(70, 15, 15), group="p")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "test.jsonl", "train.jsonl", "validation.jsonl"
    ]  # fmt: skip
    parts = read_documents(tmp_path / "out", [])
    patients = [{one.meta["p"] for one in documents} for documents in parts.values()]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 20
    assert sum(made.documents.values()) == 80 and 8 <= made.documents["test"] <= 16
    assert all({one.entities[0].label for one in part} == {"A", "B"} for part in parts.values())
    assert made.notes[-1] == "split at random by class, seed 0; those of one p stay together"
    same = convert_data(source, tmp_path / "same", format="jsonl", split=(70, 15, 15), group="p")
    other = convert_data(source, tmp_path / "other", format="jsonl", split=(70, 15, 15), group="p", seed=1)
    first, second, third = ((one.output / "test.jsonl").read_bytes() for one in (made, same, other))
    assert first == second != third
    with pytest.raises(UserError, match=r"all.jsonl:1: no 'ward' to group by; found id, p"):
        convert_data(source, tmp_path / "x", format="jsonl", split=(8, 2), group="ward")
    with pytest.raises(UserError, match="the data have splits already, train, validation, test"):
        convert_data(tmp_path / "out", tmp_path / "x", format="jsonl", split=(8, 2))


def test_what_cannot_be_done_is_one_line(tmp_path):
    source = write_rows(tmp_path / "all.jsonl", ROWS)
    with pytest.raises(UserError, match="no format 'word' is written: expected one of brat, pubtator"):
        convert_data(source, tmp_path / "x", format="word")
    with pytest.raises(UserError, match="no format is called 'word'"):
        convert_data(source, tmp_path / "x", format="brat", read_as="word")
    with pytest.raises(UserError, match="split 1: expected the shares"):
        convert_data(source, tmp_path / "x", format="brat", split=(1,))
    with pytest.raises(UserError, match="split 80, nan: expected the shares"):
        convert_data(source, tmp_path / "x", format="jsonl", split=(80, math.nan))
    (tmp_path / "there.jsonl").touch()
    with pytest.raises(UserError, match="exists: give --overwrite"):
        convert_data(source, tmp_path / "there.jsonl", format="jsonl")


def test_what_is_read_is_never_replaced(tmp_path):
    train = write_rows(tmp_path / "train.jsonl", ROWS)
    before = train.read_bytes()
    for data, output in ((train, train), (train, tmp_path), (tmp_path, tmp_path), (tmp_path, train)):
        with pytest.raises(UserError, match="would replace what is read"):
            convert_data(data, output, format="jsonl", overwrite=True)
    assert train.read_bytes() == before
    brat = tmp_path / "brat"
    convert_data(train, brat, format="brat")
    with pytest.raises(UserError, match="would replace what is read"):
        convert_data(brat, brat, format="brat", overwrite=True)
    convert_data(train, tmp_path, format="conll", overwrite=True)  # beside what is read
    assert (tmp_path / "train.conll").exists()


def test_what_is_said_of_an_entity_is_held_or_counted(tmp_path):
    span = {"start": 0, "end": 5, "label": "V", "identifier": "D1", "negated": True, "score": 0.5}
    rows = [{"id": "a", "text": "Ebola spreads.", "spans": [span]}]
    assert (
        "'negated' of entities (1), 'score' of entities (1)" in formats_notes(rows, tmp_path, "pubtator")[0]
    )
    counted = "'identifier' of entities (1), 'negated' of entities (1), 'score' of entities (1)"
    for name in ("conll", "brat", "doccano"):
        assert counted in formats_notes(rows, tmp_path, name)[0]
    for name in ("bioc", "label-studio", "prodigy", "jsonl"):
        assert not formats_notes(rows, tmp_path, name)
    # Readers of PubTator take a line of five columns for a relation.
    rows[0]["spans"][0].pop("identifier")
    made = convert_data(rows, tmp_path / "b.pubtator", format="pubtator")
    assert "a\t0\t5\tEbola\tV\t-\n" in made.output.read_text()
    assert not read(made.output)[0][0].entities[0].meta


def formats_notes(rows, folder, name):
    return convert_data(rows, folder / name, format=name).notes


@pytest.mark.parametrize("column", ["document", "lines", "glued", "document_start"])
def test_a_column_of_any_name_is_a_column(column):
    rows = [{"tokens": ["a", "b"], "tags": ["B-X", "O"], column: 3}]
    assert entities(read(rows)[0][0]) == [("X", ((0, 1),))]
    assert load_table({"train": rows}, "token").splits["train"][0].tags == ("B-X", "O")
    texts = [{"text": "a b", "spans": [[0, 1, "X"]], column: "d1"}]
    assert read(texts)[0][0].meta == {column: "d1"}
    assert load_table({"train": texts}, "token").splits["train"][0].tags == ("B-X", "O")


@pytest.mark.parametrize("column", ["label", "labels", "Class", "gold_label"])
def test_classes_are_found_by_their_usual_names(tmp_path, column):
    path = tmp_path / "a.csv"
    path.write_text(f"text,{column}\na,\"['x', 'y']\"\nb,z\n")
    assert [one.labels for one in read(path)[0]] == [("x", "y"), ("z",)]
    path = write_rows(tmp_path / "b.jsonl", [{"words": ["a", "b"], "labels": ["B-X", "O"]}])
    assert [entities(one) for one in read(path)[0]] == [[("X", ((0, 1),))]]


def test_words_that_are_empty_are_refused():
    with pytest.raises(UserError, match="row 1: word 2 is empty in column 'tokens'"):
        read([{"tokens": ["a", " "], "tags": ["B-X", "B-X"]}])


def test_an_input_that_fails_late_leaves_no_folder_and_one_that_was_there(tmp_path):
    good = [{"text": "a b", "spans": [[0, 1, "X"]]}] * 5
    rows = [*good, {"text": "a b", "spans": [[0, 1, "X"]], "label": "y"}]
    (tmp_path / "mine").mkdir()
    for place in ("new/deep/out.jsonl", "new/deep", "mine/out.jsonl", "mine"):
        with pytest.raises(UserError, match="row 6: doccano has entities or classes, and this text has both"):
            convert_data(rows, tmp_path / place, format="doccano")
    assert [path.name for path in tmp_path.rglob("*")] == ["mine"]


def test_a_text_with_two_ids_stays_in_one_part(tmp_path):
    rows = [
        {"id": f"d{at}", "text": f"text {at // 2}", "spans": [[0, 4, "AB"[at // 2 % 2]]]} for at in range(40)
    ]
    made = convert_data(rows, tmp_path / "parts", format="jsonl", split=(60, 20, 20))
    parts = [{one.text for one in part} for part in read_documents(made.output, []).values()]
    assert [len(part) for part in parts] == [12, 4, 4] and len(set.union(*parts)) == 20


def test_an_extension_that_is_not_known_is_told_all_that_are(tmp_path):
    with pytest.raises(UserError, match=r"eng.train: unknown extension; .* \.conll .* \.pubtator .* \.spacy"):
        read(write_rows(tmp_path / "eng.train", []))
