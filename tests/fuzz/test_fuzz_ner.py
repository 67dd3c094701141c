"""Whatever a tagged file holds, it gives sentences with IOB2 tags or is refused in one line."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from hostile import hunt, mutated, tiers
from hypothesis import strategies as st
from minialbert_runtime.words import Span, spans_to_tags, tags_to_spans

from minialbert.data.examples import Task, TokenExample
from minialbert.data.ner import LINES, Repair, TagReader, read_tagged
from minialbert.data.tables import load_table

TAGGED = (
    b"The\tO\nnew\tB-Gene\nkinase\tI-Gene\n\n-DOCSTART-\tO\n\n# a comment\nHuntington's\tB-Disease\n.\tO\n"
)
SPACED = b"-DOCSTART- -X- O\n\nEU NNP B-ORG\nrejects VBZ O\nGerman JJ I-MISC\n"
REPAIRS = st.sampled_from(["repair", "refuse"])


def check(sentence: TokenExample, types: set[str] | None = None) -> None:
    assert sentence.words and all(word.strip() for word in sentence.words)
    if sentence.offsets is not None and sentence.text is not None:
        assert len(sentence.offsets) == len(sentence.words)
        for word, (start, end) in zip(sentence.words, sentence.offsets, strict=True):
            assert sentence.text[start:end] == word
    if sentence.tags is None:
        return
    assert len(sentence.tags) == len(sentence.words)
    for before, tag in itertools.pairwise(("O", *sentence.tags)):
        assert tag == "O" or (tag[:2] in ("B-", "I-") and tag[2:].strip())
        assert tag[0] != "I" or before[2:] == tag[2:]
        assert types is None or tag == "O" or tag[2:] in types


def check_task(task: Task) -> None:
    assert task.labels[0] == "O" and len(set(task.labels)) == len(task.labels) > 1
    for name, sentences in task.splits.items():
        assert sentences
        for sentence in sentences:
            assert isinstance(sentence, TokenExample)
            check(sentence, {label[2:] for label in task.labels} if name == "train" else None)
    assert all(note.isprintable() for note in task.notes)


def read_bio(path: Path, repair: Repair) -> tuple[list[TokenExample], TagReader]:
    table = read_tagged(path)
    tags = TagReader(table.error, repair)
    return [
        TokenExample(tuple(cells["tokens"]), tags.read(cells["tags"], cells[LINES]))
        for _, cells in table.rows
    ], tags


def write_tagged(path: Path, sentences: list[TokenExample]) -> None:
    """Write sentences as `read_tagged` takes them: a word, TAB and its tag on each line."""
    blocks = ("".join(f"{w}\t{t}\n" for w, t in zip(s.words, s.tags or (), strict=True)) for s in sentences)
    text = "\n".join(blocks)
    # Of the first word: a reader takes only the first mark away.
    path.write_bytes((("\ufeff" if text.startswith("\ufeff") else "") + text).encode())


@tiers
def test_one_file(examples: int, tmp_path: Path) -> None:
    path, again = tmp_path / "train.tsv", tmp_path / "again.tsv"

    def attack(hostile: tuple[bytes, Any]) -> None:
        content, repair = hostile
        path.write_bytes(content)
        sentences, tags = read_bio(path, repair)
        for sentence in sentences:
            check(sentence)
        assert repair == "repair" or tags.repaired == 0
        if any(word.isdecimal() for sentence in sentences for word in sentence.words):
            return  # words that look like the numbers of words may be read as such
        write_tagged(again, sentences)
        assert read_bio(again, "refuse")[0] == sentences

    inputs = st.tuples(mutated([TAGGED, TAGGED, SPACED]), REPAIRS)
    hunt("BIO file", examples, inputs, attack, folder=tmp_path)


@tiers
def test_a_folder(examples: int, tmp_path: Path) -> None:
    def attack(hostile: tuple[str, bytes, Any]) -> None:
        split, content, repair = hostile
        for name in ("train", "devel", "test"):
            (tmp_path / f"{name}.tsv").write_bytes(content if name == split else TAGGED)
        check_task(load_table(tmp_path, "token", repair=repair))

    contents = mutated([TAGGED, TAGGED.replace(b"\t", b" "), SPACED], most_steps=2)
    inputs = st.tuples(st.sampled_from(["train", "devel", "test"]), contents, REPAIRS)
    hunt("BIO folder", examples, inputs, attack, folder=tmp_path)


@tiers
def test_spans(examples: int) -> None:
    """The contract of the two functions is ValueError: they know no file."""

    def attack(hostile: tuple[str, list[Span]]) -> None:
        text, spans = hostile
        words, offsets, tags = spans_to_tags(text, spans)
        if words:
            check(TokenExample(words, tags, text, offsets))
        found = tags_to_spans(tags, offsets, text)
        assert len(found) == len(spans)
        assert all(0 <= span.start < span.end <= len(text) for span in found)

    texts = st.text(st.sampled_from("ab _\n\t\u00a0\u2028\u0301漢.\ud800😀"), max_size=12)
    place = st.one_of(st.integers(0, 12), st.integers(0, 12), st.integers(-2, 14), st.just(10**400))
    label = st.sampled_from(["X", "X", "Y", "", "\n", "\x1b", "x" * 5_000, "\u2028"])
    spans = st.lists(st.builds(Span, place, place, label), max_size=3)
    hunt("spans", examples, st.tuples(texts, spans), attack, contract=(ValueError,))


@tiers
def test_tags(examples: int) -> None:
    def attack(hostile: tuple[list[str], list[tuple[int, int]], str | None]) -> None:
        tags, offsets, text = hostile
        for span in tags_to_spans(tags, offsets, text):
            assert span.label and (text is None or 0 <= span.start < span.end <= len(text))

    tag = st.sampled_from(
        ["O", "B-X", "I-X", "I-Y", "B-X", "I-X", "O", "B-", "x" * 5_000, "B-\n", "\x1b", ""]
    )
    pair = st.tuples(st.integers(-2, 9), st.integers(-2, 9))
    inside = st.tuples(st.integers(0, 4), st.integers(4, 6))
    offsets = st.one_of(st.lists(inside, max_size=3), st.lists(pair, max_size=3))
    inputs = st.tuples(st.lists(tag, max_size=3), offsets, st.sampled_from([None, "a text", " \u2028  a"]))
    hunt("tags", examples, inputs, attack, contract=(ValueError,))


@pytest.mark.parametrize("name", ["~nobody-at-all/x", "\0", "x" * 5_000, "\ud800"])
def test_a_folder_of_no_possible_name(name: str) -> None:
    with pytest.raises(ValueError, match="is not a path that can be opened|does not exist") as caught:
        load_table(name, "token")
    assert str(caught.value).isprintable()
