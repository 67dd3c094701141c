"""Predictions for plain texts: offsets, long texts, streaming, and agreement with evaluation and pipelines."""

import copy
import datetime
import io
import json
import pickle
from itertools import count, islice, repeat

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from minialbert_runtime.answers import TextModel
from minialbert_runtime.lines import six_digits, to_json_line
from minialbert_runtime.words import WordRule
from transformers import pipeline
from transformers.modeling_outputs import TokenClassifierOutput

from minialbert import MiniAlbertForSequenceClassification, MiniAlbertForTokenClassification
from minialbert.data.examples import Task, TokenExample
from minialbert.data.task_inputs import encode_sentences, make_cutter
from minialbert.errors import UserError
from minialbert.tasks.models import TaskInputs, save_tuned
from minialbert.tasks.predict import Predictor, read_inputs
from minialbert.tasks.predictions import make_collator, run_model, word_tags

TAGS = ("O", "B-City", "I-City", "B-King", "I-King")
WORDS = ["the", "city", "king", "house", "river", "all", "was", "language", "x", "1"]
LONG = " ".join(WORDS[index * 7 % 10] for index in range(60)) + " teachers, 1984"


def build(model_class, config, labels, problem_type=None):
    config = copy.deepcopy(config)  # two models of a test may share it
    config.num_labels = len(labels)
    config.id2label = dict(enumerate(labels))
    config.label2id = {label: index for index, label in enumerate(labels)}
    config.problem_type = problem_type
    config.initializer_range = 0.3  # with the usual 0.02, all texts would get nearly the same logits
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = model_class(config)
    return model.eval()


@pytest.fixture
def tagger(tiny_student_config, tiny_tokenizer):
    """Random, but most texts have words inside and outside of entities."""
    model = build(MiniAlbertForTokenClassification, tiny_student_config, TAGS)
    with torch.no_grad():
        logits = model(**tiny_tokenizer(" ".join(WORDS * 4), return_tensors="pt")).logits[0]
        model.classifier.bias -= logits.mean(0)
        model.classifier.bias[0] += logits.std()
    return model


@pytest.fixture
def classifier(tiny_student_config):
    return build(
        MiniAlbertForSequenceClassification,
        tiny_student_config,
        ("a", "b", "c"),
        "single_label_classification",
    )


def of_task(problem, max_length=64, overlap=8):
    return TaskInputs("test", problem, "accuracy", max_length, overlap)


def close(left, right, tolerance=1e-5):
    """Equal, but for floats within a tolerance."""
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(close(left[key], right[key], tolerance) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(close, left, right, repeat(tolerance)))
    return abs(left - right) <= tolerance if isinstance(left, float) else left == right


# Entities


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
)
@given(
    st.lists(
        st.text(max_size=60) | st.text("ab1 .\n\u0301\u4e2d\U0001f600\x00\u200b", max_size=60), max_size=4
    )
)
def test_entities_are_slices_of_the_text_in_order(tagger, tiny_tokenizer, texts):
    results = list(Predictor(tagger, tiny_tokenizer, of_task("token", 16, 4)).predict(texts))
    assert [result["text"] for result in results] == texts
    for text, result in zip(texts, results, strict=True):
        end = 0
        for entity in result["entities"]:
            assert end <= entity["start"] < entity["end"] <= len(text)
            end = entity["end"]
            assert entity["text"] == text[entity["start"] : end] == entity["text"].strip()
            assert entity["label"] in ("City", "King")
            assert 1 / len(TAGS) <= entity["score"] <= 1
        assert json.loads(to_json_line(result)) == six_digits(result)


def test_entities_of_long_text_are_those_of_evaluation(tagger, tiny_tokenizer):
    offsets = WordRule().split(LONG)
    words = tuple(LONG[start:end] for start, end in offsets)
    task = Task("test", "token", TAGS, "entity_f1", {})
    sentence = TokenExample(words)
    encoded = encode_sentences([sentence], tiny_tokenizer, task, max_length=16, overlap=4)
    assert len(encoded) > 4
    logits = run_model(tagger, encoded, make_collator(task, tiny_tokenizer))
    ((tags,), _) = word_tags([sentence], encoded, logits, TAGS)
    assert len(set(tags)) > 2

    (result,) = Predictor(tagger, tiny_tokenizer, of_task("token", 16, 4)).predict([LONG])
    inside = {
        position: entity["label"]
        for entity in result["entities"]
        for position in range(entity["start"], entity["end"])
    }
    assert [inside.get(start, "O") for start, _ in offsets] == [tag.rpartition("-")[2] for tag in tags]
    begins = {entity["start"] for entity in result["entities"]}
    assert begins >= {start for (start, _), tag in zip(offsets, tags, strict=True) if tag.startswith("B")}


