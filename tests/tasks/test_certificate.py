"""Intervals by label, counted by hand and against what a large sample would give."""

from __future__ import annotations

import json

import numpy as np
import pytest

from minialbert.errors import UserError
from minialbert.tasks.certificate import calibration_error, certificate, ratios, resampled
from minialbert.tasks.evaluate import evaluate


def entity(start, end, label, score=0.5):
    return {"start": start, "end": end, "text": "", "label": label, "score": score}


def tagged(gold, found, **more):
    return {"text": "x" * 40, "gold": gold, "entities": found, **more}


def test_figures_by_type_and_by_length_of_entities():
    lines = [
        {"text": "a king and a long river bed", "gold": [entity(2, 6, "Person"), entity(18, 27, "Place")],
         "entities": [entity(2, 6, "Person", 0.9), entity(18, 23, "Place", 0.7)]},
        {"text": "one king", "gold": [entity(4, 8, "Person")], "entities": []},
    ]  # fmt: skip
    found = certificate(lines)
    assert (found["units"], found["drawn"], found["resamples"], found["level"]) == (2, "texts", 1000, 0.95)
    person, place = found["per_type"]["Person"], found["per_type"]["Place"]
    assert (person["precision"], person["recall"], person["support"], person["predicted"]) == (1, 0.5, 2, 1)
    assert (place["precision"], place["recall"], place["f1"]) == (0, 0, 0)
    assert found["all"]["recall"] == pytest.approx(1 / 3)
    assert list(found["per_length"]) == ["1 word", "2 words"]
    assert found["per_length"]["1 word"]["support"] == 2
    assert found["per_length"]["2 words"]["support"] == 1
    # Right at 0.9 and wrong at 0.7, each in a bin of its own.
    assert found["calibration_error"] == pytest.approx((0.1 + 0.7) / 2)


def test_intervals_are_those_of_a_proportion_and_documents_are_drawn_whole():
    rng = np.random.default_rng(1)
    right = rng.random(400) < 0.8
    lines = [{"label": "a", "predicted": "a" if one else "b", "text": ""} for one in right]
    low, high = certificate(lines)["per_class"]["a"]["intervals"]["recall"]
    half = 1.96 * np.sqrt(right.mean() * (1 - right.mean()) / 400)
    assert low == pytest.approx(right.mean() - half, abs=0.008)
    assert high == pytest.approx(right.mean() + half, abs=0.008)
    again = [line | {"group": "x" if number < 200 else "y"} for number, line in enumerate(lines)]
    grouped = certificate(again)
    assert (grouped["units"], grouped["drawn"]) == (2, "groups")
    # Of four texts each (all right, or all wrong) an interval by document is wider than one by text.
    documents = [
        {"label": "a", "predicted": "ab"[unit % 2], "text": "", "group": unit} for unit in range(40) for _ in range(9)
    ]  # fmt: skip
    wide = certificate(documents)["per_class"]["a"]["intervals"]["recall"]
    narrow = certificate(
        [{name: line[name] for name in ("label", "predicted", "text")} for line in documents]
    )
    narrow = narrow["per_class"]["a"]["intervals"]["recall"]
    assert wide[1] - wide[0] > 2 * (narrow[1] - narrow[0])


def test_what_is_all_right_has_an_interval_as_wide_as_its_few_texts_make_it():
    few = certificate([tagged([entity(0, 4, "A")], [entity(0, 4, "A")]) for _ in range(5)])
    assert few["per_type"]["A"]["intervals"]["recall"] == pytest.approx([0.025**0.2, 1])
    many = certificate([tagged([entity(0, 4, "A")], []) for _ in range(100)])["per_type"]["A"]
    assert many["intervals"]["recall"] == pytest.approx([0, 1 - 0.025**0.01])
    assert many["intervals"]["precision"] is None  # nothing was found, so that it has no precision


def test_two_models_are_drawn_alike():
    gold = [{("a",)} if number % 3 else {("b",)} for number in range(30)]
    one, other = (resampled(gold, gold, range(30)) for _ in range(2))
    assert all((one[name] == other[name]).all() for name in one)
    assert list(one) == ["", "a", "b"] and one["a"][0].tolist() == [20, 20, 20]
    assert ratios(one["a"])["f1"] == pytest.approx(np.ones(1001))


def test_texts_with_any_number_of_classes_and_what_has_no_certificate():
    lines = [
        {"text": "", "label": ["a", "b"], "predicted": ["b"]},
        {"text": "", "label": [], "predicted": ["a"]},
    ]
    found = certificate(lines)["per_class"]
    assert (found["a"]["recall"], found["a"]["precision"], found["b"]["f1"]) == (0, 0, 1)
    assert certificate([{"text": "", "label": None, "predicted": "a"}]) == {}
    assert certificate([{"text": "", "label": 1.5, "predicted": 1.0}]) == {}
    assert certificate([]) == {}


def test_calibration_error():
    scores = np.array([0.95, 0.95, 0.55, 0.55])
    assert calibration_error(scores, np.array([True, True, True, False])) == pytest.approx(0.05)
    assert calibration_error(np.empty(0), np.empty(0, bool)) == 0


def test_a_record_has_it_and_the_screen_shows_it(tuned, tmp_path, call):
    of = tuned("ner")
    record = evaluate(of.model, of.data, output=tmp_path / "scores", progress=False).record
    found = record["certificate"]["per_type"]
    for name, one in record["metrics"]["test"]["per_type"].items():
        assert {key: found[name][key] for key in one} == one
    written = json.loads((tmp_path / "scores" / "result.json").read_text())
    assert written["certificate"] == record["certificate"]
    status, out, _ = call("evaluate", "--model", of.model, "--data", of.data)
    assert status == 0 and "from 1,000 samples of 32 texts" in out
    low, high = found["Person"]["intervals"]["recall"]
    assert f"({low:.2f}-{high:.2f})" in out and "1 word" in out
    rows = "\n".join(
        json.dumps({"text": f"the king {n}", "label": "with", "patient": n % 2}) for n in range(6)
    )
    (tmp_path / "test.jsonl").write_text(rows)
    settings = {"task.group": "patient"}
    scored = evaluate(
        tuned("classification").model, tmp_path, split="test", settings=settings, progress=False
    )
    assert (scored.record["certificate"]["drawn"], scored.record["certificate"]["units"]) == ("groups", 2)
    with pytest.raises(UserError, match="task.group names a column of a table, and this data has none"):
        evaluate(tuned("classification").model, tmp_path, settings={"task.group": "doctor"}, progress=False)


def test_each_figure_has_the_interval_of_the_texts_that_it_is_counted_over():
    a = entity(0, 4, "A")
    once = certificate([tagged([a], []), *(tagged([], [a]) for _ in range(100))])["per_type"]["A"][
        "intervals"
    ]
    assert once["recall"] == pytest.approx([0, 1 - 0.025])  # one text has an A
    assert once["precision"] == pytest.approx([0, 1 - 0.025**0.01])
    careful = certificate([tagged([a], [a]) for _ in range(2)] + [tagged([a], []) for _ in range(98)])
    assert careful["per_type"]["A"]["intervals"]["precision"] == pytest.approx([0.025**0.5, 1])
    b = entity(10, 14, "A")
    alone = certificate([tagged([a, b], [a]), tagged([], [])])["per_type"]["A"]  # nobody knows of other texts
    assert alone["recall"] == 0.5 and alone["intervals"]["recall"] is None
