"""The sentence and the bars that a page opens with, by kind of record; and the page that a verb leaves."""

from __future__ import annotations

import copy
import json
import sys

from minialbert.report import leave_page
from minialbert.report import report as write_report
from minialbert.report.answers import answer
from minialbert.report.sections import ENGINE_NAMES, Run

DEMO = {
    "kind": "demo",
    "metrics": {
        "packages": {"accuracy": {"student": 0.77, "teacher_features": 0.849, "majority": 0.187}},
        "similarity_rank_correlation": {"student_start": 0.2246, "student_end": 0.289},
        "export": {
            "bytes": {
                "teacher, PyTorch fp32": 90_261_504, "student, PyTorch fp32": 23_639_616,
                "student, ONNX Runtime int8": 6_352_356,
            },
            "milliseconds": {
                "teacher, PyTorch fp32": {"128": 144.173}, "student, PyTorch fp32": {"128": 59.4},
                "student, ONNX Runtime int8": {"128": 15.118},
            },
        },
    },
}  # fmt: skip


def run(record, tmp_path, name="small"):
    file = tmp_path / "result.json"
    file.write_text(json.dumps(record))
    return Run(name, file, record)


def told(blocks):
    """Return the first sentence, the bars by chart, and what else is said."""
    first, *others = blocks
    bars = {one.title: [(bar.label, bar.text) for bar in one.bars] for one in others if hasattr(one, "bars")}
    return first.text, bars, " ".join(one.text for one in others if hasattr(one, "text"))


def test_the_demo_says_what_its_student_can_and_costs(tmp_path):
    first, bars, more = told(answer(run(DEMO, tmp_path, "demo")))
    assert first == (
        "demo (6.4 MB in int8) names the right package for 77.0 % of docstrings of modules it has not seen; a "
        "classifier on its teacher's vectors (90.3 MB) for 84.9 %, always naming the commonest package for 18.7 %."
    )
    assert bars["Right package"][2] == ("always the commonest package", "18.7 %")
    assert bars["Size"] == [
        ("student, ONNX Runtime int8", "6.4 MB"), ("student, PyTorch fp32", "23.6 MB"),
        ("teacher, PyTorch fp32", "90.3 MB"),
    ]  # fmt: skip
    assert [text for _, text in bars["Time for a text of 128 tokens"]] == ["15.1 ms", "59.4 ms", "144 ms"]
    assert "went from 0.225 to 0.289" in more
    assert "A finished student" not in more  # where the models in the box are not installed
    boxed = copy.deepcopy(DEMO)
    boxed["metrics"]["similarity_rank_correlation"]["boxed"] = 0.8712
    assert "of the same teacher, minilm-5mb, has 0.871." in told(answer(run(boxed, tmp_path, "demo")))[2]
    timed = copy.deepcopy(DEMO)  # in every engine that a bench can name
    times = timed["metrics"]["export"]["milliseconds"]
    times |= {
        f"{who}, {engine}": {"128": 2} for who in ("student", "teacher") for engine in ENGINE_NAMES.values()
    }
    assert len(told(answer(run(timed, tmp_path, "demo")))[1]["Time for a text of 128 tokens"]) == len(times)
    looks = [bar.group for chart in answer(run(DEMO, tmp_path, "demo"))[1:4] for bar in chart.bars]
    assert looks == ["demo", "teacher", "always the commonest package", *["demo", "demo", "teacher"] * 2]


def test_a_distillation_says_what_it_predicts_before_and_after(tmp_path):
    start, end = (
        {"mlm_accuracy": 0.0, "cosine_2": 0.3},
        {"mlm_accuracy": 0.2, "cosine_2": 0.7, "mlm_loss": 5.0},
    )
    record = {
        "kind": "distillation", "layer_map": [2, 4], "model": {"encoder_parameters": 5_900_000},
        "metrics": {"student_start": start, "student_end": end, "teacher": {"mlm_accuracy": 0.4}},
        "training": {"steps": 2000, "tokens_per_second": 1747.4, "wall_seconds": 222.3},
    }  # fmt: skip
    first, bars, more = told(answer(run(record, tmp_path)))
    assert (
        first == "small predicts 20.0 % of the masked tokens of held-out text, 0.0 % before its first step."
    )
    assert bars["Masked tokens of held-out text predicted"] == [
        ("student", "20.0 %"), ("student, before its first step", "0.0 %"), ("teacher", "40.0 %")
    ]  # fmt: skip
    assert more == (
        "The cosine of its last hidden states with its teacher's went from 0.3 to 0.7. "
        "Training took 2,000 steps, 1,747 tokens a second and 3:42 in all."
    )
    for nothing in ({}, {"metrics": None}, {"metrics": {"student_end": {"mlm_accuracy": "high"}}}):
        assert answer(run({"kind": "distillation", **nothing}, tmp_path)) == []