@pytest.fixture
def by_token(tagger, tiny_tokenizer, monkeypatch):
    """A tagger whose logits of a token depend on the token alone, and the table of them."""
    tag_of = {"city": "B-City", "river": "I-City", "king": "B-King", "language": "I-King"}
    table = torch.zeros(len(tiny_tokenizer), len(TAGS))
    for token, index in tiny_tokenizer.get_vocab().items():
        table[index, TAGS.index(tag_of.get(token, "O"))] = 1 + index / 50

    def forward(input_ids, attention_mask, token_type_ids=None):
        return TokenClassifierOutput(logits=table[input_ids])

    monkeypatch.setattr(tagger, "forward", forward)
    return tagger, table


def test_entities_are_those_of_the_pipeline(by_token, tiny_tokenizer):
    model, _ = by_token
    text = "the city river, a  king language language\twas! city city river x king"
    reference = pipeline(
        "token-classification", model=model, tokenizer=tiny_tokenizer, aggregation_strategy="simple"
    )(text)
    (result,) = Predictor(model, tiny_tokenizer, of_task("token")).predict([text])
    expected = [
        {
            "start": group["start"],
            "end": group["end"],
            "label": group["entity_group"],
            "score": float(group["score"]),
        }
        for group in reference
    ]
    assert [entity["label"] for entity in expected] == ["City", "King", "City", "City", "King"]
    found = [
        {key: entity[key] for key in ("start", "end", "label", "score")} for entity in result["entities"]
    ]
    assert close(found, expected)
    assert result["entities"][1]["text"] == "king language language"


def test_score_is_mean_probability_of_the_tags(by_token, tiny_tokenizer):
    model, table = by_token
    vocabulary = tiny_tokenizer.get_vocab()
    chances = [
        float(table[vocabulary[word]].softmax(0)[TAGS.index(tag)])
        for word, tag in (("city", "B-City"), ("river", "I-City"))
    ]
    (result,) = Predictor(model, tiny_tokenizer, of_task("token")).predict(["the city river"])
    (entity,) = result["entities"]
    assert entity["score"] == pytest.approx(sum(chances) / 2, abs=1e-6)
    assert (entity["start"], entity["end"]) == (4, 14)


def test_text_without_words_has_no_entities(tagger, tiny_tokenizer):
    results = Predictor(tagger, tiny_tokenizer, of_task("token")).predict(["", " \t\u2003\n"])
    assert list(results) == [{"text": "", "entities": []}, {"text": " \t\u2003\n", "entities": []}]


def test_labels_of_tagger_must_be_iob2(tiny_student_config, tiny_tokenizer):
    model = build(MiniAlbertForTokenClassification, tiny_student_config, ("NOUN", "VERB"))
    with pytest.raises(UserError, match="labels are O, B-TYPE and I-TYPE; this one has NOUN, VERB"):
        Predictor(model, tiny_tokenizer, of_task("token"))


# Classes and scores


def test_short_text_as_plain_call_and_pipeline(classifier, tiny_tokenizer):
    text = "the king was in the city, at 1984"
    (result,) = Predictor(classifier, tiny_tokenizer, of_task("single-label")).predict([text])
    with torch.no_grad():
        plain = classifier(**tiny_tokenizer(text, return_tensors="pt")).logits.softmax(-1)[0].tolist()
    assert close(result["scores"], dict(zip("abc", plain, strict=True)))
    classify = pipeline("text-classification", model=classifier, tokenizer=tiny_tokenizer, top_k=None)
    (reference,) = classify([text])
    assert close(result["scores"], {entry["label"]: entry["score"] for entry in reference})
    assert (result["label"], result["score"]) == (
        reference[0]["label"],
        result["scores"][reference[0]["label"]],
    )
    assert result.keys() == {"text", "label", "score", "scores"}


