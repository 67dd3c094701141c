"""What a service relies on: the same answer in any company, bounded texts, forks, copies, and nothing left behind."""

import copy
import json
import os
import pickle
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import IDS, TAGS, VOCABULARY, counting_table
from onnx import TensorProto, helper, numpy_helper
from test_cli import refuse, run

import minialbert_runtime
from minialbert_runtime import Model, RuntimeUserError, session

SOURCE = str(Path(minialbert_runtime.__file__).parents[1])
WORDS = ["king", "river", "city", "new", "was", "é", "."]


def alone(code, *arguments, **environment):
    """What a process of its own prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": SOURCE} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    return done.stdout.strip()


# int8, whose activations are quantised by their range at each call


@pytest.fixture
def dynamic(exported):
    """A classifier whose logits are sums of rows that share one range with all others of a run, padding included."""
    table = np.random.default_rng(0).normal(size=(len(VOCABULARY), 3)).astype(np.float32)
    table[IDS["[PAD]"]] *= 9
    folder = exported("single-label", ("a", "b", "c"), table)
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("DynamicQuantizeLinear", ["rows"], ["steps", "scale", "zero"]),
        helper.make_node("DequantizeLinear", ["steps", "scale", "zero"], ["rough"]),
        helper.make_node("Unsqueeze", ["attention_mask", "third"], ["column"]),
        helper.make_node("Cast", ["column"], ["weights"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["rough", "weights"], ["weighted"]),
        helper.make_node("ReduceSum", ["weighted", "second"], ["logits"], keepdims=0),
    ]
    constants = {"table": table, "second": np.array([1]), "third": np.array([2])}
    ids = [
        helper.make_tensor_value_info(name, TensorProto.INT64, ["batch", "sequence"])
        for name in ("input_ids", "attention_mask")
    ]
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 3])
    graph = helper.make_graph(
        nodes,
        "model",
        ids,
        [logits],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, str(folder / "model.onnx"))
    say(folder, "export.json", precision="int8")
    return folder


def say(folder, name, **values):
    path = folder / name
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_int8_gives_a_text_the_same_bits_alone_and_in_any_company(dynamic):
    generator = random.Random(0)
    texts = [" ".join(generator.choices(WORDS, k=generator.randint(0, 40))) for _ in range(60)]
    model = Model(dynamic)
    expected = {text: model(text) for text in texts}
    for _ in range(5):
        batch = generator.choices(texts, k=generator.randint(1, 60))
        assert list(model.predict(batch)) == [expected[text] for text in batch]
    beside_others = list(Model(dynamic, batch_size=32).predict(texts))
    assert beside_others != [expected[text] for text in texts]


@pytest.mark.parametrize(
    ("precision", "batch_size"), [("int8", 1), ("int8-dynamic", 1), ("int8-static", 32), ("fp32", 32)]
)
def test_only_ranges_of_a_run_need_texts_one_by_one(dynamic, precision, batch_size):
    say(dynamic, "export.json", precision=precision)
    assert Model(dynamic).batch_size == batch_size
    assert Model(dynamic, batch_size=8).batch_size == 8


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_runs_hold_texts_of_one_length_where_the_folder_says_so(dynamic, precision, monkeypatch):
    say(dynamic, "export.json", precision=precision, batches="one length")
    model, runs = Model(dynamic), []
    assert model.batch_size == 32
    run = model._run
    monkeypatch.setattr(
        model,
        "_run",
        lambda rows, session: runs.append([len(row.input_ids) for row in rows]) or run(rows, session),
    )
    texts = [" ".join(WORDS[:1] * count) for count in (3, 1, 2, 3, 1, *[2] * 40)]
    assert len(list(model.predict(texts))) == 45
    assert sorted((len(run), *set(run)) for run in runs) == [(2, 3), (2, 5), (9, 4), (32, 4)]


# Many texts


def test_many_texts_run_side_by_side_in_runs_of_256_tokens(classifier, monkeypatch):
    texts = [" ".join(WORDS[:1] * count) for count in [*range(1, 60), *[1] * 50]]
    model, runs = Model(classifier, threads=2), []
    expected = [model(text) for text in texts]
    assert model._single is None, "a text alone needs no second session"
    run = model._run
    monkeypatch.setattr(
        model,
        "_run",
        lambda rows, session: (
            runs.append((session, [len(row.input_ids) for row in rows])) or run(rows, session)
        ),
    )
    assert list(model.predict(texts)) == expected
    assert {session for session, _ in runs} == {model._single}
    assert max(max(lengths) * len(lengths) for _, lengths in runs) <= 256
    assert all(max(lengths) * (len(lengths) + 1) > 256 or len(lengths) == 32 for _, lengths in runs[:-1])
    assert list(Model(classifier, threads=1).predict(texts)) == expected


def test_models_share_their_working_memory_and_keep_their_bits(classifier, monkeypatch):
    texts, shared = ["a new city", "river " * 50, "king"] * 9, "session.use_env_allocators"
    models = [Model(classifier, threads=1) for _ in range(2)]
    assert all(one._session.get_session_options().get_session_config_entry(shared) == "1" for one in models)
    monkeypatch.setattr(session, "_owner_of_the_arena", lambda: 0)  # as in a child of the process
    own = Model(classifier, threads=1)
    with pytest.raises(RuntimeError, match=shared):
        own._session.get_session_options().get_session_config_entry(shared)
    assert [list(one.predict(texts)) for one in models] == [list(own.predict(texts))] * 2


def test_few_tokens_are_run_one_after_the_other_on_all_threads(classifier):
    model = Model(classifier, threads=2)
    list(model.predict(["king river"] * 64))  # 256 tokens
    assert model._single is None
    list(model.predict(["king river"] * 65))
    assert model._single is not None


def test_a_graph_replaced_since_it_was_loaded_changes_no_answer_to_many_texts(classifier):
    model, texts = Model(classifier, threads=2), ["king river"] * 200
    expected = list(model.predict(texts))
    other = Model(classifier, threads=2)
    (classifier / "model.onnx").write_bytes(b"another")
    assert list(other.predict(texts)) == list(model.predict(texts)) == expected


def test_runs_side_by_side_end_with_the_time_of_their_request(classifier):
    serving = pytest.importorskip("minialbert_runtime.serving")
    model = serving.ServedModel("m", classifier, threads=2)
    token = serving._until.set(0.0)
    try:
        with pytest.raises(serving.OutOfTimeError):
            list(model.predict(["king river"] * 200))
    finally:
        serving._until.reset(token)


# What is asked


def test_a_mapping_is_no_list_of_texts(classifier):
    frame = type("DataFrame", (list,), {"columns": ["text"]})(["text"])  # gives the names of its columns
    for body in ({"text": "king"}, {"texts": ["king"]}, "king", b"king", None, 5, frame):
        with pytest.raises(RuntimeUserError, match=r"expected a list of texts, found \w+: give \[text\]"):
            Model(classifier).predict(body)


def test_a_list_of_two_texts_is_a_pair_as_json_writes_it(classifier):
    model = Model(classifier)
    (result,) = model.predict(json.loads('[["king", "river"]]'))
    assert result == model("king", "river")
    with pytest.raises(RuntimeUserError, match="text 1: expected a text or a pair of texts, found list"):
        list(model.predict([["a", "b", "c"]]))


@pytest.mark.parametrize(
    ("pairs", "text", "message"),
    [
        (True, "king", "text 2: found a single text, but the model was tuned on pairs of texts"),
        (False, ("king", "river"), "text 2: found a pair, but the model was tuned on single texts"),
    ],
)
def test_texts_of_the_other_kind_are_refused(classifier, pairs, text, message):
    say(classifier, "task.json", pairs=pairs)
    fine = ("a", "b") if pairs else "a"
    results = Model(classifier).predict([fine, text])
    assert next(results)  # what comes before has its answer
    with pytest.raises(RuntimeUserError, match=message):
        next(results)
    say(classifier, "task.json", pairs="yes")
    with pytest.raises(RuntimeUserError, match="task.json is damaged"):
        Model(classifier)


@pytest.mark.parametrize("pair", [False, True])
def test_a_text_over_the_limit_is_refused(classifier, pair):
    model = Model(classifier, max_characters=20)
    assert model("king " * 4)
    with pytest.raises(RuntimeUserError, match="text 1: 21 characters, and the limit is 20") as stop:
        model("river", "king " * 4 + ".") if pair else model("king " * 4 + ".")
    assert "\n" not in str(stop.value)
    with pytest.raises(RuntimeUserError, match="1,000,001 characters, and the limit is 1,000,000"):
        Model(classifier)("a" * 1_000_001)


def test_the_command_refuses_a_line_over_the_limit(classifier):
    lines = b"king\nriver\n" + b"a" * 200
    status, out, err = run(classifier, "--input", "-", "--max-characters", 50, stdin=lines)
    assert status == 2
    assert [json.loads(line)["text"] for line in out.splitlines()] == ["king", "river"]
    assert "text 3: 200 characters, and the limit is 50" in err and err.count("\n") == 1
    # More bytes than the limit has in any text: the line is not read to its end.
    lines = b"king\n" + b"a" * 1000
    _, out, err = run(classifier, "--input", "-", "--max-characters", 50, stdin=lines)
    assert "stdin:2: the line has more than 50 characters" in err and out.count("\n") == 1
    assert "max_characters of at least 1" in refuse(classifier, "x", "--max-characters", 0)


def test_the_command_reads_a_file_as_one_text(classifier, tmp_path):
    (tmp_path / "note.txt").write_bytes(b"\xef\xbb\xbfking\r\n\nriver")
    status, out, _ = run(classifier, "--input", tmp_path / "note.txt", "--documents")
    assert (status, json.loads(out)["text"]) == (0, "king\r\n\nriver")
    assert "note.txt: more than 1 characters" in refuse(
        classifier, "--input", tmp_path / "note.txt", "--documents", "--max-characters", 1
    )
    assert "stdin:2: not UTF-8" in refuse(classifier, "--input", "-", "--documents", stdin=b"king\n\xff")
    assert "--documents is for a file" in refuse(classifier, "king", "--documents")


def test_a_class_under_the_threshold_is_none(classifier):
    assert Model(classifier, threshold=0.5)("king king")["label"] == "a"
    result = Model(classifier, threshold=0.99)("king king")
    assert result["label"] is None and result["score"] == result["scores"]["a"]


def test_entities_under_the_threshold_are_left_out(exported):
    table = np.zeros((len(VOCABULARY), len(TAGS)))
    table[:, 0] = 5
    for token, margin in (("king", 6), ("river", 9)):
        table[IDS[token], TAGS.index("B-King")] = margin
    folder = exported("token", TAGS, table)
    for threshold, found in ((None, ["king", "river"]), (0.9, ["river"]), (1, [])):
        entities = Model(folder, threshold=threshold)("king was river")["entities"]
        assert [entity["text"] for entity in entities] == found


@pytest.mark.parametrize("problem", ["single-label", "multi-label"])
def test_the_highest_scores_alone(exported, problem):
    folder = exported(problem, ("a", "b", "c"), counting_table())
    result = Model(folder, top_k=2)("king river")
    assert list(result["scores"]) == ["b", "a"]
    _, out, _ = run(folder, "king river", "--top-k", 1)
    assert list(json.loads(out)["scores"]) == ["b"]


def test_options_that_a_problem_has_no_use_for(exported, tagger):
    with pytest.raises(RuntimeUserError, match="a token model has no use for top_k"):
        Model(tagger, top_k=1)
    say(tagger, "export.json", head="sequence-classification")
    say(tagger, "task.json", problem="regression")
    with pytest.raises(RuntimeUserError, match="a regression model has no use for threshold"):
        Model(tagger, threshold=0.5)


# Processes


FORKED = """
import os, signal, sys
from minialbert_runtime import Model, RuntimeUserError
model = Model(sys.argv[1], threads=int(sys.argv[2]))
ask = lambda: [model("king river"), *model.predict(["king river"] * 200)]
before = ask()
if sys.argv[3] == "swapped":
    os.replace(os.path.join(sys.argv[1], "other.onnx"), os.path.join(sys.argv[1], "model.onnx"))
