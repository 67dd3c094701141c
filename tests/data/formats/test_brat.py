"""brat's folders: splits, and lines that are none of its own."""

from __future__ import annotations

import pytest

from minialbert.data.convert_data import convert_data, read_documents
from minialbert.data.tables import load_table
from minialbert.errors import UserError


def put(folder, name, text, *lines):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.txt").write_text(text, encoding="utf-8")
    (folder / f"{name}.ann").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return folder


def test_folders_are_splits_and_what_tags_cannot_say_is_counted(tmp_path):
    lines = ("T1\tA 0 1;4 5\ta c", "T2\tB 2 3\tb", "R1\tof Arg1:T1 Arg2:T2", "#1\tAnnotatorNotes T1\tsure?")
    put(tmp_path / "train", "x", "a b c\nd", "T1\tA 4 5;6 7\tc d", "T2\tB 2 3\tb")
    put(tmp_path / "train" / "more", "y", "a b c\nd", *lines)
    put(tmp_path / "dev", "z", "a b c\nd", "T1\tA 4 5\tc", "T2\tB 2 3\tb")
    (tmp_path / "dev" / "w.txt").write_text("nobody annotated this")
    put(tmp_path / "old", "v", "a b c\nd", "T1\tA 4 5\tc")
    task = load_table(tmp_path, "token")
    assert [row.tags for row in task.splits["train"]] == [("O", "B-B", "O", "O"), ("O", "B-B", "B-A", "I-A")]
    assert task.columns == "read as brat: text, spans; left out 'id'"
    place = tmp_path / "train" / "more" / "y.ann"
    parts = f"entities in several parts, since a word has one tag (the first: {place}:1) (1)"
    assert task.notes[:3] == (
        f"{tmp_path.name}: left out old/",
        f"train: left out: relations (1), comments (1), {parts}",
        "validation: left out: texts without an .ann file (1)",
    )


def test_a_mark_that_programs_skip_at_the_beginning_of_a_file_keeps_its_place(tmp_path):
    rows = [{"id": "a", "text": "\ufeffEbola \ufeff", "spans": [[0, 6, "V"]]}]
    made = convert_data(rows, tmp_path / "out", format="brat")
    text = (made.output / "a.txt").read_text(encoding="utf-8")
    assert (made.output / "a.ann").read_text(encoding="utf-8") == "T1\tV 0 6\t Ebola\n"
    assert text[0:6] == " Ebola" and text == " Ebola \ufeff"
    assert made.notes[0].startswith("byte order marks at the beginning of 1 texts became spaces")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("T1 A 0 1 a", "a.ann:1: expected T1<TAB>TYPE START END<TAB>text, found 'T1 A 0 1 a'"),
        ("T1\tA 0 x\ta", "a.ann:1: expected T1<TAB>TYPE"),
        ("T1\tA 3 3\t", "a.ann:1: the entity 3-3 (A) is empty or outside the text, which has 5 characters"),
    ],
)
def test_a_wrong_line_is_told(tmp_path, line, message):
    put(tmp_path, "a", "a b c", line)
    with pytest.raises(UserError) as caught:
        read_documents(tmp_path, [])
    assert message in str(caught.value)


def test_a_text_that_is_not_there(tmp_path):
    put(tmp_path, "a", "a b c")
    (tmp_path / "a.txt").unlink()
    with pytest.raises(UserError, match=r"a.ann: there is no a.txt beside it"):
        read_documents(tmp_path, [])


def test_texts_or_lines_alone_are_told(tmp_path):
    put(tmp_path / "train", "a", "a b c", "T1\tA 0 1\ta")
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "b.txt").write_text("nobody annotated this")
    with pytest.raises(UserError, match=r"0 documents; .*; left out: texts without an .ann file \(1\)"):
        read_documents(tmp_path, [])
    with pytest.raises(UserError, match=r"a.ann: brat's files are read as a folder"):
        read_documents(tmp_path / "train" / "a.ann", [])