def test_pair_as_plain_call(classifier, tiny_tokenizer):
    pair = ("the king", "was in the city")
    single, result = Predictor(classifier, tiny_tokenizer, of_task("single-label")).predict(
        ["the king", pair]
    )
    with torch.no_grad():
        plain = classifier(**tiny_tokenizer(*pair, return_tensors="pt")).logits.softmax(-1)[0].tolist()
    assert close(result["scores"], dict(zip("abc", plain, strict=True)))
    assert (result["text"], result["pair"]) == pair
    assert not close(single["scores"], result["scores"], 1e-3)


def test_long_text_is_the_mean_of_its_windows(classifier, tiny_tokenizer):
    ids = tiny_tokenizer(LONG, add_special_tokens=False)["input_ids"]
    head, tail = [tiny_tokenizer.cls_token_id], [tiny_tokenizer.sep_token_id]
    total, covered = np.zeros(3), 0
    windows = [(begin, min(begin + 14, len(ids))) for begin in range(0, len(ids) - 4, 10)]
    for begin, end in windows:
        with torch.no_grad():
            logits = classifier(torch.tensor([head + ids[begin:end] + tail])).logits[0].double().numpy()
        total += logits * (end - max(begin, covered))
        covered = end
    powers = np.exp(total / len(ids))
    (result,) = Predictor(classifier, tiny_tokenizer, of_task("single-label", 16, 4)).predict([LONG])
    assert close(result["scores"], dict(zip("abc", (powers / powers.sum()).tolist(), strict=True)))
    assert result["windows"] == len(windows)


def test_two_long_texts_share_the_window(classifier, tiny_tokenizer):
    first = " ".join(["river"] * 20)
    (windows,) = make_cutter(tiny_tokenizer, max_length=17, overlap=4).texts([(first, LONG)])
    river = tiny_tokenizer.get_vocab()["river"]
    assert all(row.input_ids[1:8] == [river] * 7 for row in windows.rows)
    assert all(row.input_ids[8] == tiny_tokenizer.sep_token_id for row in windows.rows)
    assert max(len(row.input_ids) for row in windows.rows) == 17
    assert windows.cut == 13
    (result,) = Predictor(classifier, tiny_tokenizer, of_task("single-label", 17, 4)).predict([(first, LONG)])
    assert (result["cut"], result["windows"]) == (13, len(windows.rows))


def test_empty_text_is_classified_as_special_tokens(classifier, tiny_tokenizer):
    results = list(Predictor(classifier, tiny_tokenizer, of_task("single-label")).predict(["", "\n \t", "x"]))
    with torch.no_grad():
        ids = torch.tensor([[tiny_tokenizer.cls_token_id, tiny_tokenizer.sep_token_id]])
        plain = classifier(ids).logits.softmax(-1)[0].tolist()
    for result in results[:2]:
        assert close(result["scores"], dict(zip("abc", plain, strict=True)))
    assert not close(results[2]["scores"], results[0]["scores"], 1e-3)


