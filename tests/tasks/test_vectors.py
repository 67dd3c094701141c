"""Vectors scored: figures against sentence-transformers' own reading of the model, and cases worked out by hand."""

from __future__ import annotations

import json
import math
import re
import shutil

import numpy as np
import pytest

import minialbert
from minialbert.errors import UserError
from minialbert.method.sentence_vectors import Pooling, write_pooling

PAIRS = [
    ("the cat sat on the mat", "a cat sat on a mat", 4.8),
    ("a dog", "the big dog ran", 3.5),
    ("the red house is old", "the small tree is new", 1.0),
    ("the sun", "a dog ran in the sun", 2.0),
    ("the small house", "the big house", 3.0),
]


class Spots:
    """A model that places texts on a circle, by the degrees that they name."""

    def encode(self, texts):
        angles = [math.radians(float(text.split()[-1])) for text in texts]
        return np.array([[math.cos(one), math.sin(one)] for one in angles])


class Shifted(Spots):
    """The same, but the first text of a side, and it alone, lies on the other side of the circle."""

    def encode(self, texts):
        vectors = super().encode(texts)
        vectors[0] *= -1
        return vectors


@pytest.fixture(scope="module")
def encoder(tiny_student_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scored") / "model"
    shutil.copytree(tiny_student_dir, folder)
    write_pooling(folder, Pooling("mean"), width=32, max_tokens=24)
    return folder


def beir(
    folder,
    *,
    corpus=None,
    queries=None,
    qrels="query-id\tcorpus-id\tscore\nq1\td1\t1\nq2\td3\t1\nq2\td1\t0\n",
):
    corpus = corpus or [("d1", "", "0"), ("d2", "north", "90"), ("d3", "", "200")]
    (folder / "qrels").mkdir(parents=True)
    lines = [json.dumps({"_id": key, "title": title, "text": text}) for key, title, text in corpus]
    (folder / "corpus.jsonl").write_text("\n".join(lines))
    queries = queries or [("q1", "10"), ("q2", "110"), ("q3", "50")]
    lines = [json.dumps({"_id": key, "text": text}) for key, text in queries]
    (folder / "queries.jsonl").write_text("\n".join(lines))
    (folder / "qrels" / "test.tsv").write_text(qrels)
    return folder


def test_similarity_is_what_sentence_transformers_finds(encoder, tmp_path):
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.evaluation import EmbeddingSimilarityEvaluator

    table = tmp_path / "pairs.csv"
    table.write_text("sentence1,sentence2,score\n" + "".join(f"{a},{b},{c}\n" for a, b, c in PAIRS))
    theirs = EmbeddingSimilarityEvaluator(*map(list, zip(*PAIRS, strict=True)))(
        SentenceTransformer(str(encoder))
    )
    for data in (table, {"test": PAIRS}):
        record = minialbert.evaluate(
            encoder, data, task="sts", output=tmp_path / "scores", overwrite=True
        ).record
        found = record["metrics"][record["split"]]
        assert found["cosine_spearman"] == pytest.approx(theirs["spearman_cosine"], abs=1e-6)
        assert found["cosine_pearson"] == pytest.approx(theirs["pearson_cosine"], abs=1e-5)
        assert record["score"] == found["cosine_spearman"]
    assert json.loads((tmp_path / "scores" / "result.json").read_text())["problem"] == "embedding"


def test_a_sentence_encoder_that_lower_cases_its_texts_does_so_here(encoder, tmp_path):
    from sentence_transformers import SentenceTransformer

    folder = shutil.copytree(encoder, tmp_path / "model")
    backend = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(backend | {"normalizer": None}))
    told = json.loads((folder / "sentence_bert_config.json").read_text())
    (folder / "sentence_bert_config.json").write_text(json.dumps(told | {"do_lower_case": True}))
    texts = ["The Cat sat on the MAT", "a dog"]
    vectors = minialbert.embed(folder, texts, precision="fp32")
    np.testing.assert_allclose(vectors, SentenceTransformer(str(folder)).encode(texts), atol=1e-6)
    assert np.array_equal(
        vectors, minialbert.embed(folder, [text.lower() for text in texts], precision="fp32")
    )


