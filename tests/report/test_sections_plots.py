"""Plots of size and latency against score."""

from __future__ import annotations

import json
from decimal import Decimal

import pytest

from minialbert.errors import UserError
from minialbert.report import paper
from minialbert.report.blocks import Point
from minialbert.report.sections import latency_charts, paper_chart, read_bench, size_chart
from minialbert.report.tables import Table

POINTS = [Point("small", 4_000_000.0, 61.0, 1.5, "full"), Point("teacher", 22_600_000.0, 70.0, None, "full")]


def timing(batch_size, length, seconds):
    return {"batch_size": batch_size, "length": length, "seconds": {"median": seconds}}


def bench(tmp_path, lengths=(16, 128, 512), **changes):
    def timings(slow):
        return [timing(size, length, slow * length / 1000) for size in (1, 32) for length in lengths]

    record = {
        "kind": "bench",
        "settings": {"lengths": list(lengths)},
        "metrics": {
            "small": {"torch-fp32": {"timings": timings(0.25)}, "onnx-int8": {"timings": timings(0.125)}},
            "other": {"torch-fp32": {"timings": timings(1)}},
        },
    }
    file = tmp_path / "result.json"
    file.write_text(json.dumps({**record, **changes}))
    return file


def test_latencies_are_medians_at_batch_1_and_128_tokens(tmp_path):
    found = read_bench(bench(tmp_path))
    assert found.length == 128
    # 0.25 * 128 / 1000 s
    assert {row[:2]: row[3] for row in found.rows if row[3]} == {
        ("small", "torch-fp32"): pytest.approx(32.0),
        ("other", "torch-fp32"): pytest.approx(128.0),
        ("small", "onnx-int8"): pytest.approx(16.0),
    }
    assert read_bench(bench(tmp_path, lengths=(16, 384, 512))).length == 16  # 112 away, 384 is 256 away


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": "finetune"},
        {"settings": {}},
        {"settings": {"lengths": []}},
        {"metrics": []},
        {"metrics": {"small": {"torch-fp32": {"timings": [timing(1, 128, "fast")]}}}},
        {"metrics": {"small": {"torch-fp32": {"timings": [timing(1, 128, -1.0)]}}}},
        {"metrics": {"small": {"torch-fp32": {"timings": [timing(1, 128, float("nan"))]}}}},
    ],
)
def test_what_is_no_benchmark_is_refused_in_one_line(tmp_path, changes):
    with pytest.raises(UserError, match="is not a record of minialbert bench") as caught:
        read_bench(bench(tmp_path, **changes))
    assert "\n" not in str(caught.value)


def test_models_that_were_timed_are_plotted_by_engine(tmp_path):
    measured = read_bench(bench(tmp_path))
    charts = latency_charts([*POINTS, *POINTS[:1] * 2], [measured], "mean, %")
    assert [chart.title for chart in charts] == [
        "Latency against score, PyTorch fp32",
        "Latency against score, ONNX Runtime int8",
    ]
    assert charts[0].x_label == "ms per text of 128 tokens, batch 1, PyTorch fp32"
    assert charts[0].points[0] == Point("small", pytest.approx(32.0), 61.0, 1.5, "full")
    assert latency_charts(POINTS[1:], [measured], "mean, %") == []
    few, _ = latency_charts(POINTS, [measured], "mean, %")
    assert few == Table(charts[0].title, ("", charts[0].x_label, "mean, %"), (("small, full", "32", "61"),))


def test_sizes_are_in_millions():
    chart = size_chart("Sizes", POINTS, "mean, %")
    assert [(point.label, point.x, point.y) for point in chart.points] == [
        ("small", 4.0, 61.0),
        ("teacher", 22.6, 70.0),
    ]
    assert chart.log_x


def test_the_papers_rows_are_plotted_but_for_adapter_tuned_ones():
    chart = paper_chart(paper.glue_rows())
    by_name = {point.label: point for point in chart.points}
    assert (by_name["BERT-base"].x, by_name["BERT-base"].y) == (110.0, 83.81)
    assert by_name["MiniALBERT_128, adapters"].group == "students of the paper"
    assert not any("†" in name for name in by_name)
    shown = [row for row in paper.glue_rows() if "†" not in row.marks]
    assert len(chart.points) == len(shown)
    assert all(isinstance(row.average, Decimal) for row in shown)
