"""Models and engines side by side: what is measured, in which order, and how it is told."""

from __future__ import annotations

import copy
import json
import shutil

import numpy as np
import pytest
import torch
import typer
from minialbert_runtime.errors import UserError as RuntimeUserError
from minialbert_runtime.session import OpenVinoSession, has_openvino
from typer.testing import CliRunner

from minialbert import MiniAlbertConfig
from minialbert.cli.deploy import bench
from minialbert.deploy import bench as benchmarks
from minialbert.deploy.bench import (
    Timed,
    as_markdown,
    benchmark,
    tables,
    take_turns,
)
from minialbert.deploy.bench_models import SHAPES, build_model, parse_models, recorded_quality
from minialbert.deploy.bench_worker import (
    _Session,
    make_inputs,
    quantized,
    static_classifier,
    timed_runs,
    torch_runner,
)
from minialbert.errors import MissingExtraError, UserError
from minialbert.report.tables import show
from minialbert.runs.machine import instruction_sets

SHAPE = {
    "vocab_size": 400, "hidden_size": 32, "num_attention_heads": 4, "intermediate_size": 64,
    "max_position_embeddings": 24,
}  # fmt: skip


class Machine:
    """A clock that only runs of known duration move, and what was run."""

    def __init__(self, durations):
        self.now, self.durations, self.runs = 0.0, durations, []

    def timed(self, name, max_length=64):
        def run(batch, length):
            self.runs.append(name)
            durations = self.durations[name]
            taken = durations.pop(0) if len(durations) > 1 else durations[0]
            self.now += taken
            return [taken]

        return Timed(run, max_length)

    def take_turns(self, settings=((1, 8),), **options):
        timed = {(name, "e"): self.timed(name) for name in self.durations}
        options = {"repeats": 4, "seconds": 1000, **options}
        take_turns(timed, settings, clock=lambda: self.now, **options)
        return timed


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    (folder / "tiny-bert.json").write_text(
        json.dumps({"model_type": "bert", "num_hidden_layers": 2, **SHAPE})
    )
    student = MiniAlbertConfig(**SHAPE, embedding_size=16, num_hidden_layers=3, adapter_reduction_factor=8)
    (folder / "tiny-student.json").write_text(json.dumps(student.to_dict()))
    return folder


class NoProcess:
    """In place of a process that times an engine."""

    def __init__(self, request):
        self.facts = {"fp32": 9.0} if request["engine"] == "products" else {"bytes": 1}

    __enter__ = lambda self: self  # noqa: E731
    __exit__ = lambda self, *_: None  # noqa: E731
    time = lambda self, batch, length: [1.0]  # noqa: E731