@pytest.mark.parametrize("threshold", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_multi_label(tiny_student_config, tiny_tokenizer, threshold):
    model = build(
        MiniAlbertForSequenceClassification,
        tiny_student_config,
        ("a", "b", "c"),
        "multi_label_classification",
    )
    texts = WORDS[:6]
    predictor = Predictor(model, tiny_tokenizer, of_task("multi-label"), threshold=threshold)
    for text, result in zip(texts, predictor.predict(texts), strict=True):
        with torch.no_grad():
            chances = model(**tiny_tokenizer(text, return_tensors="pt")).logits.sigmoid()[0].tolist()
        assert close(result["scores"], dict(zip("abc", chances, strict=True)))
        assert result["labels"] == [
            label for label, chance in zip("abc", chances, strict=True) if chance > threshold
        ]
        assert result.keys() == {"text", "labels", "scores"}


def test_regression(tiny_student_config, tiny_tokenizer):
    model = build(MiniAlbertForSequenceClassification, tiny_student_config, ("score",), "regression")
    (result,) = Predictor(model, tiny_tokenizer, of_task("regression")).predict(["the king"])
    with torch.no_grad():
        plain = float(model(**tiny_tokenizer("the king", return_tensors="pt")).logits)
    assert result == {"text": "the king", "score": pytest.approx(plain, abs=1e-5)}


# Streams and batches


@pytest.mark.parametrize("problem", ["token", "single-label"])
def test_batches_change_nothing(tagger, classifier, tiny_tokenizer, problem):
    model = tagger if problem == "token" else classifier
    texts = [" ".join(WORDS[: 1 + index % 9]) + f" {index}" for index in range(40)]
    texts[3:3] = [LONG, "", "  "]

    def results(batch_size):
        predictor = Predictor(model, tiny_tokenizer, of_task(problem, 16, 4), batch_size=batch_size)
        return list(predictor.predict(texts))

    # Batches of one are read 16 texts at a time, those of 8 all in one chunk.
    one, eight = results(1), results(8)
    assert [result["text"] for result in one] == texts
    assert close(one, eight)


def test_another_depth(classifier, tiny_tokenizer, caplog):
    texts, found = ["the king", "by the river of it"], {}
    for options in ({}, {"num_iterations": 1}, {"exit_threshold": 0.1}):
        predictor = Predictor(classifier, tiny_tokenizer, of_task("single-label"), **options)
        found[*options] = [result["scores"] for result in predictor.predict(texts)]
    with torch.no_grad():
        batch = tiny_tokenizer(texts[0], return_tensors="pt")
        expected = classifier(**batch, num_iterations=1).logits.softmax(-1)[0].tolist()
    assert list(found["num_iterations",][0].values()) == pytest.approx(expected, abs=1e-5)
    for early, shallow in zip(found["exit_threshold",], found["num_iterations",], strict=True):
        assert early == pytest.approx(shallow, abs=1e-5)
    assert not close(found[()][0], found["num_iterations",][0], 1e-3)
    assert "1 iterations are not what the model was trained for" in caplog.text


def test_endless_input_is_read_a_chunk_at_a_time(classifier, tiny_tokenizer):
    read = []

    def endless():
        for number in count():
            read.append(number)
            yield f"x {number}"

    results = Predictor(classifier, tiny_tokenizer, of_task("single-label"), batch_size=2).predict(endless())
    assert read == []
    assert [result["text"] for result in islice(results, 40)] == [f"x {number}" for number in range(40)]
    assert len(read) == 64


def test_chunk_of_long_texts_ends_early(classifier, tiny_tokenizer, monkeypatch):
    monkeypatch.setattr("minialbert_runtime.answers._CHUNK_CHARACTERS", 20)
    read = []
    texts = (read.append(text) or text for text in ["the king was here", "in a city", "x", "y"])
    results = Predictor(classifier, tiny_tokenizer, of_task("single-label")).predict(texts)
    next(results)
    assert len(read) == 2
    assert [result["text"] for result in results] == ["in a city", "x", "y"]


def test_loaded_predictor_gives_the_same(classifier, tiny_tokenizer, tmp_path):
    inputs = of_task("single-label", 16, 4)
    save_tuned(classifier, tiny_tokenizer, inputs, tmp_path)
    loaded = Predictor.load(str(tmp_path), batch_size=4)
    assert loaded.inputs == inputs
    before = Predictor(classifier, tiny_tokenizer, inputs).predict([LONG, "the king"])
    assert close(list(loaded.predict([LONG, "the king"])), list(before))


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda predictor: pickle.loads(pickle.dumps(predictor))])
def test_copies_and_pickles_answer_alike(classifier, tiny_tokenizer, copied):
    predictor = Predictor(classifier, tiny_tokenizer, of_task("single-label", 16, 4), threshold=0.9, top_k=2)
    other = copied(predictor)
    assert list(other.predict([LONG, "x"])) == list(predictor.predict([LONG, "x"]))


# Mistakes


def test_a_mapping_is_no_list_of_texts(classifier, tiny_tokenizer):
    for body in ({"text": "the king"}, b"the king"):
        with pytest.raises(UserError, match=r"expected a list of texts, found \w+: give \[text\]"):
            Predictor(classifier, tiny_tokenizer, of_task("single-label")).predict(body)


def test_what_comes_before_a_bad_text_has_its_answers(classifier, tiny_tokenizer):
    predictor = Predictor(classifier, tiny_tokenizer, of_task("single-label"), max_characters=20)
    results = predictor.predict(["the king", "a" * 21])
    assert next(results)["text"] == "the king"
    with pytest.raises(UserError, match="text 2: 21 characters, and the limit is 20"):
        next(results)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "text 2: expected a text or a pair of texts, found NoneType"),
        (("a", "b", "c"), "text 2: expected a text or a pair of texts, found tuple"),
        (("a", 3), "text 2: expected a text or a pair of texts, found int"),
        ("a\ud800", "text 2: holds half of a surrogate pair"),
        (("a", "b"), "text 2: found a pair, but entities"),
    ],
)
def test_what_is_no_text_is_refused(tagger, tiny_tokenizer, text, message):
    with pytest.raises(UserError, match=message):
        list(Predictor(tagger, tiny_tokenizer, of_task("token")).predict(["fine", text]))


