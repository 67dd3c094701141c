"""What a page opens with: a sentence and bars that answer "is it good?", by the kind of record."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial

from minialbert.errors import in_words
from minialbert.report.blocks import Bar, BarChart, Block, Text
from minialbert.report.sections import ENGINE_NAMES, Run, read_bench
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
    "cosine": "{:.3g}".format,
    "size": size,
    "duration": duration,
}
_MODELS = [f"{who}, {engine}" for who in ("student", "teacher") for engine in reversed(ENGINE_NAMES.values())]
# By kind: sentences with figures of the metrics, or of the whole record, as <name|form>; then bars by title. What
# lacks a figure is left out. LAST is the cosine of the last layer.
_SENTENCES = {
    "demo": (
        "(<export.bytes.student, ONNX Runtime int8|size> in int8) names the right package for "
        "<packages.accuracy.student|%> of docstrings of modules it has not seen; a classifier on its teacher's "
        "vectors (<export.bytes.teacher, PyTorch fp32|size>) for <packages.accuracy.teacher_features|%>, always "
        "naming the commonest package for <packages.accuracy.majority|%>.",
        "The rank correlation of the similarities of texts with those of its teacher went from "
        "<similarity_rank_correlation.student_start|plain> to <similarity_rank_correlation.student_end|plain>.",
        "A finished student of the same teacher, minilm-5mb, has <similarity_rank_correlation.boxed|plain>.",
    ),
    "distillation": (
        "predicts <student_end.mlm_accuracy|%> of the masked tokens of held-out text, <student_start.mlm_accuracy|%> "
        "before its first step.",
        "The student has <model.encoder_parameters|M> parameters, its teacher <model.teacher_encoder_parameters|M>.",
        "Its masked-LM loss went from <student_start.mlm_loss|plain> to <student_end.mlm_loss|plain>.",
        "The cosine of its last hidden states with its teacher's went from <student_start.LAST|plain> to "
        "<student_end.LAST|plain>.",
        "Training took <training.steps|count> steps, <training.tokens_per_second|count> tokens a second and "
        "<training.wall_seconds|duration> in all.",
    ),
    "embeddings": (
        "gives texts vectors with a mean cosine of <student_end.vector_cosine|plain> to its teacher's, "
        "<student_start.vector_cosine|plain> before its first step.",
        "Spearman's correlation between the similarities of its vectors and of its teacher's went from "
        "<student_start.similarity_correlation|plain> to <student_end.similarity_correlation|plain>.",
    ),
    "finetune": (
        "Tuning trained <model.trainable_parameters|M> parameters, the head among them, in "
        "<training.wall_seconds|duration>.",
    ),
}
_STAGES = {"student": "student_end", "student, before its first step": "student_start", "teacher": "teacher"}
_STAGED = {
    name: {label: f"{stage}.{name}" for label, stage in _STAGES.items()}
    for name in ("mlm_accuracy", "LAST", "vector_cosine", "similarity_correlation")
}
_BARS: dict[str, dict[str, tuple[str, Mapping[str, str]]]] = {
    "demo": {
        "Right package": ("%", {
            "student": "packages.accuracy.student",
            "teacher, a classifier on its vectors": "packages.accuracy.teacher_features",
            "always the commonest package": "packages.accuracy.majority",
        }),
        "Size": ("size", {one: f"export.bytes.{one}" for one in _MODELS}),
        "Time for a text of 128 tokens": ("ms", {one: f"export.milliseconds.{one}.128" for one in _MODELS}),
    },
    "distillation": {
        "Masked tokens of held-out text predicted": ("%", _STAGED["mlm_accuracy"]),
        "Cosine of the last hidden states with the teacher's": ("cosine", _STAGED["LAST"]),
    },
    "embeddings": {
        "Cosine of vectors with the teacher's": ("cosine", _STAGED["vector_cosine"]),
        "Correlation of similarities with the teacher's": ("cosine", _STAGED["similarity_correlation"]),
    },
}  # fmt: skip


def answer(run: Run) -> list[Block]:
    """Return a sentence on what a run came to, bars, and more sentences; nothing where nothing was measured."""
    kinds = {"demo": _distilled, "finetune": _scored, "evaluation": _scored, "bench": _timed}
    sentences, charts = kinds.get(str(run.record.get("kind")), _distilled)(run)
    first, *others = [*sentences, ""]
    drawn = [chart for chart in charts if chart.bars]
    more = [Text(" ".join(others).strip())] if any(others) else []
    return [Text(f"{run.name} {first}", strong=True), *drawn, *more] if first and drawn else []


def _bars(name: str, title: str, form: str, values: Mapping[str, float | None]) -> BarChart:
    """Return bars of the figures that there are.

    The words before a comma say whose a bar is; what is the student's looks like the run of that name.
    """
    bars = []
    for label, value in values.items():
        if value is not None:
            whose = label.partition(",")[0]
            bars.append(Bar(label, value, _FORMS[form](value), group=name if whose == "student" else whose))
    return BarChart(title, tuple(bars), most=1.0 if form in ("%", "cosine") else 0.0)


def _filled(run: Run, sentences: Iterable[str]) -> list[str]:
    """Return sentences with the figures of a record, but for those that lack one."""
    told = (_FIGURE.sub(partial(_shown, run), one) for one in sentences)
    return [one for one in told if _LACKS not in one]


def _shown(run: Run, found: re.Match[str]) -> str:
    value = run.figure(found[1] if found[1].startswith(("model.", "training.")) else f"metrics.{found[1]}")
    return _LACKS if value is None else _FORMS[found[2]](value)


def _distilled(run: Run) -> tuple[list[str], list[BarChart]]:
    kind, sentences = "distillation", _SENTENCES["distillation"]
    if run.part("metrics.packages.accuracy") and run.part("metrics.export"):
        kind, sentences = "demo", (*_SENTENCES["demo"], *sentences[1:])
    elif run.figure("metrics.student_end.vector_cosine") is not None:
        kind, sentences = "embeddings", (*_SENTENCES["embeddings"], *sentences[1:])
    last = f"cosine_{len(run.record.get('layer_map') or [])}"
    return _filled(run, (one.replace("LAST", last) for one in sentences)), [
        _bars(run.name, title, form, {
            label: run.figure(f"metrics.{name.replace('LAST', last)}") for label, name in names.items()
        })
        for title, (form, names) in _BARS[kind].items()
    ]  # fmt: skip


def _scored(run: Run) -> tuple[list[str], list[BarChart]]:
    metric, split, score = str(run.record.get("metric")), str(run.record.get("split")), run.figure("score")
    if score is None:
        return [], []
    form, name = "%" if in_percent(metric) else "plain", in_words(metric)
    splits = dict.fromkeys([split, *run.part("metrics")])
    values = {f"student, {one}": run.figure(f"metrics.{one}.{metric}") for one in splits}
    beside = "its record has no baseline: report it beside another run, such as that of its teacher"
    classes = run.part(f"metrics.{split}").get("per_class") or {}
    counts = [look_up(one, "support", kind=int) for one in classes.values()]
    if metric == "accuracy" and counts and all(counts):
        values["always the commonest class"] = commonest = max(counts) / sum(counts)
        beside = f"always answering with the commonest class has {_FORMS[form](commonest)}"
    if split in (run.record.get("agreement") or ()):
        name, beside = f"agreement with its teacher ({name})", "no gold label was there to score against"
    rows = run.figure(f"data.rows.{split}") or run.figure(f"rows.{split}")
    where = f"{run.record.get('task')}, {split}" + (f" ({rows:,.0f} rows)" if rows else "")
    first = f"has {name} {_FORMS[form](score)} on {where}; {beside}."
    return [first, *_filled(run, _SENTENCES["finetune"])], [
        _bars(run.name, name[:1].upper() + name[1:], form, values)
    ]


def _timed(run: Run) -> tuple[list[str], list[BarChart]]:
    bench = read_bench(run.file)
    title = f"Time for a text of {bench.length} tokens"
    found = {(title, "ms"): {row[:2]: row[3] for row in bench.rows}}
    found |= {("Size", "size"): {row[:2]: row[2] for row in bench.rows}}
    charts, best = [], []
    for (title, form), values in found.items():
        known = {", ".join(names): value for names, value in values.items() if value is not None}
        smallest = sorted(known.items(), key=lambda one: one[1])[:_MOST_BARS]
        left = f" ({_MOST_BARS} of {len(known)})" if len(known) > _MOST_BARS else ""
        charts.append(_bars("student", title + left, form, dict(smallest)))
        best += [f"{label} ({_FORMS[form](value)})" for label, value in smallest[:1]]
    timed = sum(row[3] is not None for row in bench.rows)
    return [
        f"compares {timed} pairs of model and engine: the fastest is {', the smallest '.join(best)}."
    ], charts
