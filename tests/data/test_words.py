"""The rule of words: learnt from training words, and the same words out of running text."""

from __future__ import annotations

import json
from dataclasses import asdict

import pytest
from minialbert_runtime.words import Span, WordRule, word_rule

from minialbert.data.examples import Task, TokenExample
from minialbert.data.words import (
    as_delivered,
    gold_spans,
    learn_words,
    running_text,
    split_differently,
    with_words,
)

# As annotators of clinical and biomedical text cut: marks inside words, abbreviations, measures, items of a list.
SENTENCES = (
    "The beta-blocker and 5-FU helped in the U.S. today .",
    "Take b.i.d. or 1.5 mg , 10% of gamma-tubulin (a) or T-cell , well .",
    "see ( the patient 's file ) and home .",
    "As said ( see below ) 5 , 6 . The end , 7 .",
    "Dr. Brown gave trimethoprim/sulfa ; Dr. Smith did not .",
)  # fmt: skip


def sentence(text, tags=None):
    words = tuple(text.split(" "))
    return TokenExample(words, tags)


def words_of(rule, text):
    return [text[start:end] for start, end in rule.split(text)]


@pytest.fixture(scope="module")
def learnt():
    return learn_words([sentence(text) for text in SENTENCES])


def test_the_joined_text_gives_the_words_of_the_file(learnt):
    rule, _ = learnt
    for text in SENTENCES:
        assert words_of(rule, text) == text.split()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("5-HT alpha-actin (b) i.e. 25% 0.25", "5-HT alpha-actin (b) i.e. 25% 0.25"),
        ("Ph.D. and/or non-small-cell U.S.A. x-ray", "Ph.D. and/or non-small-cell U.S.A. x-ray"),
        # Not as the file would have it, with a space on both sides, but as people write.
        ("The beta-blocker, in the U.S.; (see below).", "The beta-blocker , in the U.S. ; ( see below ) ."),
        ("Dr. Brown went home. Was it 10%?", "Dr. Brown went home . Was it 10% ?"),
        ("the patient's file", "the patient 's file"),
        ("alpha\u2010actin, the patient\u2019s", "alpha\u2010actin , the patient \u2019s"),
    ],
)
def test_words_that_the_file_does_not_have_are_cut_alike(learnt, text, words):
    assert words_of(learnt[0], text) == words.split(" ")


def test_the_rule_is_stated_in_one_line(learnt):
    rule, statement = learnt
    assert rule.whole == ("Dr.",)
    assert "\n" not in statement
    assert "' - . / inside; % ) . at the end" in statement
    assert "1 kept as they are ('Dr.'" in statement


def test_words_without_punctuation_need_no_rule():
    rule, statement = learn_words([sentence("non - small p53 cells ( T - cell ) .")])
    assert rule == WordRule()
    assert statement == "words: running text is cut at whitespace and at every punctuation mark"


def test_whole_tokens_of_whitespace_are_kept_whole():
    texts = ["He went home. (See below), now.", "She (too) went home, now."]
    rule, _ = learn_words([sentence(text) for text in texts])
    for text in [*texts, "They stayed home. (All of them), ok."]:
        assert words_of(rule, text) == text.split()


@pytest.mark.parametrize(
    ("known", "text", "words"),
    [
        ("take b.i.d. with food", "Take q.d. at home.", ["Take", "q.d.", "at", "home", "."]),
        ("over 1,000 units", "aspirin,heparin 2,000", ["aspirin", ",", "heparin", "2,000"]),
        ("at 10:30 today", "Note:see 11:45", ["Note", ":", "see", "11:45"]),
        ("beta-blocker", "5-FU IL-2", ["5-FU", "IL-2"]),
    ],
)
def test_what_is_so_in_numbers_and_abbreviations_is_not_so_everywhere(known, text, words):
    rule, _ = learn_words([sentence(known)])
    assert words_of(rule, known) == known.split()
    assert words_of(rule, text) == words


def test_the_majority_decides_where_a_file_does_both():
    rule, _ = learn_words([sentence("a - b"), sentence("aa - bb cc-dd"), sentence("ee - ff")])
    assert words_of(rule, "gg-hh cc-dd") == ["gg", "-", "hh", "cc-dd"]
    rule, _ = learn_words([sentence("aa - bb cc-dd ee-ff"), sentence("gg-hh")])
    assert words_of(rule, "kk-ll") == ["kk-ll"]