def test_a_tuning_is_held_against_the_commonest_class_where_its_record_counts_them(tmp_path):
    classes = {"a": {"support": 30}, "b": {"support": 10}}
    record = {
        "kind": "finetune", "task": "mine", "metric": "accuracy", "split": "test", "score": 0.8,
        "metrics": {"test": {"accuracy": 0.8, "per_class": classes}, "validation": {"accuracy": 0.9}},
        "data": {"rows": {"test": 40}}, "model": {"trainable_parameters": 116_120}, "training": {"wall_seconds": 121.5},
    }  # fmt: skip
    first, bars, more = told(answer(run(record, tmp_path)))
    assert first == (
        "small has accuracy 80.0 % on mine, test (40 rows); always answering with the commonest class has 75.0 %."
    )
    assert bars == {
        "Accuracy": [
            ("student, test", "80.0 %"), ("student, validation", "90.0 %"), ("always the commonest class", "75.0 %")
        ]
    }  # fmt: skip
    assert more.endswith("0.1 M parameters, the head among them, in 2:01.")
    record["metrics"]["test"].pop("per_class")
    assert "its record has no baseline" in told(answer(run(record, tmp_path)))[0]
    record["agreement"] = ["test"]
    assert told(answer(run(record, tmp_path)))[0] == (
        "small has agreement with its teacher (accuracy) 80.0 % on mine, test (40 rows); no gold label was there to "
        "score against."
    )


def test_a_benchmark_names_the_fastest_and_the_smallest(tmp_path):
    def engine(size, seconds):
        return {"bytes": size, "timings": [{"batch_size": 1, "length": 128, "seconds": {"median": seconds}}]}

    engines = {"a": {"torch-fp32": engine(48_000_000, 0.06)}, "b": {"onnx-int8": engine(15_000_000, 0.005)}}
    record = {"kind": "bench", "settings": {"lengths": [128]}, "metrics": engines}
    first, bars, _ = told(answer(run(record, tmp_path, "bench")))
    assert first == (
        "bench compares 2 pairs of model and engine: the fastest is b, onnx-int8 (5 ms), the smallest b, onnx-int8 "
        "(15.0 MB)."
    )
    assert bars["Time for a text of 128 tokens"] == [("b, onnx-int8", "5 ms"), ("a, torch-fp32", "60 ms")]
    assert "| a | torch-fp32 | 48000000 | 60 |" in write_report([tmp_path])


def test_a_verb_leaves_a_page_without_matplotlib_too_or_says_why_not(tmp_path, monkeypatch):
    run({**DEMO, "model": {"name": "x"}}, tmp_path)
    assert leave_page(tmp_path) == f"page: {tmp_path / 'report.html'}"
    assert "<h1>x</h1>" in (tmp_path / "report.html").read_text(encoding="utf-8")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["report.html", "result.json"]
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert leave_page(tmp_path) == f"page: {tmp_path / 'report.html'}"
    (tmp_path / "result.json").write_text("[]")
    assert leave_page(tmp_path).startswith("no page: ")


def test_an_evaluation_has_a_page_with_all_its_figures(tmp_path):
    record = {
        "kind": "evaluation", "task": "mine", "metric": "f1", "split": "test", "score": 0.8, "rows": {"test": 40},
        "metrics": {"test": {"f1": 0.8, "accuracy": 0.9}}, "model": {"name": "x"},
    }  # fmt: skip
    run(record, tmp_path)
    page = write_report([tmp_path])
    assert "**x has F1 80.0 % on mine, test (40 rows); its record has no baseline" in page
    assert "| test.accuracy | 0.9 |" in page


def test_bars_that_are_left_out_are_counted_and_shares_are_drawn_against_all(tmp_path):
    timings = [{"batch_size": 1, "length": 128, "seconds": {"median": 0.01}}]
    engines = {f"m{at}": {"torch-fp32": {"bytes": at, "timings": timings}} for at in range(1, 13)}
    record = {"kind": "bench", "settings": {"lengths": [128]}, "metrics": engines}
    _, _, sizes = answer(run(record, tmp_path))
    assert (sizes.title, len(sizes.bars), sizes.most) == ("Size (10 of 12)", 10, 0.0)
    record = {"kind": "evaluation", "metric": "accuracy", "split": "test", "score": 0.128}
    _, chart = answer(run(record | {"metrics": {"test": {"accuracy": 0.128}}}, tmp_path))
    assert (len(chart.bars), chart.most) == (1, 1.0)