if os.fork() == 0:
    signal.alarm(20)
    try:
        if sys.argv[3] != "unused":
            assert ask() == before
    except RuntimeUserError as error:
        print(error)
    sys.exit(0)
status = os.wait()[1]
assert ask() == before
print("ended with", status)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("what", ["used", "unused"])
def test_a_model_loaded_before_a_fork_answers_and_ends(classifier, threads, what):
    assert alone(FORKED, classifier, threads, what) == "ended with 0"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks")
def test_a_graph_that_was_replaced_before_the_fork_is_not_taken_for_the_loaded_one(classifier):
    (classifier / "other.onnx").write_bytes((classifier / "model.onnx").read_bytes())
    refused, ended = alone(FORKED, classifier, 1, "swapped").splitlines()
    assert "is not the file that was loaded before the fork: load the model again" in refused
    assert ended == "ended with 0"


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))]
)
def test_copies_and_pickles_answer_alike(classifier, copied, monkeypatch):
    monkeypatch.chdir(classifier.parent)
    model = Model(classifier.name, batch_size=3, threshold=0.9, top_k=1, max_characters=50, threads=1)
    monkeypatch.chdir("/")
    other = copied(model)
    assert other("king river") == model("king river")
    assert (other.batch_size, other.max_characters) == (3, 50)


@pytest.mark.parametrize("given", [None, "0"])
def test_telemetry_is_off_unless_somebody_says_otherwise(given, monkeypatch):
    code = "import os, minialbert_runtime.session; print(os.environ['ORT_DISABLE_TELEMETRY'])"
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY")  # which this process set
    assert alone(code, **({} if given is None else {"ORT_DISABLE_TELEMETRY": given})) == (given or "1")


def test_a_prediction_leaves_nothing_in_the_home(classifier, tmp_path, monkeypatch):
    (tmp_path / "home").mkdir()
    monkeypatch.delenv("ORT_DISABLE_TELEMETRY")
    homes = {
        name: str(tmp_path / "home") for name in ("HOME", "XDG_CACHE_HOME", "USERPROFILE", "LOCALAPPDATA")
    }
    code = "import sys; from minialbert_runtime import Model; print(Model(sys.argv[1])('king')['label'])"
    assert alone(code, classifier, **homes) == "a"
    assert list((tmp_path / "home").rglob("*")) == []
