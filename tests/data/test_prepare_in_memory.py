"""Texts in memory become the windows that the same texts in files become."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import datasets
import numpy
import pandas
import pytest

import minialbert.data.prepare as prepare_module
from minialbert.data.corpora import corpus_entries, find_sources
from minialbert.data.prepare import make_windows, prepare, recipe_options
from minialbert.data.window_store import WindowDataset
from minialbert.errors import UserError
from minialbert.recipes.load import apply_overrides, load_recipe

TOKENIZER = Path(__file__).parents[1] / "fixtures" / "tiny-tokenizer"
TEXTS = [f"the cat sat on mat {'and a dog ran ' * (number % 7)}" for number in range(60)]
OPTIONS = {"window_length": 12, "overlap": 4, "held_out_fraction": 0.1, "progress": False, "num_workers": 1}


def windows(corpus, folder, **options):
    make_windows(corpus, TOKENIZER, folder, **{**OPTIONS, **options})
    return {path.name: path.read_bytes() for path in folder.glob("*.bin")}


def refused(corpus, folder, **options):
    with pytest.raises(UserError) as caught:
        make_windows(corpus, TOKENIZER, folder, **{**OPTIONS, **options})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600
    return str(caught.value)


@pytest.fixture(scope="module")
def of_a_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("file")
    (folder / "corpus.txt").write_text("\n".join(TEXTS))
    return windows(folder / "corpus.txt", folder / "w", separator="line")


def rows(field="text"):
    return [{field: text, "number": number} for number, text in enumerate(TEXTS)]


KINDS = {
    "list": lambda: list(TEXTS),
    "tuple": lambda: tuple(TEXTS),
    "dictionaries": rows,
    "iterator": lambda: iter(TEXTS),
    "generator of dictionaries": lambda: (row for row in rows()),
    "with empty ones": lambda: ["", *TEXTS[:30], " \n", None, *TEXTS[30:]],
    "data set": lambda: datasets.Dataset.from_list(rows()),
    "stream": lambda: datasets.Dataset.from_list(rows()).to_iterable_dataset(),
    "frame": lambda: pandas.DataFrame(rows()),
    "column": lambda: datasets.Dataset.from_list(rows())["text"],
    "series": lambda: pandas.Series(TEXTS),
    "series with gaps": lambda: pandas.Series([float("nan"), *TEXTS[:30], None, *TEXTS[30:]]),
    "frame with gaps": lambda: pandas.DataFrame([{"text": None}, *rows()]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_windows_of_the_file(kind, of_a_file, tmp_path):
    assert windows(KINDS[kind](), tmp_path) == of_a_file
    assert len(WindowDataset(tmp_path)) > 60
    (source,) = json.loads((tmp_path / "manifest.json").read_text())["sources"]
    num_bytes = sum(len(text.encode()) for text in TEXTS) + (2 if kind == "with empty ones" else 0)
    assert (source["kind"], source["num_bytes"]) == ("memory", num_bytes)


def test_a_list_and_an_iterator_of_the_same_texts_give_the_same_folder(tmp_path, caplog):
    windows(TEXTS, tmp_path / "list")
    windows(iter(TEXTS), tmp_path / "iterator")
    one, other = ((tmp_path / name / "manifest.json").read_bytes() for name in ("list", "iterator"))
    assert one == other
    caplog.set_level("INFO")
    for corpus in (TEXTS, iter(TEXTS), datasets.Dataset.from_list(rows())):
        assert make_windows(corpus, TOKENIZER, tmp_path / "iterator", **OPTIONS).splits["train"].windows
    assert caplog.text.count("is finished: nothing to do") == 3
    for corpus in (TEXTS[1:], iter(TEXTS[1:])):
        message = refused(corpus, tmp_path / "iterator")
        assert "was prepared with other settings (corpus files (texts in memory (" in message


def test_several_frames_are_one_corpus(of_a_file, tmp_path):
    assert windows([pandas.DataFrame(rows()[:30]), pandas.DataFrame(rows()[30:])], tmp_path) == of_a_file


def test_the_field_of_the_text(of_a_file, tmp_path):
    assert windows(rows("body"), tmp_path / "a", text_field="body") == of_a_file
    message = refused([*rows(), {"body": "x"}], tmp_path / "b")
    assert message == "texts in memory:61: no field 'text'; the fields are: body (text_field)"
    assert "texts in memory:1: the field 'number' is int, not a string" in refused(
        rows(), tmp_path / "b", text_field="number"
    )
    assert "texts in memory:3: expected a text, or a dictionary with the field 'text', found int" in refused(
        [*TEXTS[:2], 3], tmp_path / "b"
    )
    assert "texts in memory:2: the document that starts here is longer than 5e-05 MB; max_document_bytes" in (
        refused([TEXTS[0], "x " * 30], tmp_path / "b", max_document_bytes=50)
    )


def test_files_and_texts_together(tmp_path):
    (tmp_path / "a.txt").write_text("\n".join(TEXTS[:20]))
    whole = windows(TEXTS, tmp_path / "whole")
    for name, corpus in {
        "one": [tmp_path / "a.txt", TEXTS[20:40], datasets.Dataset.from_list(rows()[40:])],
        "two": [str(tmp_path / "a.txt"), iter(TEXTS[20:40]), pandas.DataFrame(rows()[40:])],
    }.items():
        assert windows(corpus, tmp_path / name, separator="line") == whole
        sources = json.loads((tmp_path / name / "manifest.json").read_text())["sources"]
        assert [source["kind"] for source in sources] == ["text", "memory", "memory"]
        assert sources[0]["name"] == "a.txt"


@pytest.mark.parametrize(("kind", "goes_on"), [("list", True), ("data set", True), ("iterator", False)])
def test_a_call_that_was_killed(kind, goes_on, of_a_file, tmp_path, monkeypatch, caplog):
    saves = []
    save = prepare_module._save_progress

    def killed(folder, plan, state):
        save(folder, plan, state)
        saves.append(state.documents)
        if state.documents:
            raise KeyboardInterrupt

    monkeypatch.setattr(prepare_module, "BATCH_DOCUMENTS", 7)
    monkeypatch.setattr(prepare_module, "BATCHES_PER_SAVE", 2)
    with monkeypatch.context() as patch:
        patch.setattr(prepare_module, "_save_progress", killed)
        with pytest.raises(KeyboardInterrupt):
            windows(KINDS[kind](), tmp_path)
    assert saves == [0, 14]
    if goes_on:
        assert "corpus files (texts in memory (" in refused(TEXTS[:-1], tmp_path)
    assert "was prepared with other settings" in refused(KINDS[kind](), tmp_path, overlap=5)
    caplog.set_level("INFO")
    assert windows(KINDS[kind](), tmp_path) == of_a_file
    line = "going on after 14 documents" if goes_on else "texts that are read once begin anew"
    assert caplog.text.count(line) == 1


def test_an_iterator_that_fails_names_the_row_before(tmp_path):
    def texts():
        yield from TEXTS[:2]
        raise OSError("the line broke\nfor good")

    message = refused(texts(), tmp_path)
    assert message == "texts in memory: no row could be read after row 2 (OSError: the line broke)"


# What is a text, and what a place?


def test_strings_alone_are_texts_where_they_look_like_texts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my corpus").mkdir()
    (tmp_path / "my corpus" / "a.txt").write_text("text")
    texts = ["One text.", "Yes", ""]
    assert corpus_entries(texts) == [texts]
    assert list(corpus_entries(iter(texts))[0]) == texts
    too_long_for_a_name = ["words " * 100]
    assert corpus_entries(too_long_for_a_name) == [too_long_for_a_name]
    for places in (
        ["my corpus"],
        ["my corpus", "One text."],
        ["nowhere"],
        ["owner/name"],
        ["no such file.txt", "x y"],
        ["hub:owner/name", "One text."],
        ["/no such/folder"],
        ["~/no such folder"],
        [Path("One text.")],
    ):
        assert corpus_entries(places) == places
        assert corpus_entries(iter(places)) == places
    assert corpus_entries("One text.") == ["One text."]
    with pytest.raises(
        UserError, match=r'no such file or directory: One text. \(or: .*|a text is given as {"text"'
    ):
        find_sources("One text.")


def test_places_in_a_recipe_are_never_texts(tmp_path):
    recipe = load_recipe("default")
    options = recipe_options(recipe)
    assert options["window_length"] == recipe.data.window_length and options["corpus"] is None
    ours = apply_overrides(recipe, {"data.corpus": ["my corpus"], "data.tokenizer": str(TOKENIZER)})
    with pytest.raises(UserError, match="no such file or directory: my corpus"):
        prepare(recipe=ours, output=tmp_path / "w")
    with pytest.raises(UserError, match="no corpus: give --corpus"):
        prepare(tokenizer=TOKENIZER, output=tmp_path / "w", recipe=recipe)
    with pytest.raises(UserError, match="no tokenizer: give --tokenizer"):
        prepare(["x"], output=tmp_path / "w", recipe=recipe)
    (tmp_path / "a.txt").write_text("\n\n".join(TEXTS))
    made = apply_overrides(ours, {"data.corpus": [str(tmp_path / "a.txt")]})
    assert prepare(recipe=made, output=tmp_path / "w", seed=3).manifest.options.seed == 3


@pytest.mark.parametrize(
    ("corpus", "message"),
    [
        ([], "the corpus (none) has no file"),
        (3, "a corpus cannot be a int: give files, texts, or one split of a data set"),
        ({"train": TEXTS}, "a corpus cannot be a dict"),
        (datasets.DatasetDict(train=datasets.Dataset.from_list([{"text": "x"}])), "cannot be a DatasetDict"),
        (
            [(text, "label") for text in TEXTS],
            "is a list of tuples: give the texts alone, as in [row[0] for row",
        ),
        ([3], "an entry of the corpus is a int: expected a path, a hub id, a list or iterator"),
        ([Path("x.txt"), 3], "no such file or directory: x.txt"),
        ([[""], [" "]], "the corpus has no document: texts in memory ("),
        ([[]], "is empty: all of its 1 texts in memory have 0 bytes"),
        (iter(["a b", ""]), "the corpus has 1 document(s), too few"),
    ],
)
def test_what_is_no_corpus(corpus, message, tmp_path):
    assert message in refused(corpus, tmp_path)


def test_options_are_numbers(of_a_file, tmp_path):
    options = {
        "window_length": numpy.int64(12),
        "seed": numpy.int8(42),
        "held_out_fraction": numpy.float64(0.1),
    }
    assert windows(TEXTS, tmp_path / "w", **options) == of_a_file
    for name, value in (
        ("window_length", "12"),
        ("overlap", 4.0),
        ("seed", None),
        ("held_out_fraction", "a"),
    ):
        assert f"{name} is {value!r} (" in refused(TEXTS, tmp_path / "none", **{name: value})
    assert not (tmp_path / "none").exists()


def test_surrogates_are_replaced_as_in_json(tmp_path):
    digests = [
        hashlib.sha256(b"".join(windows(texts, tmp_path / name).values())).hexdigest()
        for name, texts in (("a", [*TEXTS, "half \ud83d"]), ("b", [*TEXTS, "half ?"]))
    ]
    assert digests[0] == digests[1]