@pytest.fixture(scope="module")
def measured(configs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    torch.manual_seed(5)
    state = torch.get_rng_state()
    record = benchmark(
        [f"half=config:{configs}/tiny-student.json@1"], engines=["torch-int8", "onnx-int8"], lengths=[8, 16],
        batch_size=2, repeats=1, threads=1, output=folder / "out",
    )  # fmt: skip
    assert torch.equal(torch.get_rng_state(), state)
    return record, folder / "out"


def test_batches_run_side_by_side_after_the_graphs_are_gone(configs):
    record = benchmark(
        [f"half=config:{configs}/tiny-student.json"], engines=["onnx-int8", "onnx-int8-dynamic"], lengths=[16],
        batch_size=40, repeats=1, threads=2,
    )  # fmt: skip
    assert record["notes"] == []
    for engine in ("onnx-int8", "onnx-int8-dynamic"):
        cells = record["metrics"]["half"][engine]["timings"]
        assert [one["batch_size"] for one in cells] == [1, 40]


def test_turns_rotate_and_go_back_and_forth():
    machine = Machine({"a": [1.0], "b": [1.0], "c": [1.0]})
    machine.take_turns()
    turns = ["".join(machine.runs[start : start + 3]) for start in range(0, len(machine.runs), 3)]
    assert turns == ["abc", "acb", "cab", "cba"]


def test_a_turn_warms_up_and_repeats_what_is_short(monkeypatch):
    clock = Machine({"run": [0.09, 0.08, 0.07, 0.06]})
    monkeypatch.setattr("time.perf_counter", lambda: clock.now)
    run = clock.timed("run").run
    assert timed_runs(lambda: run(1, 1), new=True) == pytest.approx(
        [0.08, 0.07, 0.06]
    )  # 0.2 s, without the first
    clock.durations["run"] = [0.001]
    assert len(timed_runs(lambda: run(1, 1), new=False)) == 20
    clock.durations["run"] = [5.0, 4.0]
    assert timed_runs(lambda: run(1, 1), new=True) == pytest.approx([4.0])  # its first run prepares
    assert timed_runs(lambda: run(1, 1), new=False) == pytest.approx([4.0])
    assert len(clock.runs) == 4 + 21 + 2 + 1


def test_long_cells_are_timed_less_often_but_three_times():
    machine = Machine({"fast": [1.0], "slow": [4.0], "slowest": [50.0]})
    timed = machine.take_turns(repeats=15, seconds=20.0)
    counts = {name: len(timed[name, "e"].seconds[1, 8]) for name in machine.durations}
    assert counts == {"fast": 15, "slow": 5, "slowest": 3}
    assert timed["slow", "e"].seconds[1, 8] == pytest.approx([4.0] * 5)


def test_a_cell_that_fails_leaves_the_others():
    machine = Machine({"a": [1.0], "b": [1.0]})

    def fail(batch, length):
        raise RuntimeError("no kernel\nsecond line")

    timed = {
        ("a", "e"): machine.timed("a"),
        ("x", "e"): Timed(fail, 64),
        ("short", "e"): machine.timed("b", 4),
    }
    take_turns(timed, [(1, 4), (1, 8)], repeats=2, seconds=9, clock=lambda: machine.now)
    failures = {pair: one.failure for pair, one in timed.items() if one.failure}
    assert failures == {("x", "e"): "cannot be run at batch 1 x 4 (no kernel)"}
    assert timed["x", "e"].seconds == {}
    assert set(timed["a", "e"].seconds) == {(1, 4), (1, 8)}
    assert set(timed["short", "e"].seconds) == {(1, 4)}


def test_ratios_are_of_medians():
    # The means would be 4 and 2.
    timed = {
        ("a", name): Timed(None, 8, {"bytes": 10}, {(1, 8): values})
        for name, values in {"slow": [2.0, 3, 7], "fast": [1.0, 1, 4]}.items()
    }
    found = benchmarks._metrics(list(timed), timed, [(1, 8)])["a"]
    first, second = (found[engine]["timings"][0] for engine in ("slow", "fast"))
    assert first["seconds"] == pytest.approx({"median": 3, "p95": 6.6, "min": 2, "q1": 2.5, "q3": 5})
    assert (first["speed_ratio"], second["speed_ratio"]) == (1, 3)
    assert second["tokens_per_second"] == 8
    assert found["slow"]["bytes"] == 10 and found["slow"]["peak_memory_bytes"] is None


def test_engines_side_by_side(measured):
    record, folder = measured
    assert record["notes"] == []
    assert all(rate > 0 for rate in record["ceilings"].values()) and len(record["ceilings"]) == 3
    assert list(record["metrics"]) == ["half"]
    for engines in record["metrics"].values():
        assert list(engines) == record["settings"]["engines"]
        # A process of ONNX Runtime is one without torch.
        peaks = {engine: cell["peak_memory_bytes"] for engine, cell in engines.items()}
        assert 10e6 < peaks["onnx-int8"] < 0.6 * peaks["torch-int8"]
        for cell in engines.values():
            assert [(t["batch_size"], t["length"]) for t in cell["timings"]] == [
                (1, 8), (1, 16), (2, 8), (2, 16)
            ]  # fmt: skip
            for timing in cell["timings"]:
                spread = timing["seconds"]
                assert 0 < spread["min"] <= spread["q1"] <= spread["median"] <= spread["q3"]
                assert spread["median"] <= spread["p95"] and timing["n"] >= 1
                tokens = timing["batch_size"] * timing["length"]
                assert timing["tokens_per_second"] * spread["median"] == pytest.approx(tokens)
    assert json.loads((folder / "result.json").read_text()) == record
    assert record["models"]["half"]["num_iterations"] == 1
    assert str(folder.parent) not in json.dumps(record)


def test_tables_say_what_the_record_says(measured):
    record, folder = measured
    size, latency, throughput = tables(record)
    names = [(model, engine) for model in record["models"] for engine in record["settings"]["engines"]]
    for table in (size, latency, throughput):
        assert [row[:2] for row in table.rows] == names
    assert latency.columns == ("model", "engine", "8 tokens", "95 %", "x", "16 tokens", "95 %", "x")
    for one, row, many in zip(names, latency.rows, throughput.rows, strict=True):
        first, longer, second, _ = record["metrics"][one[0]][one[1]]["timings"]
        assert float(row[5]) == pytest.approx(1e3 * longer["seconds"]["median"], rel=0.01, abs=0.006)
        assert float(row[2]) == pytest.approx(1e3 * first["seconds"]["median"], rel=0.01, abs=0.006)
        assert float(row[3]) == pytest.approx(1e3 * first["seconds"]["p95"], rel=0.01, abs=0.006)
        assert float(row[4]) == pytest.approx(first["speed_ratio"], rel=0.01, abs=0.006)
        assert float(many[2]) == pytest.approx(second["tokens_per_second"], rel=0.01)
    assert latency.rows[0][4] == throughput.rows[0][3] == 1
    text = (folder / "table.md").read_text()
    assert text == as_markdown(record)
    assert f"| {' | '.join(map(show, latency.rows[0]))} |" in text
    assert f"fp32 {record['ceilings']['fp32']:,.0f}" in text


def test_a_model_that_cannot_be_exported_has_dashes(configs, monkeypatch):
    calls = []

    def fail(model):
        calls.append(model)
        raise ValueError("no such operator")

    monkeypatch.setattr(benchmarks, "trace", fail)
    monkeypatch.setattr(benchmarks, "Worker", NoProcess)
    record = benchmark(
        [f"config:{configs}/tiny-bert.json"], engines=["torch-fp32", "onnx-fp32", "onnx-int8"], lengths=[8],
        batch_size=1, repeats=1,
    )  # fmt: skip
    assert len(calls) == 1
    assert record["notes"] == [
        f"tiny-bert {engine}: cannot be prepared (ValueError: no such operator)"
        for engine in ("onnx-fp32", "onnx-int8")
    ]
    size, latency, _ = tables(record)
    assert size.rows[1][3:] == (None, None) and latency.rows[1][2:] == (None,) * 3
    assert latency.rows[0][4] == 1
    assert record["notes"][0] in as_markdown(record)


@pytest.mark.skipif(not has_openvino(), reason="needs openvino")
def test_openvino_computes_in_the_precision_that_is_asked_for(configs, tmp_path):
    model = build_model(parse_models([f"config:{configs}/tiny-student.json"])[0])
    graph, feed = benchmarks.trace(model), make_inputs(model.inputs, 99, 0, 0, 2, 16)
    found = {}
    has_bf16 = "avx512_bf16" in instruction_sets()
    for engine in ("onnx-fp32", "openvino-fp32", "openvino-int8", *(["openvino-bf16"] if has_bf16 else [])):
        path = benchmarks._saved(model, graph, engine, tmp_path / engine)
        found[engine] = _Session(str(path), engine, 1)(feed)[0][0]
    apart = {name: np.abs(one - found["onnx-fp32"]).max() for name, one in found.items()}
    assert apart["openvino-fp32"] < 1e-5 < apart["openvino-int8"] < 0.05
    assert not has_bf16 or 1e-5 < apart["openvino-bf16"] < 0.05
    # Few processors have fp16: OpenVINO takes another precision there without a word.
    plain = str(benchmarks._saved(model, graph, "openvino-fp32", tmp_path / "plain"))
    try:
        used = OpenVinoSession(plain, 1, "f16")._compiled.get_property("INFERENCE_PRECISION_HINT")
    except RuntimeUserError as error:
        assert str(error).startswith("OpenVINO has no f16 on this processor, and would compute in ")
    else:
        assert used.get_type_name() == "f16"


def test_static_vectors_are_one_row_whatever_the_engines(configs, monkeypatch):
    asked = []
    monkeypatch.setattr(benchmarks, "Worker", lambda request: asked.append(request) or NoProcess(request))
    names = ["static-256", f"config:{configs}/tiny-bert.json"]
    record = benchmark(names, engines=["torch-fp32", "torch-int8"], lengths=[8, 600], batch_size=1, repeats=1)
    pairs = [("static-256", "numpy"), ("tiny-bert", "torch-fp32"), ("tiny-bert", "torch-int8")]
    assert [row[:2] for row in tables(record)[0].rows] == pairs
    assert record["reference"] == {"model": "static-256", "engine": "numpy"}
    assert asked[1]["path"] == "256" and asked[1]["engine"] == "numpy"
    assert len(record["metrics"]["static-256"]["numpy"]["timings"]) == 2  # texts of any length
    assert record["models"]["static-256"]["parameters"] == (30522 + 2) * 256 + 2


def test_static_vectors_are_a_mean_and_a_linear_layer():
    run, size = static_classifier(16, 50, seed=3)
    first, second, both = (run({"input_ids": np.array([ids])}) for ids in ([4], [9, 9], [4, 9]))
    assert first.shape == (1, 2) and size == 4 * (52 * 16 + 2)
    np.testing.assert_allclose(both, (first + second) / 2, rtol=1e-4)


def test_a_tuned_model_and_an_exported_folder_come_with_their_scores(tuned, tmp_path, monkeypatch):
    made = tuned("ner")
    folder = shutil.copytree(
        made.model, tmp_path / "exported", ignore=shutil.ignore_patterns("*.safetensors")
    )
    (folder / "model.onnx").write_bytes(b"")
    (folder / "export.json").write_text(
        json.dumps({"format_version": 2, "head": "token-classification", "precision": "int4"})
    )
    scored = {name: made.record[name] for name in ("task", "split", "metric")}
    record = {"kind": "export", "model": {"parameters": 1500}, "metrics": {**scored, "after": 0.25}}
    (folder / "result.json").write_text(json.dumps(record))
    monkeypatch.setattr(benchmarks, "Worker", NoProcess)
    names = [f"tuned={made.model}", str(folder)]
    record = benchmark(names, engines=["torch-fp32"], lengths=[8], batch_size=1, repeats=1)
    assert list(record["metrics"]["exported"]) == ["onnx-int4"]
    assert record["models"]["exported"]["quality"] == {**scored, "score": 0.25, "of": "exported graph"}
    assert record["models"]["tuned"]["quality"] == {
        **scored, "score": made.record["score"], "of": "PyTorch model",
    }  # fmt: skip
    size, *_, quality = tables(record)
    assert size.rows[1][2] == "0.00 M"
    assert quality.rows[1] == ("exported", "exported graph", *scored.values(), "25.0 %")
    assert "entity_f1" in as_markdown(record).replace("\\", "")
    other_depth = build_model(parse_models([f"{made.model}@1"])[0])
    assert recorded_quality(other_depth) is None  # its record has no score of that depth
    with pytest.raises(UserError, match="@1 is for a MiniALBERT that is not exported"):
        build_model(parse_models([f"{folder}@1"])[0])


def test_lengths_that_not_all_models_take(configs, monkeypatch, tmp_path):
    started = []
    monkeypatch.setattr(benchmarks, "Worker", lambda request: started.append(request) or NoProcess(request))
    (tmp_path / "long.json").write_text(
        json.dumps({"model_type": "bert", "num_hidden_layers": 1, **SHAPE, "max_position_embeddings": 40})
    )
    models = [f"short=config:{configs}/tiny-bert.json", f"long=config:{tmp_path}/long.json"]
    options = {"engines": ["torch-fp32"], "batch_size": 1, "repeats": 1}
    refused = "lengths: no model takes 48 tokens, 40 at most: leave them out"
    with pytest.raises(UserError, match=refused):
        benchmark(models, lengths=[8, 48], output=tmp_path / "new" / "out", **options)
    assert started == [] and not (tmp_path / "new").exists()
    record = benchmark(models, lengths=[8, 32], **options)
    assert record["notes"] == ["short: 24 tokens at most"]
    _, latency, throughput = tables(record)
    assert latency.rows[0][5:] == (None,) * 3 and throughput.rows[0][4:] == (None,) * 2
    assert None not in latency.rows[1][5:7]
    usual = benchmark(models, **options)  # of lengths that nobody chose, those that fit
    assert usual["settings"]["lengths"] == [16]
    assert usual["notes"] == ["short: 24 tokens at most", "long: 40 tokens at most"]


def test_a_refused_bench_leaves_no_folder(configs, monkeypatch, tmp_path):
    def fail(request):
        raise UserError("no process")

    monkeypatch.setattr(benchmarks, "Worker", fail)
    with pytest.raises(UserError, match="no process"):
        benchmark(
            [f"config:{configs}/tiny-bert.json"], engines=["torch-fp32"], output=tmp_path / "new" / "out"
        )
    assert not (tmp_path / "new").exists()


def test_quantised_torch_is_still_the_model(configs):
    choice = parse_models([f"config:{configs}/tiny-student.json"])[0]
    model = build_model(choice)
    inputs = make_inputs(model.inputs, 400, 0, 0, 2, 8)
    assert (inputs["input_ids"] != 0).all() and inputs["attention_mask"].all()
    exact = torch_runner(model.model, {})(inputs).logits
    quantised = quantized(copy.deepcopy(model.model))
    assert sum(
        type(part).__module__.endswith("quantized.dynamic.modules.linear") for part in quantised.modules()
    )
    assert torch_runner(quantised, {})(inputs).logits == pytest.approx(exact, abs=0.05)


def test_names_of_models(tmp_path):
    (tmp_path / "a=b").mkdir()
    values = ["minialbert-128", "minialbert-128@4", "mine=distilbert", f"{tmp_path}/a=b", "config:x/y.json@2"]
    found = [(choice.name, choice.source, choice.num_iterations) for choice in parse_models(values)]
    assert found == [
        ("minialbert-128", "minialbert-128", None),
        ("minialbert-128@4", "minialbert-128", 4),
        ("mine", "distilbert", None),
        ("a=b", f"{tmp_path}/a=b", None),
        ("y@2", "config:x/y.json", 2),
    ]


def test_shapes_have_the_sizes_they_are_known_for():
    """Parameters of encoder, pooler and a classifier with two labels, by the papers' geometries."""
    d, inner, vocabulary = 768, 3072, 30522
    norm, block = 2 * d, 4 * d * (d + 1) + 2 * d * inner + inner + d + 4 * d
    tables_ = (vocabulary + 512 + 2) * d + norm
    head = 2 * (d + 1)
    with torch.device("meta"):
        counted = {
            name: build_model(parse_models([name])[0]).parameters for name in ("bert-base", "distilbert")
        }
    assert counted["bert-base"] == tables_ + 12 * block + d * (d + 1) + head
    assert counted["distilbert"] == tables_ - 2 * d + 6 * block + d * (d + 1) + head
    tiny = SHAPES["tinybert-4l-312"]()
    assert (tiny.hidden_size, tiny.num_hidden_layers, tiny.intermediate_size) == (312, 4, 1200)
    assert [SHAPES[f"minialbert-{rank}"]().embedding_size for rank in (128, 312, 768)] == [128, 312, 768]


def test_checkpoints_keep_their_head(tiny_teacher_dir, tuned):
    new = build_model(parse_models([str(tiny_teacher_dir)])[0])
    assert (new.head, new.model.config.num_labels) == ("sequence-classification", 2)
    tagger = build_model(parse_models([str(tuned("ner").model)])[0])
    assert (tagger.head, tagger.model.config.num_labels) == ("token-classification", 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engines": ["torch-fp8"]}, "expected some of torch-fp32, .*, found torch-fp8"),
        ({"engines": ["onnx-int8", "onnx-int8"]}, "each once"),
        ({"lengths": [0]}, "from 1, found 0"),
        ({"batch_size": 0}, "batch size of at least 1, found 0"),
        ({"repeats": 0}, "number of repeats of at least 1, found 0"),
        ({"threads": 0}, "number of threads of at least 1, found 0"),
        ({"seconds": 0.0}, "seconds above 0, found 0"),
        ({"models": ["bert-bose"]}, "bert-bose .* Names that need no files: minialbert-128, "),
        ({"models": ["bert-base@4"]}, "bert-base@4: @4 sets the iterations of a MiniALBERT"),
        ({"models": ["minialbert-128@0"]}, "at least 1 iteration after @, found 0"),
        ({"models": ["distilbert", "distilbert"]}, "two models are called distilbert"),
        ({"models": ["config:absent.json"]}, "there is no such file"),
        ({"models": []}, "no model to benchmark"),
    ],
)
def test_mistakes_are_told(options, message):
    options = {"models": ["distilbert"], "engines": ["torch-fp32"], **options}
    if options["models"] == ["bert-base@4"]:
        with torch.device("meta"), pytest.raises(UserError, match=message):
            benchmark(options.pop("models"), **options)
        return
    with pytest.raises(UserError, match=message) as caught:
        benchmark(options.pop("models"), **options)
    assert "\n" not in str(caught.value)


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(benchmarks, "find_spec", lambda name: None)
    with pytest.raises(
        MissingExtraError, match=r"benchmarking onnx-fp32, .* needs onnx: pip install .*\[export\]'"
    ):
        benchmark(["distilbert"])