def test_an_empty_text_is_kept_by_files_and_left_out_by_tasks(tmp_path):
    put(tmp_path / "in", "a", "a b c", "T1\tA 0 1\ta")
    put(tmp_path / "in", "b", "")
    task = load_table(tmp_path / "in", "token")
    assert [row.text for row in task.splits["train"]] == ["a b c"] and task.notes == (
        "train: empty texts left out: 1",
    )
    made = convert_data(tmp_path / "in", tmp_path / "out.jsonl", format="doccano")
    assert [one.text for one in read_documents(made.output, [])["train"]] == ["a b c", ""]


def test_a_mark_of_byte_order_is_counted_or_not_as_quotes_show(tmp_path):
    put(tmp_path, "a", "\ufeffEbola is a virus", "T1\tV 1 6\tEbola", "T2\tV 12 17")
    put(tmp_path, "b", "\ufeffEbola is a virus", "T1\tV 0 5\tEbola", "T2\tV 11 16\tvirus")
    notes = []
    for one in read_documents(tmp_path, notes)["train"]:
        assert [one.text[span.start : span.end] for span in one.spans] == ["Ebola", "virus"]
    assert notes[0] == f"train: {tmp_path / 'a.ann'}: offsets count the mark of byte order, and are read so"


def test_folders_at_any_depth_are_one_rule(tmp_path):
    for split in ("train", "dev"):
        for patient in ("1", "2"):
            put(
                tmp_path / "corpus" / "v2" / split / f"patient-{patient}",
                "note",
                "a b c",
                f"T1\tA{patient} 0 1\ta",
            )
    for given in (tmp_path / "corpus", tmp_path / "corpus" / "v2"):
        found = read_documents(given, [])
        assert {name: [one.id for one in documents] for name, documents in found.items()} == {
            "train": ["patient-1/note", "patient-2/note"],
            "validation": ["patient-1/note", "patient-2/note"],
        }
        assert [one.entities[0].label for one in found["train"]] == ["A1", "A2"]
    made = convert_data(tmp_path / "corpus", tmp_path / "out", format="brat")
    assert [one.id for one in read_documents(made.output, [])["train"]] == [
        "patient-1_note",
        "patient-2_note",
    ]
    put(tmp_path / "corpus" / "other" / "deep", "note", "a b c", "T1\tA 0 1\ta")
    assert set(read_documents(tmp_path / "corpus", [])) == {"train"}  # two folders, neither a split


def test_hidden_files_are_no_documents_and_suffixes_have_any_case(tmp_path):
    put(tmp_path / "train" / ".ipynb_checkpoints", "a", "a b c", "T1\tB 0 1\ta")
    put(tmp_path / "train", "._a", "Mac", "T1\tB 0 1\tM")
    put(tmp_path / "train", "a", "a b c", "T1\tA 0 1\ta")
    for suffix in ("txt", "ann"):
        (tmp_path / "train" / f"a.{suffix}").rename(tmp_path / "train" / f"a.{suffix.upper()}")
    notes = []
    (document,) = read_documents(tmp_path, notes)["train"]
    assert (document.id, document.spans[0].label) == ("a", "A")
    assert notes == ["train: read as brat"]
    assert [one.id for one in read_documents(tmp_path / "train", [])["train"]] == ["a"]


def test_tables_named_as_splits_are_meant_rather_than_a_folder_beside_them(tmp_path):
    put(tmp_path / "raw" / "deep", "a", "a b c", "T1\tA 0 1\ta")
    (tmp_path / "train.jsonl").write_text('{"text": "d e", "spans": [[0, 1, "B"]]}\n')
    (document,) = read_documents(tmp_path, [])["train"]
    assert document.text == "d e"
    (document,) = read_documents(tmp_path, [], read_as="brat")["train"]
    assert (document.text, document.id) == ("a b c", "raw/deep/a")


def test_a_text_that_was_not_fetched_is_told(tmp_path):
    put(tmp_path, "a", "version https://git-lfs.github.com/spec/v1\n", "T1\tA 0 7\tversion")
    with pytest.raises(UserError, match="a.txt is a pointer of Git LFS"):
        read_documents(tmp_path, [])