def test_columns_of_other_names_are_named(tmp_path):
    table = tmp_path / "pairs.csv"
    table.write_text("a,b,c\n0,10,5.0\n0,90,2.0\n0,60,3.0\n")
    columns = {"task.text": "a", "task.pair": "b", "task.label": "c"}
    assert minialbert.evaluate(Spots(), table, task="sts", settings=columns).record["score"] == pytest.approx(
        1
    )


def test_a_reference_has_its_share_and_both_together_their_figures():
    pairs = [("0", "10", 5.0), ("0", "90", 2.0), ("0", "60", 3.0), ("0", "150", 0.0)]
    beside = minialbert.evaluate(Shifted(), {"test": pairs}, task="sts", reference=Spots()).record[
        "reference"
    ]
    assert beside["metrics"]["cosine_spearman"] == pytest.approx(1)
    # Both vectors of the first pair are turned, so the model alone judges it as its reference does.
    assert beside["share"] == pytest.approx(1)
    # With the reference's second vector the first pair comes last instead of first.
    assert beside["mixed"]["cosine_spearman"] == pytest.approx(-0.2)
    assert beside["furthest"] == []

    class Turned(Spots):
        """The same, but the text "0" lies on the other side of the circle."""

        def encode(self, texts):
            return super().encode([text if text != "0" else "180" for text in texts])

    class Deep(Spots):
        """The same in three dimensions."""

        def encode(self, texts):
            return np.pad(super().encode(texts), ((0, 0), (0, 1)))

    apart = minialbert.evaluate(Deep(), {"test": pairs}, task="sts", reference=Spots()).record
    assert apart["reference"]["share"] == pytest.approx(1) and "mixed" not in apart["reference"]
    assert apart["notes"] == [
        "vectors of Deep and Spots have 3 and 2 dimensions: they are not compared with each other"
    ]
    both = minialbert.evaluate(Turned(), {"test": pairs}, task="sts", reference=Spots()).record["reference"]
    # With its first texts and the reference's second ones the order is reversed, the other way round it is right.
    assert both["share"] == pytest.approx(-1)
    assert both["mixed"]["cosine_spearman"] == pytest.approx(0)


def test_retrieval_has_the_figures_that_a_hand_finds(tmp_path):
    found = minialbert.evaluate(Spots(), beir(tmp_path / "set"), task="retrieval").record
    # q1 finds d1 first; q2 (110 degrees) finds d2 (90) before d3 (200).
    assert found["rows"] == {"test": 2} and found["data"]["documents"] == 3
    assert found["metrics"]["test"]["mrr_at_10"] == pytest.approx((1 + 1 / 2) / 2)
    assert (
        found["score"] == found["metrics"]["test"]["ndcg_at_10"] == pytest.approx((1 + 1 / math.log2(3)) / 2)
    )


def test_the_queries_that_a_model_loses_are_named(tmp_path):
    data = {
        "queries": {"a": "far 180", "b": "100"},
        "corpus": {"x": "170", "y": "95", "z": "0"},
        "relevant": {"a": ["x"], "b": ["y"]},
    }
    found = minialbert.evaluate(Shifted(), data, task="retrieval", reference=Spots()).record["reference"]
    assert found["metrics"]["ndcg_at_10"] == pytest.approx(1) and found["share"] < 1
    first = found["furthest"][0]
    assert (first["query"], first["rank_of_reference"]) == ("far 180", 1) and first["rank"] > 1


def test_pairs_that_are_all_alike_have_no_score():
    with pytest.raises(UserError, match="equally similar vectors in all pairs"):
        minialbert.evaluate(Spots(), [("10", "30", 1.0), ("50", "70", 2.0), ("5", "25", 3.0)], task="sts")


