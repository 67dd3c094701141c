"""Two runs side by side: tables computed by hand, verdicts, refusals and the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minialbert.errors import UserError
from minialbert.report import report
from minialbert.report.blocks import LineChart, Listing, Section, Series, Text
from minialbert.report.compare import compare_runs
from minialbert.report.tables import Table


def write_run(folder: Path, record: dict[str, Any], log: list[dict[str, Any]] | None = None) -> Path:
    folder.mkdir(parents=True)
    (folder / "result.json").write_text(json.dumps(record), encoding="utf-8")
    if log is not None:
        (folder / "log.jsonl").write_text("".join(f"{json.dumps(line)}\n" for line in log), encoding="utf-8")
    return folder


def finetune(score: float, *, metric: str = "accuracy", **changes: Any) -> dict[str, Any]:
    return {
        "format_version": 1,
        "kind": "finetune",
        "task": "sst2",
        "metric": metric,
        "split": "validation",
        "score": score,
        "metrics": {"test": {"f1": 0.5}, "validation": {"f1": 0.25, metric: score, "per_type": {"X": {"f1": 0.75}}}},
        "seed": 1,
        "model": {"name": "student", "parameters": 2000, "trainable_parameters": 500},
        "training": {"steps": 10, "wall_seconds": 20.5, "seconds_per_step": 0.5, "peak_memory_mb": 1234.5},
        "data": {"rows": {"train": 80}},
        "recipe": {
            "name": "default",
            "command": "anything",
            "model": {"name": "/home/someone/runs/student/model"},
            "tuning": {"batch_size": 16, "learning_rate": 5e-5, "report_to": []},
        },
        "command": "minialbert finetune --model /home/someone/student --set tuning.seed=1",
        "versions": {"torch": "2.13.0"},
        "commit": "0123456789abcdef",
        "machine": {"device": "cpu", "cores": 2},
    } | changes  # fmt: skip


def distillation(start: dict[str, float], end: dict[str, float] | None, **changes: Any) -> dict[str, Any]:
    metrics: dict[str, Any] = {
        "teacher": {"mlm_accuracy": 0.5, "masked_tokens": 90},
        "student_start": {**start, "masked_tokens": 90, "halves": [start, start]},
    }
    if end is not None:
        metrics["student_end"] = {**end, "masked_tokens": 90, "halves": [end, end]}
    return {
        "kind": "initialisation" if end is None else "distillation",
        "metrics": metrics,
        "seed": 42,
        "model": {"name": "small", "parameters": 1000},
        "training": {"steps": 100, "tokens_per_second": 250.0, "wall_seconds": 8.0},
        "recipe": {"training": {"max_steps": 100}},
        "objective": {"mlm_weight": 1.0},
        **changes,
    }


def section(sections: list[Section], title: str) -> Section:
    (found,) = [one for one in sections if one.title == title]
    return found


def table(sections: list[Section], title: str, name: str | None = None) -> Table:
    (found,) = [
        block
        for block in section(sections, title).blocks
        if isinstance(block, Table) and name in (None, block.title)
    ]
    return found


def verdict(sections: list[Section]) -> str:
    first = section(sections, "Summary").blocks[0]
    assert isinstance(first, Text) and first.strong
    return first.text


@pytest.fixture
def tunings(tmp_path: Path) -> tuple[Path, Path]:
    changed = finetune(0.875, seed=2)
    changed["recipe"]["tuning"] |= {"learning_rate": 1e-4, "report_to": ["wandb"]}
    changed["recipe"]["model"] = {"name": "other/student/model"}
    changed["training"] |= {"wall_seconds": 41.0, "seconds_per_step": 0.25, "peak_memory_mb": None}
    changed["versions"] = {"torch": "2.14.0"}
    changed["commit"] = None
    del changed["metrics"]["test"]
    log = [
        {"kind": "training", "step": 5, "loss": 2.0, "tokens_per_second": 9.0},
        {"kind": "evaluation", "step": 5, "eval_accuracy": 0.5, "eval_score": 0.5, "eval_metric": "accuracy"},
        {"kind": "training", "step": 10, "loss": 1.0},
    ]
    one = write_run(tmp_path / "one", finetune(0.75), log)
    return one, write_run(tmp_path / "two", changed, [{"kind": "training", "step": 5, "loss": 1.5}])


def test_fine_tunings(tunings):
    sections = compare_runs(*tunings)
    assert [one.title for one in sections] == [
        "Summary", "Settings that differ", "Results", "Cost", "Training curves", "Versions and machines", "Commands",
    ]  # fmt: skip
    assert verdict(sections) == (
        "B (two) is better: accuracy of sst2 on validation 0.7500 of A, 0.8750 of B (+0.1250)."
    )
    assert table(sections, "Summary").rows == (
        ("A: one", "finetune", "student", "1"),
        ("B: two", "finetune", "student", "2"),
    )
    # The model is the same by its last parts, and where a log goes is not a setting of the run.
    assert table(sections, "Settings that differ").rows == (("tuning.learning_rate", "5e-05", "0.0001"),)
    assert table(sections, "Results", "validation").rows == (
        ("accuracy", "0.7500", "0.8750", "+0.1250"),
        ("f1", "0.2500", "0.2500", "0.0000"),
        ("per_type.X.f1", "0.7500", "0.7500", "0.0000"),
    )
    assert table(sections, "Results", "test").rows == (("f1", "0.5000", "-", "-"),)
    assert [block.title for block in section(sections, "Results").blocks] == ["validation", "test"]
    assert table(sections, "Cost").rows == (
        ("steps", "10", "10", "1.00"),
        ("seconds", "20.5", "41", "2.00"),
        ("seconds per step", "0.5", "0.25", "0.50"),
        ("parameters", "2,000", "2,000", "1.00"),
        ("trainable parameters", "500", "500", "1.00"),
        ("peak memory (MB)", "1,234.5", "-", "-"),
        ("rows per second", "32", "64", "2.00"),
    )
    assert table(sections, "Versions and machines").rows == (
        ("torch", "2.13.0", "2.14.0"),
        ("commit", "0123456789ab", "-"),
    )
    assert section(sections, "Commands").blocks[0] == Listing(
        "A: one", ("minialbert finetune --model MODEL --set tuning.seed=SEED",), folded=False, language="sh"
    )


def test_curves_of_both_in_one_chart(tunings):
    sections = compare_runs(*tunings)
    charts = [block for block in section(sections, "Training curves").blocks if isinstance(block, LineChart)]
    assert charts == [
        LineChart(
            "loss",
            "optimiser steps",
            "loss",
            (Series("A: one", ((5.0, 2.0), (10.0, 1.0))), Series("B: two", ((5.0, 1.5),))),
        ),
        LineChart("accuracy, validation", "optimiser steps", "accuracy", (Series("A: one", ((5.0, 0.5),)),)),
    ]
    assert table(sections, "Training curves").rows == (
        ("loss", "2.0000", "1.0000", "1.5000", "1.5000"),
        ("accuracy, validation", "0.5000", "0.5000", "-", "-"),
    )


def test_a_run_beside_itself(tunings):
    sections = compare_runs(tunings[0], tunings[0] / "result.json")
    assert verdict(sections) == (
        "Equal as far as shown: accuracy of sst2 on validation 0.7500 of A, 0.7500 of B."
    )
    assert section(sections, "Settings that differ").blocks == (Text("None."),)
    assert section(sections, "Versions and machines").blocks == (Text("None."),)


def test_less_of_an_error_is_better(tmp_path):
    one = write_run(tmp_path / "one", finetune(0.5, metric="mean_squared_error"))
    two = write_run(tmp_path / "two", finetune(0.75, metric="mean_squared_error"))
    assert verdict(compare_runs(one, two)).startswith("A (one) is better: mean squared error")
    assert verdict(compare_runs(two, one)).startswith("B (one) is better: mean squared error")


def test_distillations(tmp_path):
    one = write_run(
        tmp_path / "one",
        distillation(
            {"mlm_loss": 9.0, "mlm_accuracy": 0.0, "cosine_1": 0.1},
            {"mlm_loss": 5.0, "mlm_accuracy": 0.25, "cosine_1": 0.5, "attention_kl_1": 2.0},
            data={"folders": [{"fingerprint": "x"}]},
        ),
        [
            {"kind": "start", "step": 0, "metrics": {"student_start": {"mlm_accuracy": 0.0}}},
            {"kind": "training", "step": 10, "loss": 3.0, "loss_mlm": 2.0, "loss_embedding": 0.0},
            {"kind": "evaluation", "step": 100, "eval_mlm_accuracy": 0.25},
        ],
    )
    changed = distillation(
        {"mlm_loss": 8.0, "mlm_accuracy": 0.125, "cosine_1": 0.3}, None, objective={"mlm_weight": 2.0}
    )
    two = write_run(tmp_path / "two", changed)
    sections = compare_runs(one, two)
    assert verdict(sections) == (
        "A (one) is better: masked-token accuracy on held-out text 0.2500 of A, 0.1250 of B (-0.1250)."
    )
    assert Text("The runs were measured on different data, so their figures are of different texts.") in (
        section(sections, "Summary").blocks
    )
    assert table(sections, "Settings that differ").rows == (("objective.mlm_weight", "1.0000", "2.0000"),)
    results = table(sections, "Results")
    assert results.columns == (
        "figure", "A: one, before", "A: one, after", "B: two, before", "B: two, after", "B - A",
    )  # fmt: skip
    assert results.rows == (
        ("mlm_accuracy", "0.0000", "0.2500", "0.1250", "-", "-0.1250"),
        ("mlm_loss", "9.0000", "5.0000", "8.0000", "-", "+3.0000"),
        ("cosine_1", "0.1000", "0.5000", "0.3000", "-", "-0.2000"),
        ("attention_kl_1", "-", "2.0000", "-", "-", "-"),
        ("teacher: mlm_accuracy", "-", "0.5000", "-", "0.5000", "0.0000"),
    )
    assert table(sections, "Training curves").rows == (
        ("loss", "3.0000", "3.0000", "-", "-"),
        ("loss mlm", "2.0000", "2.0000", "-", "-"),
        ("mlm accuracy, held out", "0.0000", "0.2500", "-", "-"),
    )
    cost = {row[0]: row[1:] for row in table(sections, "Cost").rows}
    assert cost["tokens per second"] == ("250", "250", "1.00")
    assert "Commands" not in [one.title for one in sections]


def test_evaluations(tmp_path):
    def record(score: float, rows: int, **changes: Any) -> dict[str, Any]:
        return {
            "kind": "evaluation", "task": "sst2", "metric": "accuracy", "split": "test", "score": score, "seed": None,
            "metrics": {"test": {"accuracy": score}}, "model": {"name": "m", "parameters": 5}, "rows": {"test": rows},
            "wall_seconds": 2.0, **changes,
        }  # fmt: skip

    one = write_run(tmp_path / "one", record(0.5, 100))
    sections = compare_runs(one, write_run(tmp_path / "two", record(0.25, 100, num_iterations=3)))
    assert verdict(sections).startswith(
        "A (one) is better: accuracy of sst2 on test 0.5000 of A, 0.2500 of B"
    )
    assert table(sections, "Settings that differ").rows == (("num_iterations", "-", "3"),)
    assert ("rows per second", "50", "50", "1.00") in table(sections, "Cost").rows
    unlabelled = record(0.0, 100) | {"score": None, "split": None}
    sections = compare_runs(one, write_run(tmp_path / "three", unlabelled))
    assert verdict(sections) == "No verdict: B has no reported figure."


def test_figures_of_other_kinds_have_no_verdict(tmp_path):
    one = write_run(tmp_path / "one", finetune(0.5))
    two = write_run(tmp_path / "two", finetune(0.75, task="cola", metric="matthews_correlation"))
    assert verdict(compare_runs(one, two)) == (
        "No verdict: A reports accuracy of sst2 on validation, B matthews correlation of cola on validation."
    )


def test_markdown_shows_names_as_text(tmp_path, tunings):
    odd = finetune(0.5)
    odd["recipe"]["tuning"]["<b>*x*"] = "[link](http://example.org)"
    page = report([tunings[0], write_run(tmp_path / "odd | name", odd)], compare=True)
    assert "&lt;b&gt;\\*x\\*" in page
    assert "B: odd \\| name" in page
    assert r"\[link\](http:\//example.org)" in page


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read as JSON"),
        ("[1]", "holds list, not an object"),
        ('{"kind": "grid"}', "is of kind 'grid': expected a record of distill, finetune or evaluate"),
        ('{"kind": ["finetune"]}', "is of kind"),
        ('{"kind": "finetune"}', "has no metrics"),
        ('{"kind": "finetune", "metrics": 3}', "the field metrics should be an object, but is 3"),
        ('{"kind": "finetune", "metrics": {"t": {}}, "model": [1]}', "the field model should be an object"),
        ('{"kind": "finetune", "metrics": {"t": {}}, "recipe": "x"}', "the field recipe should be an object"),
        ('{"kind": "finetune", "metrics": {"t": 1}, "format_version": 99}', "format_version 99"),
    ],
)
def test_broken_records(tmp_path, tunings, text, message):
    (tmp_path / "result.json").write_text(text)
    for pair in ((tunings[0], tmp_path), (tmp_path / "result.json", tunings[0])):
        with pytest.raises(UserError, match=message) as raised:
            compare_runs(*pair)
        assert "\n" not in str(raised.value)


def test_strange_figures_are_passed_over(tmp_path, tunings):
    record = finetune(
        0.5, seed={"a": [1]}, metrics={"validation": 7, "x": {"f1": True, "big": 10**400, "g": "1"}}
    )
    record["score"] = 10**400
    record["model"]["parameters"] = "many"
    sections = compare_runs(tunings[0], write_run(tmp_path / "odd", record))
    assert verdict(sections) == "No verdict: B has no reported figure."
    assert [block.title for block in section(sections, "Results").blocks] == ["validation", "test"]


def test_missing_records_and_other_kinds(tmp_path, tunings):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no result.json: name the directory of a finished run"):
        compare_runs(tunings[0], tmp_path / "empty")
    with pytest.raises(UserError, match="does not exist"):
        compare_runs(tmp_path / "nowhere", tunings[0])
    other = write_run(tmp_path / "three", distillation({"mlm_accuracy": 0.5}, {"mlm_accuracy": 0.5}))
    with pytest.raises(
        UserError, match="is a record of fine-tuning, .* one of distillation: compare two runs"
    ):
        compare_runs(tunings[0], other)


def test_pages(tmp_path, tunings):
    report(tunings, tmp_path / "out", compare=True)
    assert (tmp_path / "out" / "compare.md").read_text() == report(tunings, compare=True)
    html = (tmp_path / "out" / "compare.html").read_text()
    assert "<svg" in html
    assert "B (two) is better: accuracy of sst2 on validation" in html
    assert "someone" not in html
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        report(tunings, tmp_path / "file", compare=True)


def test_command_line(call, refuse, tmp_path, tunings):
    status, out, _ = call("report", "--compare", *tunings)
    assert (status, out) == (0, report(tunings, compare=True))
    status, out, _ = call("report", "--compare", *tunings, "--output", tmp_path / "out")
    assert status == 0
    assert out.startswith("comparison in ") and out.count("\n") == 1
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"compare.md", "compare.html", "figures"}
    assert "give either records and run directories, or --compare" in refuse("report")
    assert "give either records and run directories, or --compare" in refuse(
        "report", tunings[0], "--compare", *tunings
    )
    assert "does not exist" in refuse("report", "--compare", tunings[0], tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "differs"),
    [
        ({"data": {"folders": [{"path": "renamed", "fingerprint": "x"}]}}, False),
        ({"data": {"folders": [{"path": "windows", "fingerprint": "y"}]}}, True),
        ({"recipe": {"training": {"eval_windows": 64}}}, True),
    ],
)
def test_what_was_measured_on_other_windows(tmp_path, changes, differs):
    figures = {"mlm_accuracy": 0.25}
    data = {"data": {"folders": [{"path": "windows", "fingerprint": "x"}]}}
    one = write_run(tmp_path / "one", distillation(figures, figures, **data))
    two = write_run(tmp_path / "two", distillation(figures, figures, **(data | changes)))
    told = [
        block.text for block in section(compare_runs(one, two), "Summary").blocks if isinstance(block, Text)
    ]
    assert any("measured on different data" in text for text in told) is differs


def entities(*spans):
    return [
        {"start": start, "end": end, "text": "x" * (end - start), "label": "A", "score": 0.5}
        for start, end in spans
    ]


def judged(folder, lines):
    record = {
        "kind": "evaluation", "task": "t", "metric": "f1", "split": "test", "score": 0.5,
        "metrics": {"test": {"f1": 0.5}},
        "model": {"name": "m"}, "rows": {"test": len(lines)},
    }  # fmt: skip
    write_run(folder, record)
    text = "".join(json.dumps({"split": "test"} | line) + "\n" for line in lines)
    (folder / "predictions.jsonl").write_text(text)
    return folder


def test_classes_of_the_same_texts(tmp_path):
    gold = ["a"] * 30 + ["b"] * 30
    guesses = [gold[:], gold[:]]
    guesses[0][:9], guesses[1][9:10] = ["b"] * 9, ["b"]
    one, two = (
        judged(tmp_path / name, [{"text": f"t{n}", "label": true, "predicted": guess}
                                 for n, (true, guess) in enumerate(zip(gold, side, strict=True))])
        for name, side in zip(("one", "two"), guesses, strict=True)
    )  # fmt: skip
    sections = compare_runs(one, two)
    figures = table(sections, "The same texts", "F1 on the same texts")
    name, a, b, gap = figures.rows[0]
    assert (name, a, b) == ("all", "85.0", "98.3")
    assert gap.mean == pytest.approx(100 * 8 / 60)
    assert 0 < gap.interval[0] < gap.mean < gap.interval[1]
    said = [block.text for block in section(sections, "The same texts").blocks if isinstance(block, Text)]
    assert said == ["A alone is right in 1 texts, B alone in 9: p = 0.0215 by McNemar's test."]
    changed = table(sections, "The same texts", "Texts that changed")
    assert changed.rows[0] == ("worse", "t9", "a", "a", "b") and changed.rows[1][0] == "better"
    assert len(changed.rows) == 10 and "10 of 60 texts have another answer" in changed.notes[0]


def test_entities_of_the_same_texts_and_of_others(tmp_path):
    lines = [
        {"text": "x" * 30, "gold": entities((0, 4), (5, 9)), "entities": entities((0, 4))} for _ in range(8)
    ]
    mended = [line | {"entities": line["gold"]} for line in lines]
    one, two = judged(tmp_path / "one", lines), judged(tmp_path / "two", mended)
    figures = table(compare_runs(one, two), "The same texts", "F1 on the same texts")
    assert figures.rows[1][:3] == ("A", "66.7", "100.0")
    assert figures.rows[1][3].interval == pytest.approx((100 / 3, 100 / 3))
    other = judged(tmp_path / "other", [line | {"text": "y" * 30} for line in lines])
    (said,) = section(compare_runs(one, other), "The same texts").blocks
    assert isinstance(said, Text) and "cannot be compared one by one" in said.text
    (two / "predictions.jsonl").write_text("[1]\n")
    with pytest.raises(UserError, match="is not a file of predictions"):
        compare_runs(one, two)
