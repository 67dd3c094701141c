"""What a page opens with: a sentence and bars that answer "is it good?", by the kind of record."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from minialbert.report.blocks import Bar, BarChart, Block, Point, Text
from minialbert.report.sections import Run, read_bench
from minialbert.runs.progress import duration, size
from minialbert.runs.records import in_percent, look_up

_MOST_BARS, _LACKS = 10, "\0"
_FIGURE = re.compile(r"<(.*?)\|(.*?)>")
_FORMS: dict[str, Callable[[float], str]] = {
    "%": lambda share: f"{100 * share:.1f} %",
    "M": lambda count: f"{count / 1e6:.1f} M",
    "ms": lambda value: f"{value:.3g} ms",
    "count": "{:,.0f}".format,
    "plain": "{:.3g}".format,
    "size": size,
    "duration": duration,
}
# Sentences with figures of the metrics, or of the whole record, as <name|form>; one that lacks a figure is left out.
_DEMO = (
    "(<export.bytes.student, ONNX Runtime int8|size> in int8) names the right package for "
    "<packages.accuracy.student|%> of docstrings of modules it has not seen; a classifier on its teacher's vectors "
    "(<export.bytes.teacher, PyTorch fp32|size>) for <packages.accuracy.teacher_features|%>, always naming the "
    "commonest package for <packages.accuracy.majority|%>.",
    "The rank correlation of the similarities of texts with those of its teacher went from "
    "<similarity_rank_correlation.student_start|plain> to <similarity_rank_correlation.student_end|plain>.",
)
_DISTILLED = (
    "predicts <student_end.mlm_accuracy|%> of the masked tokens of held-out text, <student_start.mlm_accuracy|%> "
    "before its first step.",
    "It has <model.encoder_parameters|M> parameters, its teacher <model.teacher_encoder_parameters|M>.",
    "Its masked-LM loss went from <student_start.mlm_loss|plain> to <student_end.mlm_loss|plain>.",
    "The cosine of its last hidden states with its teacher's went from <student_start.LAST|plain> to "
    "<student_end.LAST|plain>.",
    "Training took <training.steps|count> steps, <training.tokens_per_second|count> tokens a second and "
    "<training.wall_seconds|duration> in all.",
)
_TUNED = (
    "Tuning trained <model.trainable_parameters|M> parameters, the head among them, in "
    "<training.wall_seconds|duration>."
)


def answer(run: Run) -> list[Block]:
    """Return a sentence on what a run came to, bars, and more sentences; nothing where nothing was measured."""
    kinds = {"demo": _demo, "finetune": _scored, "evaluation": _scored, "bench": _timed}
    sentences, charts = kinds.get(str(run.record.get("kind")), _distilled)(run)
    first, *others = [*filter(None, sentences), ""]
    drawn = [chart for chart in charts if chart.bars]
    more = [Text(" ".join(others).strip())] if any(others) else []
    return [Text(f"{run.name} {first}", strong=True), *drawn, *more] if first and drawn else []


def answer_of_many(runs: Sequence[Run], means: Iterable[tuple[str, Sequence[Point]]]) -> list[Block]:
    """Return which of several students is best, and which of several tuned models by each of some means."""
    shares = {run.name: run.figure("metrics.student_end.mlm_accuracy") for run in runs}
    found = {"Masked tokens of held-out text predicted": shares}
    found |= {what: {f"{one.label}, {one.group}": one.y / 100 for one in points} for what, points in means}
    blocks: list[Block] = []
    for what, values in found.items():
        chart = _bars("", what[:1].upper() + what[1:], "%", values, first=-1)
        if len(chart.bars) > 1:
            best = chart.bars[0]
            blocks += [
                Text(f"{what[:1].upper()}{what[1:]}: {best.label} is the best ({best.text}).", strong=True),
                chart,
            ]
    return blocks


def _bars(name: str, title: str, form: str, values: Mapping[str, float | None], first: int = 0) -> BarChart:
    """Return bars as they come, or some with the smallest (1) or the largest (-1) first.

    The words before a comma say whose a bar is; what is the student's looks like the run of that name.
    """
    known = [(label, value) for label, value in values.items() if value is not None]
    most, bars = _MOST_BARS if first else len(known), list[Bar]()
    for label, value in sorted(known, key=lambda one: first * one[1])[:most]:
        whose = label.partition(",")[0]
        bars.append(Bar(label, value, _FORMS[form](value), group=name if whose == "student" else whose))
    return BarChart(title + f" ({most} of {len(known)})" * (most < len(known)), "", tuple(bars))


def _filled(run: Run, sentences: Iterable[str]) -> list[str]:
    """Return sentences with the figures of a record, but for those that lack one."""
    return [
        told for one in sentences if (told := _FIGURE.sub(partial(_shown, run), one)) and _LACKS not in told
    ]


def _shown(run: Run, found: re.Match[str]) -> str:
    value = run.figure(found[1] if found[1].startswith(("model.", "training.")) else f"metrics.{found[1]}")
    return _LACKS if value is None else _FORMS[found[2]](value)


def _demo(run: Run) -> tuple[list[str], list[BarChart]]:
    sentences, charts = _distilled(run)
    right, export = run.part("metrics.packages.accuracy"), run.part("metrics.export")
    if not right or not export:
        return sentences, charts
    names = ("student", "teacher, a classifier on its vectors", "always the commonest package")
    accuracy = dict(zip(names, map(right.get, ("student", "teacher_features", "majority")), strict=True))
    sizes = run.part("metrics.export.bytes")
    times = {one: look_up(export, "milliseconds", one, "128", kind=(int, float)) for one in sizes}
    return [*_filled(run, _DEMO), *sentences[1:]], [
        _bars(run.name, "Right package", "%", accuracy),
        _bars(run.name, "Size", "size", sizes, first=1),
        _bars(run.name, "Time for a text of 128 tokens", "ms", times, first=1),
    ]


def _distilled(run: Run) -> tuple[list[str], list[BarChart]]:
    last = f"cosine_{len(run.record.get('layer_map') or [])}"
    names = {
        "student": "student_end",
        "student, before its first step": "student_start",
        "teacher": "teacher",
    }
    charts = {"Masked tokens of held-out text predicted": ("%", "mlm_accuracy")}
    charts["Cosine of the last hidden states with the teacher's"] = ("plain", last)
    return _filled(run, (one.replace("LAST", last) for one in _DISTILLED)), [
        _bars(
            run.name, title, form, {one: run.figure(f"metrics.{part}.{name}") for one, part in names.items()}
        )
        for title, (form, name) in charts.items()
    ]


def _scored(run: Run) -> tuple[list[str], list[BarChart]]:
    metric, split, score = str(run.record.get("metric")), str(run.record.get("split")), run.figure("score")
    if score is None:
        return [], []
    form, name = "%" if in_percent(metric) else "plain", metric.replace("_", " ")
    splits = dict.fromkeys([split, *run.part("metrics")])
    values = {f"student, {one}": run.figure(f"metrics.{one}.{metric}") for one in splits}
    beside = "its record has no baseline: report it beside another run, such as that of its teacher"
    if metric == "accuracy" and (commonest := _commonest(run.part(f"metrics.{split}"))) is not None:
        values["always the commonest class"] = commonest
        beside = f"always answering with the commonest class has {_FORMS[form](commonest)}"
    rows = run.figure(f"data.rows.{split}") or run.figure(f"rows.{split}")
    where = f"{run.record.get('task')}, {split}" + (f" ({rows:,.0f} rows)" if rows else "")
    sentences = [f"has {name} {_FORMS[form](score)} on {where}; {beside}.", *_filled(run, [_TUNED])]
    return sentences, [_bars(run.name, name[:1].upper() + name[1:], form, values)]


def _commonest(measured: Mapping[str, Any]) -> float | None:
    """Return the share of the commonest class, where a record counts the rows of each."""
    classes = measured.get("per_class") or {}
    counts = [look_up(one, "support", kind=int) for one in classes.values()]
    return max(counts) / sum(counts) if counts and all(counts) else None


def _timed(run: Run) -> tuple[list[str], list[BarChart]]:
    bench, times, sizes = read_bench(run.file), dict[str, float](), dict[str, float | None]()
    for model, engines in run.part("metrics").items():
        for engine, figures in engines.items():
            sizes[f"{model}, {engine}"] = look_up(figures, "bytes", kind=int)
            times |= {
                f"{model}, {engine}": ms for ms in [bench.milliseconds.get(engine, {}).get(model)] if ms
            }
    charts = [
        _bars("student", f"Time for a text of {bench.length} tokens", "ms", times, first=1),
        _bars("student", "Size", "size", sizes, first=1),
    ]
    best = [f"{one.label} ({one.text})" for chart in charts for one in chart.bars[:1]]
    return [
        f"compares {len(times)} pairs of model and engine: the fastest is {', the smallest '.join(best)}."
    ], charts