def test_judged_texts_in_memory_are_read_as_those_of_files(tmp_path):
    there = minialbert.evaluate(Spots(), beir(tmp_path / "set"), task="retrieval").record
    data = {
        "queries": {"q1": "10", "q2": "110", "q3": "50"},
        "corpus": {"d1": "0", "d2": {"title": "north", "text": "90"}, "d3": {"text": "200"}},
        "relevant": {"q1": {"d1": 1}, "q2": {"d3": 2, "d1": 0}, "q3": {"d1": 0}},
    }
    found = minialbert.evaluate(Spots(), data, task="retrieval").record
    assert found["metrics"] == there["metrics"]
    assert found["notes"] == [
        "retrieval: judgments above 1 count as 1",
        "retrieval: 1 of 3 queries have no document in test, and are left out",
    ]
    alone = {**data, "relevant": {"q1": "d1", "q2": ["d3"]}}
    assert minialbert.evaluate(Spots(), alone, task="retrieval").record["metrics"] == there["metrics"]
    for side, given, said in (
        ("corpus", {"d1": None}, "corpus, row 1: expected 'text', found {"),
        ("queries", ["10"], "or a mapping with queries and corpus"),
        ("relevant", {"q1": None}, "relevant, row 1: expected 'corpus-id', found {"),
        (
            "relevant",
            {"q1": {"d1": "much"}},
            "relevant, row 1: expected a finite number as score, found 'much'",
        ),
        ("relevant", {}, "relevant: 0 rows"),
    ):
        with pytest.raises(UserError, match=re.escape(said)):
            minialbert.evaluate(Spots(), {**data, side: given}, task="retrieval")


def test_clusters_that_lie_apart_are_found_again(tmp_path):
    rows = [
        (f"text {angle + step}", label)
        for angle, label in ((0, "a"), (90, "b"), (180, "c"))
        for step in range(9)
    ]
    assert minialbert.evaluate(Spots(), {"test": rows}, task="clustering").record["score"] == pytest.approx(1)
    mixed = [(text, "ab"[number % 2]) for number, (text, _) in enumerate(rows)]
    assert minialbert.evaluate(Spots(), {"test": mixed}, task="clustering").record["score"] < 0.2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"qrels": "query-id\tcorpus-id\tscore\nq1\td9\t1\n"}, "1 judged ids have no document, as 'd9'"),
        ({"qrels": "query-id\tcorpus-id\tscore\nq9\td1\t1\n"}, "1 judged ids have no query, as 'q9'"),
        (
            {"qrels": "query-id\tcorpus-id\tscore\nq1\td1\tyes\n"},
            "test.tsv:2: expected a finite number as score, found 'yes'",
        ),
        (
            {"qrels": "query\tdocument\nq1\td1\n"},
            "test.tsv:2: expected 'query-id', found {'query': 'q1', 'document': 'd1'}",
        ),
        ({"qrels": "query-id\tcorpus-id\tscore\nq1\td1\t0\n"}, "no query has a document that answers it"),
        (
            {"queries": [("q1", "1"), ("q1", "2")]},
            "queries.jsonl:2: the id 'q1' stands on an earlier line too",
        ),
    ],
)
def test_judged_texts_that_do_not_fit_are_refused(tmp_path, options, said):
    with pytest.raises(UserError, match=re.escape(said)):
        minialbert.evaluate(Spots(), beir(tmp_path / "set", **options), task="retrieval")


def test_what_vectors_have_no_use_for_is_refused(tmp_path, encoder):
    for options, said in (
        ({"task": "sts"}, "task sts has no data"),
        (
            {"task": "sts", "data": {"test": [("a", 1.0), ("b", 2.0)]}},
            "sts wants pairs of texts; found single texts",
        ),
        ({"task": "sts", "data": {"test": PAIRS[:1]}}, "expected at least 2 labelled rows in test, found 1"),
        ({"task": "sts", "data": {"test": PAIRS}, "split": "dev"}, "has no split 'dev': there are test"),
        ({"task": "sts", "data": [(a, b, 1) for a, b, _ in PAIRS]}, "every row of train has 1.0"),
        (
            {"task": "clustering", "data": [(a, b, f"{c < 2.5}") for a, b, c in PAIRS]},
            "wants single texts; found pairs",
        ),
        ({"task": "retrieval", "data": tmp_path}, "expected qrels/test.tsv beside"),
        ({"task": "clustering", "data": {"test": PAIRS}, "exit_threshold": 0.5}, "takes no submission"),
        ({"task": "sst2", "data": {"test": PAIRS}, "reference": encoder}, "a reference is for the tasks sts"),
    ):
        with pytest.raises(UserError, match=said):
            minialbert.evaluate(encoder, **options)