def test_one_string_is_no_list_of_texts(classifier, tiny_tokenizer):
    with pytest.raises(UserError, match=r"give \[text\]"):
        Predictor(classifier, tiny_tokenizer, of_task("single-label")).predict("the king")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "int4"}, "unknown precision 'int4'"),
        ({"batch_size": 0}, "batch size of at least 1, found 0"),
        ({"batch_size": 2.0}, "batch size of at least 1, found 2.0"),
        ({"top_k": "2"}, "top_k of at least 1, found '2'"),
        ({"threshold": 50}, "threshold from 0 to 1, found 50"),
        ({"threshold": "0.5"}, "threshold from 0 to 1, found '0.5'"),
        ({"num_iterations": 0}, "num_iterations: expected at least 1, found 0"),
        ({"exit_threshold": 2.0}, "exit_threshold: expected a number above 0 and up to 1, found 2.0"),
    ],
)
def test_options_out_of_range(classifier, tiny_tokenizer, options, message):
    with pytest.raises(UserError, match=message):
        Predictor(classifier, tiny_tokenizer, of_task("single-label"), **options)


def test_outputs_that_are_not_finite_are_an_error(classifier, tiny_tokenizer):
    with torch.no_grad():
        classifier.classifier.bias[0] = torch.nan
    with pytest.raises(UserError, match="not finite in fp32: its weights are damaged"):
        list(Predictor(classifier, tiny_tokenizer, of_task("single-label")).predict(["x"]))


def test_json_line_is_one_line():
    line = to_json_line({"text": 'é\n\u2028\x85\x0b中"\\u2028'})
    assert len(line.splitlines()) == 1
    assert "é" in line and "中" in line
    assert json.loads(line) == {"text": 'é\n\u2028\x85\x0b中"\\u2028'}
    with pytest.raises(ValueError, match="not JSON compliant"):
        to_json_line({"score": float("nan")})


# Inputs


