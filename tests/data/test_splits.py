"""Texts that stand in two splits."""

from __future__ import annotations

import random
import time
import unicodedata

from minialbert.data.splits import shared_texts

WORDS = [f"w{number}" for number in range(2000)]


def text(seed, length=40):
    return " ".join(random.Random(seed).choices(WORDS, k=length))


def test_the_same_and_nearly_the_same_texts_are_counted():
    train = [text(number) for number in range(50)]
    near = train[3].split()
    near[7] = "other"
    test = [train[1].upper() + "!", " ".join(near), text(99), "too short", *(text(n) for n in range(60, 80))]
    said = list(shared_texts({"train": [*train, "too short"], "test": test}))
    assert said == [
        "test: 1 of 24 texts stand in train too, and 1 more nearly so; scores on them say little about new texts"
    ]
    assert list(shared_texts({"train": train, "test": test[2:]})) == []


def test_forms_do_not_cost_hours():
    form = "the patient was seen today and there is no change in the findings since"
    train = [f"{form} {number}" for number in range(3000)]
    start = time.perf_counter()
    list(shared_texts({"train": train, "validation": train[:1000]}))
    assert time.perf_counter() - start < 20


def test_texts_without_spaces_are_compared_by_their_letters():
    report = "\u60a3\u8005\u8bc9\u54b3\u55fd\u4e09\u5929\uff0c\u65e0\u53d1\u70ed\u3002"
    (said,) = shared_texts({"train": [report], "test": [report[:-1], report[:4]]})
    assert said.startswith("test: 1 of 2 texts stand in train too")
    accents = "Na\u00efve caf\u00e9s serve cr\u00e8me br\u00fbl\u00e9e daily"
    (said,) = shared_texts({"train": [accents], "test": [unicodedata.normalize("NFD", accents).upper()]})
    assert said.startswith("test: 1 of 1 texts stand in train too")