def test_outputs_that_cannot_be_written_are_refused_at_once(measured, tmp_path):
    _, folder = measured
    with pytest.raises(UserError, match="give --overwrite"):
        benchmark(["distilbert"], engines=["torch-fp32"], output=folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        benchmark(["distilbert"], engines=["torch-fp32"], output=tmp_path / "file")
    with pytest.raises(UserError, match="cannot be written"):
        benchmark(["distilbert"], engines=["torch-fp32"], output=tmp_path / "file" / "below")


def test_the_verb(configs, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmarks, "Worker", NoProcess)
    app = typer.Typer()
    app.command()(bench)
    file = configs / "tiny-bert.json"
    arguments = ["--model", f"one=config:{file},two=config:{file}", "--engines", "torch-fp32,torch-int8"]
    arguments += ["--lengths", "4,8", "--batch-size", "2", "--repeats", "1"]
    shown = CliRunner().invoke(app, [*arguments, "--output", str(tmp_path / "out")], catch_exceptions=False)
    assert shown.exit_code == 0
    for part in ("parameters", "Latency: batch 1", "Throughput: batch 2", "8 tokens", "two", "torch-int8"):
        assert part in shown.output
    record = json.loads((tmp_path / "out" / "result.json").read_text())
    assert list(record["metrics"]) == ["one", "two"]
    assert record["settings"]["lengths"] == [4, 8]
    assert (tmp_path / "out" / "table.md").read_text() == as_markdown(record)
    with pytest.raises(UserError, match="whole numbers, found 4, 8, 4x"):
        CliRunner().invoke(app, [*arguments, "--lengths", "4x"], catch_exceptions=False)