def test_words_that_no_rule_makes_are_told():
    _, statement = learn_words([sentence("do n't"), TokenExample(("New York", "is", "big"))])
    assert "1 of train cannot be made, such as 'New York'" in statement


def test_a_rule_survives_its_file(learnt):
    rule = learnt[0]
    assert word_rule(json.loads(json.dumps(asdict(rule)))) == rule
    assert word_rule(None) is None
    for damaged in ([], {"joined": "x"}, {"joined": [1]}, {"other": []}):
        with pytest.raises(ValueError, match="words"):
            word_rule(damaged)


@pytest.mark.parametrize(
    "word",
    [
        "co\u00adoperate",  # soft hyphen
        "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645",  # Persian, with a non-joiner
        "zero\u200bwidth", "\ufeffHello", "x\u2060y", "\u200eword\u200f",
        "\u2600\ufe0f", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f44d\U0001f3fd", "1\ufe0f\u20e3",
    ],
)  # fmt: skip
def test_what_cannot_be_seen_belongs_to_the_word_around_it(word):
    text = f"the {word}, said"
    assert [text[start:end] for start, end in WordRule().split(text)] == ["the", word, ",", "said"]


def test_a_sentence_of_words_is_joined_by_spaces():
    example = TokenExample(("a", "bc", "d"), ("O", "B-X", "I-X"))
    assert running_text(example) == ("a bc d", ((0, 1), (2, 4), (5, 6)))
    assert gold_spans(example) == [Span(2, 6, "X")]


def doses(*texts):
    """Texts in which the digits of a dose are its strength and the letters its unit, as a reader cuts them."""
    rows = []
    for text in texts:
        spans = []
        for start, end in WordRule().split(text):
            digits = len(text[start:end].rstrip("mgcl"))
            if 0 < digits < end - start and text[start].isdigit():
                spans += [Span(start, start + digits, "STRENGTH"), Span(start + digits, end, "UNIT")]
        raw = TokenExample((), ("O",), text, (), tuple(spans))
        read = as_delivered(raw, WordRule(), at_spans=True)
        rows.append(TokenExample(read.words, read.tags, read.text, read.offsets))
    return rows


def test_borders_between_digits_and_letters_are_learnt_from_spans():
    train = doses("take 25mg of p53 and 5mg now", "with 100mcg daily")
    rule, statement = learn_words(train)
    assert "a cut between digits and letters" in statement
    assert words_of(rule, "30mcg of p53, 7g") == ["30", "mcg", "of", "p53", ",", "7", "g"]
    # What is so after digits says nothing of digits after letters.
    assert words_of(learn_words(doses("take 25mg"))[0], "25mg BRCA2 p53") == ["25", "mg", "BRCA2", "p53"]
    task = Task("doses", "token", ("O",), "entity_f1", {"train": train, "test": doses("take 40mg")})
    made = with_words(task, rule, tuning=True)
    assert made.splits["test"][0].tags == ("O", "B-STRENGTH", "B-UNIT")
    assert made.notes == ()


def test_spans_inside_words_cut_train_alone_and_are_counted():
    train = [
        TokenExample(
            ("anti", "cancer", "drug"), ("O", "B-D", "O"), "anticancer drug", ((0, 4), (4, 10), (11, 15))
        )
    ]
    task = Task("inside", "token", ("O", "B-D", "I-D"), "entity_f1", {"train": train, "test": train})
    made = with_words(task, WordRule(), tuning=True)
    assert made.splits["train"][0].words == ("anti", "cancer", "drug")
    (test,) = made.splits["test"]
    assert (test.words, test.tags) == (("anticancer", "drug"), ("B-D", "O"))
    assert gold_spans(test) == [Span(4, 10, "D")]
    assert made.notes == (
        "train: 1 of 1 entities start or end inside a word, such as 'cancer' in 'anticancer': words are cut there to "
        "learn them",
        "test: 1 of 1 entities start or end inside a word, such as 'cancer' in 'anticancer': no word border meets "
        "them, so they count as missed",
    )
    assert with_words(task, WordRule(), tuning=False).splits["train"] == made.splits["test"]


def test_sentences_that_are_cut_otherwise_are_found():
    rows = [sentence("a b"), sentence("a-b c", ("B-X", "O"))]
    ((index, other),) = split_differently(rows, WordRule()).items()
    assert (index, other.words, other.spans) == (1, ("a", "-", "b", "c"), (Span(0, 3, "X"),))