def test_lines_of_files_and_stdin_are_texts(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\r\n\n t\xc3\xa9\xe2\x80\xa8x \nlast")
    (tmp_path / "empty.txt").touch()
    paths = [str(tmp_path / "a.txt"), "-", str(tmp_path / "empty.txt")]
    inputs = list(read_inputs(paths, stdin=io.BytesIO("中\n\n".encode())))
    assert [one.text for one in inputs] == ["one", "", " té\u2028x ", "last", "中", ""]
    assert [one.about["file"] for one in inputs] == [paths[0]] * 4 + ["-"] * 2


def test_rows_of_tables_are_texts(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [("é, x", "1"), ('say "y"', "2")]
    (tmp_path / "a.csv").write_text('text,b\n"é, x",1\n"say ""y""",2\n', encoding="utf-8")
    (tmp_path / "b.tsv").write_text('text\tb\né, x\t1\nsay "y"\t2\n', encoding="utf-8")
    lines = "".join(json.dumps({"b": other, "text": text}) + "\n" for text, other in rows)
    (tmp_path / "c.jsonl").write_text(lines)
    (tmp_path / "d.ndjson").write_text(lines)
    columns = {"text": [text for text, _ in rows], "b": [other for _, other in rows]}
    pq.write_table(pa.table(columns), tmp_path / "e.parquet")
    for path in sorted(map(str, tmp_path.iterdir())):
        assert list(read_inputs([path])) == [(text, {}) for text, _ in rows]
        assert list(read_inputs([path], pair_column="b")) == [(row, {}) for row in rows]
        assert list(read_inputs([path], column="b")) == [("1", {}), ("2", {})]
        named = read_inputs([path], id_column="b")
        assert [one.about for one in named] == [{"id": "1"}, {"id": "2"}]


@pytest.mark.parametrize("header", ["Text,kind", "SENTENCE,kind", "question,label", "premise,text"])
def test_the_text_is_found_by_its_usual_names(tmp_path, header, caplog):
    (tmp_path / "a.csv").write_text(f"{header}\nx,y\n")
    with caplog.at_level("INFO", logger="minialbert"):
        (read,) = read_inputs([str(tmp_path / "a.csv")])
    exact = "text" in header
    told = [] if exact else [f"{tmp_path / 'a.csv'}: the text is the column '{header.split(',')[0]}'"]
    assert (read.text, caplog.messages) == ("y" if exact else "x", told)


def test_how_a_table_was_read_is_told(tmp_path, caplog):
    (tmp_path / "a.csv").write_text("id;text;;\n1;x;;\n")
    with caplog.at_level("INFO", logger="minialbert"):
        (read,) = read_inputs([str(tmp_path / "a.csv")])
    assert (read.text, read.about) == ("x", {"id": "1"})
    assert caplog.messages == [f"{tmp_path / 'a.csv'}: columns are divided by semicolons"]


def test_a_pointer_in_place_of_texts_is_refused(tmp_path):
    (tmp_path / "a.txt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    with pytest.raises(
        UserError, match=r"a\.txt is a pointer of Git LFS to a file that is not here: fetch it"
    ):
        read_inputs([str(tmp_path / "a.txt")])


@pytest.mark.parametrize("header", ["premise,hypothesis", "question,sentence", "note,body", "Sentence,Text"])
def test_columns_that_are_no_single_text_are_to_be_named(tmp_path, header):
    (tmp_path / "a.csv").write_text(f"{header}\nx,y\n")
    with pytest.raises(UserError, match=r"a\.csv: no column 'text'; --column names it"):
        list(read_inputs([str(tmp_path / "a.csv")]))


def test_a_row_keeps_its_id(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    (tmp_path / "a.csv").write_text("ID,text\n0007,x\n8,y\n")
    assert [one.about for one in read_inputs([str(tmp_path / "a.csv")])] == [{"id": "0007"}, {"id": "8"}]
    # What JSON has no name for is told as text.
    ids = [datetime.date(2026, 1, 2), None]
    pq.write_table(pa.table({"id": ids, "text": ["x", "y"]}), tmp_path / "b.parquet")
    both = [str(tmp_path / "b.parquet"), str(tmp_path / "a.csv")]
    found = [one.about for one in read_inputs(both)]
    assert found[:2] == [{"id": "2026-01-02", "file": both[0]}, {"file": both[0]}]
    assert found[2] == {"id": "0007", "file": both[1]}
    with pytest.raises(UserError, match=r"a\.csv: no column 'number'"):
        list(read_inputs([str(tmp_path / "a.csv")], id_column="number"))


class Questions(TextModel):
    """A model of questions that needs no engine."""

    _cutter = _logits = None  # type: ignore[assignment]


def test_a_question_is_no_blank(tmp_path, monkeypatch):
    monkeypatch.setattr(Questions, "__abstractmethods__", frozenset())
    model = Questions("question-answering", ("start", "end"))
    for text, said in (
        ((" ", "the king"), "text 1: the question is empty"),
        ("who", "text 1: found a single text"),
    ):
        with pytest.raises(UserError, match=said):
            list(model.predict([text]))
    assert model.fault(("who", "")) is None
    rows = [("who", "the king"), (" \t", "the king"), ("who", "x"), ("", "x")]
    lines = (json.dumps({"question": question, "context": text}) for question, text in rows)
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    columns = {"column": "question", "pair_column": "context"}
    inputs = read_inputs([str(tmp_path / "a.jsonl")], **columns, model=lambda: model)
    with pytest.raises(UserError, match=r"a\.jsonl:2: the question is empty; 2 of 4 rows are refused: 2, 4$"):
        next(inputs)


def test_what_a_caller_cannot_choose_is_not_offered(tmp_path, caplog):
    caplog.set_level("INFO")
    (tmp_path / "a.txt").write_text("one\n")
    assert [one.text for one in read_inputs([str(tmp_path / "a.txt")], documents=None)] == ["one"]
    assert caplog.messages == ["text files are read as one text a line"]
    with pytest.raises(UserError, match="is a folder: give its files$"):
        read_inputs([str(tmp_path)], documents=None)


def test_the_documents_of_a_folder(tmp_path, caplog):
    (tmp_path / "notes" / ".checkpoints").mkdir(parents=True)
    (tmp_path / "notes" / "B.TXT").write_text("two")
    (tmp_path / "notes" / "a.txt").write_text("one")
    (tmp_path / "notes" / "._a.txt").write_bytes(b"\x00\x05\x16\x07")  # as macOS leaves them
    (tmp_path / "notes" / ".checkpoints" / "a.txt").write_text("earlier")
    (tmp_path / "notes" / "linked").symlink_to(tmp_path)
    with caplog.at_level("INFO"):
        read = list(read_inputs([str(tmp_path / "notes")], documents=True))
    assert [one.text for one in read] == ["two", "one"]
    assert caplog.messages[0].endswith(
        "links to folders are not followed; give what they lead to as well: linked"
    )


def test_a_document_is_one_text(tmp_path):
    folder = tmp_path / "notes" / "b"
    folder.mkdir(parents=True)
    first, second = folder.parent / "a.txt", folder / "c.txt"
    first.write_bytes(b"\xef\xbb\xbfbreast\r\ncancer\n")
    second.write_text("é\n", encoding="utf-8")
    (folder / "readme.md").write_text("no note")
    inputs = list(read_inputs([str(folder.parent), "-"], documents=True, stdin=io.BytesIO(b"x\ny")))
    assert inputs == [
        ("breast\r\ncancer\n", {"file": str(first)}),
        ("é\n", {"file": str(second)}),
        ("x\ny", {"file": "-"}),
    ]
    with pytest.raises(UserError, match=r"is a folder: give --documents"):
        read_inputs([str(folder)])
    second.unlink()
    with pytest.raises(UserError, match=r"holds no \.txt file"):
        read_inputs([str(folder)], documents=True)
    first.write_bytes(b"one\ntwo\xff")
    with pytest.raises(UserError, match=r"a\.txt:2: not UTF-8 \(byte 0xff\)"):
        list(read_inputs([str(first)], documents=True))
    first.write_text("a" * 100)
    with pytest.raises(UserError, match=r"a\.txt: more than 20 characters: split it"):
        list(read_inputs([str(first)], documents=True, max_characters=20))


def test_all_bad_rows_of_all_tables_are_told_before_the_first_text(tmp_path):
    rows = [{"text": "x"}] + [{"text": None}] * 11 + [{"text": "y" * 30}]
    (tmp_path / "a.txt").write_text("fine\n")
    (tmp_path / "b.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    inputs = read_inputs([str(tmp_path / "a.txt"), str(tmp_path / "b.jsonl")], max_characters=20)
    with pytest.raises(UserError) as stop:
        next(inputs)
    told = str(stop.value)
    assert "b.jsonl:2: expected a text in column 'text', found nothing; " in told
    assert told.endswith("12 of 13 rows are refused: 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, …")
    (tmp_path / "b.jsonl").write_text(json.dumps(rows[-1]))
    with pytest.raises(UserError, match=r"b\.jsonl:1: 30 characters in column 'text', and the limit is 20"):
        list(read_inputs([str(tmp_path / "b.jsonl")], max_characters=20))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"one\ntw\xffo\n", r"a\.txt:2: not UTF-8 \(byte 0xff\)"),
        ("a.txt", "one\n".encode("utf-16-le"), r"a\.txt:1: a NUL byte"),
        ("a.txt", b"one\rtwo\rthree\r", r"a\.txt:1: its lines end with CR alone"),
        ("a.csv", b"text\n\xff\n", r"a\.csv:2: not UTF-8"),
        ("a.csv", b"texts,b\nx,y\n", r"a\.csv: no column 'text'; .* 'texts', 'b'"),
        (
            "a.jsonl",
            b'{"text": "x"}\n{"b": 1}\n',
            r"a\.jsonl:2: expected a text in column 'text', found nothing",
        ),
        ("a.jsonl", b'{"text": "x"}\n\n{"text": 7}\n', r"a\.jsonl:3: .* 'text', found int"),
    ],
)
def test_damaged_inputs_name_file_and_row(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        list(read_inputs([str(tmp_path / name)]))


def test_damaged_stdin_names_the_line():
    texts = read_inputs(["-"], stdin=io.BytesIO(b"one\n\xe9\n"))
    assert next(texts) == ("one", {})
    with pytest.raises(UserError, match="stdin:2: not UTF-8"):
        next(texts)


def test_paths_are_looked_at_first(tmp_path):
    (tmp_path / "a.txt").write_text("one\n")
    present = str(tmp_path / "a.txt")
    with pytest.raises(UserError, match=r"no such file: .*b\.txt"):
        read_inputs([present, str(tmp_path / "b.txt")])
    with pytest.raises(UserError, match=r"b\.doc: unknown extension; expected one of \.txt \.csv"):
        read_inputs([present, str(tmp_path / "b.doc")])
    with pytest.raises(UserError, match="columns are for tables"):
        read_inputs([present, "-"], column="text")
