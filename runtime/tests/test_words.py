"""Words, character spans and word tags."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minialbert_runtime.words import Span, WordRule, likeliest_path, spans_to_tags, tags_to_spans

TEXTS = st.text(st.sampled_from("ab1_ .-\n\u00e9\u0301\u4e2d\u00a0\u20ac\U0001f600")) | st.text()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", []),
        (" \n\t\u00a0", []),
        ("non-small cell", ["non", "-", "small", "cell"]),
        ("p53's IC50=0.5\u00b5M", ["p53", "'", "s", "IC50", "=", "0", ".", "5\u00b5M"]),
        ("snake_case __x", ["snake_case", "__x"]),
        ("cafe\u0301 na\u00efve", ["cafe\u0301", "na\u00efve"]),
        ("\u0939\u093f\u0928\u094d\u0926\u0940 x", ["\u0939\u093f\u0928\u094d\u0926\u0940", "x"]),  # vowel signs
        ("\u0441\u043b\u043e\u0432\u043e", ["\u0441\u043b\u043e\u0432\u043e"]),
        ("\u4e2d\u6587ab\u4e2d", ["\u4e2d", "\u6587", "ab", "\u4e2d"]),
        ("\U00020000\uf900x", ["\U00020000", "\uf900", "x"]),
        ("\u3072\u3089 \ud55c\uad6d", ["\u3072\u3089", "\ud55c\uad6d"]),  # kana and hangul run on, as in BERT
        ("5\u20ac\U0001f600!!", ["5", "\u20ac", "\U0001f600", "!", "!"]),
        ("x\u00b2\u2163", ["x\u00b2\u2163"]),
    ],
)  # fmt: skip
def test_words(text, words):
    assert [text[start:end] for start, end in WordRule().split(text)] == words


@settings(deadline=None)
@given(TEXTS)
def test_words_cover_every_character_once(text):
    covered = [position for start, end in WordRule().split(text) for position in range(start, end)]
    assert covered == [position for position, character in enumerate(text) if not character.isspace()]


def test_words_agree_with_the_pre_tokenizer_of_bert_on_ascii():
    from tokenizers.pre_tokenizers import BertPreTokenizer

    generator = random.Random(0)
    characters = [
        chr(code) for code in range(32, 127) if chr(code) != "_"
    ]  # BERT splits there, a word does not
    for _ in range(50):
        text = "".join(generator.choices(characters + ["\u4e2d", "\u00e9", " "], k=60))
        spaced = text.replace("\u4e2d", " \u4e2d ")  # its normaliser does this before it splits
        words = [word for word, _ in BertPreTokenizer().pre_tokenize_str(spaced)]
        assert [text[start:end] for start, end in WordRule().split(text)] == words


def test_tags_of_spans():
    text = "Non-small cell cancer, BRCA1/BRCA2 carriers"
    spans = [Span(29, 34, "Gene"), Span(0, 21, "Disease"), Span(23, 28, "Gene")]
    words, offsets, tags = spans_to_tags(text, spans)
    assert words == ("Non", "-", "small", "cell", "cancer", ",", "BRCA1", "/", "BRCA2", "carriers")
    assert tags == ("B-Disease", *["I-Disease"] * 4, "O", "B-Gene", "O", "B-Gene", "O")
    assert offsets[0] == (0, 3) and offsets[-1] == (35, 43)
    assert tags_to_spans(tags, offsets) == sorted(spans, key=lambda span: span.start)


def test_words_are_split_where_a_span_starts_or_ends():
    words, offsets, tags = spans_to_tags("anticancer p53wt", [Span(4, 10, "Disease"), Span(11, 14, "Gene")])
    assert words == ("anti", "cancer", "p53", "wt")
    assert offsets == ((0, 4), (4, 10), (11, 14), (14, 16))
    assert tags == ("O", "B-Disease", "B-Gene", "O")


def test_neighbours_of_one_type_stay_apart():
    words, offsets, tags = spans_to_tags("abcd", [Span(0, 2, "X"), Span(2, 3, "X")])
    assert (words, tags) == (("ab", "c", "d"), ("B-X", "B-X", "O"))
    assert tags_to_spans(tags, offsets) == [Span(0, 2, "X"), Span(2, 3, "X")]


def test_whitespace_at_the_ends_of_a_span_is_left_out():
    words, offsets, tags = spans_to_tags(" a b  c", [Span(0, 6, "X")])
    assert (words, tags) == (("a", "b", "c"), ("B-X", "I-X", "O"))
    assert tags_to_spans(tags, offsets) == [Span(1, 4, "X")]
    assert spans_to_tags("a b", [Span(0, 2, "X"), Span(1, 3, "Y")])[2] == ("B-X", "B-Y")


@pytest.mark.parametrize(
    ("spans", "message"),
    [
        ([Span(0, 5, "X"), Span(2, 6, "Y")], r"the span 2-6 \(Y\) overlaps the span 0-5 \(X\)"),
        ([Span(0, 2, "X"), Span(0, 2, "X")], "overlaps"),
        ([Span(0, 5, "X"), Span(1, 2, "X")], "overlaps"),
        ([Span(1, 1, "X")], r"the span 1-1 \(X\) is empty"),
        ([Span(2, 1, "X")], "is empty"),
        ([Span(2, 3, "X")], "holds only whitespace"),
        ([Span(0, 7, "X")], r"the span 0-7 \(X\) reaches outside the text, which has 6 characters"),
        ([Span(-1, 2, "X")], "reaches outside"),
        ([Span(0, 2, "")], "the span 0-2 has no label"),
    ],
)
def test_spans_that_do_not_fit(spans, message):
    with pytest.raises(ValueError, match=message):
        spans_to_tags("ab cde", spans)


@st.composite
def _texts_with_spans(draw):
    text = draw(TEXTS)
    borders = sorted(draw(st.sets(st.integers(0, len(text)), max_size=8)))
    spans = []
    for start, end in zip(borders, borders[1:], strict=False):
        # What is trimmed does not come back, so that the spans are drawn as they are when trimmed.
        if not text[start].isspace() and not text[end - 1].isspace() and draw(st.booleans()):
            spans.append(Span(start, end, draw(st.sampled_from(["X", "Y", "cell-line"]))))
    return text, spans


@settings(deadline=None)
@given(_texts_with_spans(), st.randoms())
def test_spans_come_back(drawn, generator):
    text, spans = drawn
    words, offsets, tags = spans_to_tags(text, generator.sample(spans, len(spans)))
    assert tags_to_spans(tags, offsets) == tags_to_spans(tags, offsets, text) == spans
    assert words == tuple(text[start:end] for start, end in offsets)
    assert "".join(words) == "".join(text.split())


# Tags to spans


def test_entities_agree_with_seqeval():
    sequence_labeling = pytest.importorskip("seqeval.metrics.sequence_labeling")
    generator = random.Random(0)
    tags = ["O", "B-X", "I-X", "B-Y", "I-Y", "B-cell-line", "I-cell-line"]
    for _ in range(500):
        sequence = generator.choices(tags, k=generator.randint(0, 12))
        offsets = [(3 * index, 3 * index + 2) for index in range(len(sequence))]
        expected = [
            Span(3 * first, 3 * last + 2, label)
            for label, first, last in sequence_labeling.get_entities(sequence)
        ]
        assert tags_to_spans(sequence, offsets) == expected


def test_a_stray_inside_tag_starts_an_entity():
    tags, offsets = ["I-X", "I-Y", "I-Y", "O", "I-Y"], [(0, 1), (2, 3), (3, 5), (6, 7), (7, 8)]
    assert tags_to_spans(tags, offsets) == [Span(0, 1, "X"), Span(2, 5, "Y"), Span(7, 8, "Y")]


def test_the_text_takes_away_the_space_that_a_token_carries():
    text, offsets = "of lung cancer ", [(0, 2), (2, 7), (7, 14), (14, 15)]
    assert tags_to_spans(["O", "B-X", "I-X", "B-X"], offsets, text) == [Span(3, 14, "X")]
    assert tags_to_spans(["O", "B-X", "I-X", "O"], offsets) == [Span(2, 14, "X")]


@pytest.mark.parametrize(
    ("tags", "message"),
    [
        (["O"], "1 tags and 2 offsets"),
        (["O", "S-X"], "the tag 'S-X' of word 1 is not O"),
        (["B", "O"], "the tag 'B' of word 0"),
        (["O", "B-X"], r"the span 2-9 \(X\) reaches outside the text, which has 5"),
    ],
)
def test_tags_that_do_not_fit(tags, message):
    with pytest.raises(ValueError, match=message):
        tags_to_spans(tags, [(0, 1), (2, 9)], "abcde")


@pytest.mark.parametrize("label", ["", " ", "\u2028"])
def test_a_label_of_whitespace_is_none(label):
    with pytest.raises(ValueError, match="the span 0-1 has no label"):
        spans_to_tags("a", [Span(0, 1, label)])


def is_allowed(tags, labels):
    """Tell, by the words of IOB2, whether every I- tag goes on with an entity of its type."""
    return all(
        tag[0] != "I" or f"B{tag[1:]}" not in labels or before in (f"B{tag[1:]}", tag)
        for before, tag in itertools.pairwise(("O", *tags))
    )


@pytest.mark.parametrize(
    "labels",
    [
        ("O", "B-A", "I-A"),
        ("I-B", "O", "I-A", "B-A", "B-B"),
        ("B-A", "I-A"),
        ("O", "I-A", "B-B", "I-B"),  # no B-A: an entity of A begins with I-
        ("O", "B-A", "B-B"),
    ],
)
@pytest.mark.parametrize("words", range(6))
def test_the_likeliest_path_is_the_best_of_all_that_are_allowed(labels, words):
    rng = np.random.default_rng(words)
    broken = 0
    paths = [
        path
        for path in itertools.product(range(len(labels)), repeat=words)
        if is_allowed([labels[one] for one in path], labels)
    ]
    for _ in range(30):
        logits = rng.normal(size=(words, len(labels))).astype(np.float32)
        found = likeliest_path(logits, labels)
        best = max(
            paths, key=lambda path: sum(float(row[one]) for row, one in zip(logits, path, strict=True))
        )
        assert found.tolist() == list(best)
        broken += found.tolist() != logits.argmax(axis=1).tolist()
    assert (broken > 0) == (words > 0 and any(tag[0] == "I" and f"B{tag[1:]}" in labels for tag in labels))
