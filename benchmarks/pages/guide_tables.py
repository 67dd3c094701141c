"""Tables of docs/choosing-a-size.md, docs/how-long.md and docs/memory.md, each from records under results/.

`performance_page.py` writes them into the pages. Every function in `TABLES` takes that folder and returns Markdown.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from minialbert import MiniAlbertConfig, MiniAlbertModel
from minialbert.experiments.suite.cells import Result, find_results
from minialbert.experiments.suite.page import measured
from minialbert.experiments.suite.schema import Suite, load_suite
from minialbert.method.costs import forward_flops_per_token
from minialbert.report import paper

TEACHER = "teacher/full-glue-1e-4"
TASKS = ["ncbi-disease", "cola", "stsb", "mrpc"]
# What each row is, the row whose size and speed it has, and how it was tuned.
ROWS = {
    TEACHER: ("teacher", "teacher"),
    "hidden-only-20m": ("student, 20 M tokens, no attention loss", "student-64"),
    "hidden-only": ("student, 2 M tokens, no attention loss", "student-64"),
    "student-384": ("student, 2 M tokens", "student-384"),
    "student-384/adapters": ("the same, adapters tuned", "student-384"),
    "student-384-no-adapters": ("without adapters, 2 M tokens", ""),
    "student-64": ("student, 2 M tokens", "student-64"),
    "student-64/adapters": ("the same, adapters tuned", "student-64"),
    "undistilled": ("start, not distilled", "student-64"),
    "distilbert-like": ("three layers of their own, 2 M tokens", ""),
}
# Settings whose size is computed: width, heads, iterations, rank, reduction factor of the adapters.
SHAPES = (
    (384, 12, 3, 64, 16),
    (384, 12, 3, 128, 16),
    (384, 12, 3, 384, 16),
    (384, 12, 6, 64, 16),
    (768, 12, 3, 128, 16),
    (768, 12, 6, 64, 16),
    (768, 12, 6, 128, 16),
    (768, 12, 6, 128, 4),
    (768, 12, 6, 128, None),
    (768, 12, 6, 312, 16),
    (768, 12, 6, 768, 16),
    (768, 12, 12, 128, 16),
)
CPU_GFLOPS, CPU_SHARE = (50, 120, 250), 0.6
STEPS = {
    "BERT-base into 6 iterations, 768 wide, rank 128": "paper-8x256",
    "6 layers into 3 iterations, 384 wide, rank 128": "small-16x128",
    "the same": "small-16x128-amd",
}


def read(file: Path) -> Any:
    """Return a record."""
    return json.loads(file.read_text(encoding="utf-8"))


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]], numbers_from: int) -> str:
    """Return a table whose columns from `numbers_from` on are set to the right."""
    rule = ["---"] * numbers_from + ["---:"] * (len(header) - numbers_from)
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def latencies(timings: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Return the median milliseconds of one text, by length."""
    return {one["length"]: 1000 * one["seconds"]["median"] for one in timings if one["batch_size"] == 1}


def mean_of(suite: Suite, results: Mapping[str, Result], side: str) -> float:
    """Return a row's mean over the tasks and its seeds, in per cent."""
    found = measured(suite, side, TASKS, results)
    if found is None:
        raise ValueError(f"{side} has no seed with all of {', '.join(TASKS)}")
    return 100 * found.mean


# By the engine's name: what its column says.
SPEED = {
    "onnx-int8": "ms in ONNX Runtime",
    "openvino-int8": "ms in OpenVINO",
    "native-int8": "ms in the native engine",
}


def miniature(results: Path) -> tuple[Suite, Mapping[str, Result]]:
    """Return the suite and its records."""
    suite = load_suite("miniature")
    return suite, find_results(suite, [results / "miniature"])


def quality(results: Path) -> str:
    """Return size, latency and quality of the miniature's students."""
    suite, found = miniature(results)
    bench = read(results / "miniature" / "bench" / "result.json")["metrics"]
    whole = mean_of(suite, found, TEACHER)
    rows = []
    for side, (name, shape) in ROWS.items():
        row = side.partition("/")[0]
        is_teacher = side == TEACHER
        record = found["student-64/distill" if is_teacher else f"{row}/distill"].record
        model, student = record["model"], record["recipe"]["student"]
        parameters = model["teacher_encoder_parameters" if is_teacher else "encoder_parameters"]
        own = is_teacher or model["arch"] == "bert"
        rank = "-" if own else str(student["embedding_size"] or 384)
        factor = "-" if own else str(student["adapter_reduction_factor"] or "none")
        size = [bench[shape][engine] for engine in ("torch-fp32", "onnx-int8")] if shape else []
        cells = [f"{one['bytes'] / 1e6:.1f}" for one in size] or ["-", "-"]
        cells.append(f"{latencies(size[1]['timings'])[128]:.1f}" if size else "-")
        mean = mean_of(suite, found, side)
        depth = "6 layers" if is_teacher else "3 layers" if own else str(model["iterations"])
        score = [f"{mean:.1f}", f"{100 * mean / whole:.0f} %"]
        rows.append([name, depth, rank, factor, f"{parameters / 1e6:.1f} M", *cells, *score])
    header = [
        "model, 384 wide", "iterations", "rank", "adapters", "parameters", "MB, fp32", "MB, int8",
        "ms, int8", "mean score", "of the teacher",
    ]  # fmt: skip
    return markdown(header, rows, 4)


def speed(results: Path) -> str:
    """Return size and latency at the paper's width, beside encoders of other kinds."""
    metrics = read(results / "bench" / "result.json")
    rows = []
    for name, engines in metrics["metrics"].items():
        if "onnx-int8" not in engines:  # static vectors
            continue
        parameters = metrics["models"][name]["parameters"]
        cells = [f"{engines[engine]['bytes'] / 1e6:.1f}" for engine in ("onnx-fp32", "onnx-int8")]
        for engine in SPEED:
            times = latencies(engines[engine]["timings"]) if engines.get(engine, {}).get("timings") else {}
            cells += [f"{times[length]:.1f}" if times else "-" for length in (16, 128)]
        rows.append([name, f"{parameters / 1e6:.1f} M", *cells])
    times_of = [f"{name}, {length} tokens" for name in SPEED.values() for length in (16, 128)]
    header = ["model", "parameters", "MB, fp32", "MB, int8", *times_of]
    return markdown(header, rows, 1)


def config_of(width: int, heads: int, depth: int, rank: int, factor: int | None) -> MiniAlbertConfig:
    """Return the configuration of one shape of student, with BERT's English vocabulary."""
    return MiniAlbertConfig(
        hidden_size=width,
        num_attention_heads=heads,
        intermediate_size=4 * width,
        num_hidden_layers=depth,
        embedding_size=rank,
        adapter_reduction_factor=factor,
    )


def parameters_of(config: MiniAlbertConfig) -> int:
    """Return the parameters of an encoder, without allocating them."""
    with torch.device("meta"):
        return int(MiniAlbertModel(config).num_parameters())


def geometry(results: Path) -> str:
    """Return what each setting costs in parameters, bytes and arithmetic; nothing of it is measured."""
    rows = []
    for width, heads, depth, rank, factor in SHAPES:
        config = config_of(width, heads, depth, rank, factor)
        parameters = parameters_of(config)
        flops = forward_flops_per_token(config, 128)
        settings = [str(width), str(depth), str(rank), str(factor or "none")]
        sizes = [f"{parameters / 1e6:.1f} M", f"{4 * parameters / 1e6:.1f}", f"{parameters / 1e6:.1f}"]
        rows.append([*settings, *sizes, f"{flops / 1e6:.0f}"])
    header = [
        "width", "iterations", "rank", "adapters", "parameters", "MB, fp32", "MB, int8", "M operations a token",
    ]  # fmt: skip
    return markdown(header, rows, 0)


def advice(results: Path) -> str:
    """Return what the two tables of measurements say, in sentences."""
    suite, found = miniature(results)
    score = {side: mean_of(suite, found, side) for side in ROWS}
    bench = read(results / "miniature" / "bench" / "result.json")["metrics"]
    small, large = (bench[row]["onnx-int8"]["bytes"] / 1e6 for row in ("student-64", "student-384"))
    times: dict[str, dict[int, float]] = {}  # of each model in its fastest engine
    for name, engines in read(results / "bench" / "result.json")["metrics"].items():
        ran = [latencies(engines[one]["timings"]) for one in SPEED if engines.get(one, {}).get("timings")]
        times[name] = {length: min(one[length] for one in ran) for length in (16, 128) if ran}
    faster = times["minialbert-128"][128] / times["minialbert-128@4"][128]
    lost = read(results / "elastic" / "result.json")["mean"]["depth_minus_full"]["2"]
    rivals = times["distilbert"], times["minialbert-128"]
    gain = [rivals[0][length] / rivals[1][length] for length in (16, 128)]
    lines = [
        f"**Text before size.** Ten times as much text raised the student of rank 64 from {score['hidden-only']:.1f} "
        f"to {score['hidden-only-20m']:.1f}. Rank 384 at the small amount of text gave {score['student-384']:.1f}, in "
        "three times the bytes. Start with a low rank and more steps.",
        f"**Rank buys quality for bytes, not for time.** Rank 384 instead of 64 takes {large:.1f} MB instead of "
        f"{small:.1f} in int8, gives {score['student-384'] - score['student-64']:+.1f} points at equal text, and "
        "runs equally fast.",
        "**Tune everything if you serve one task.** Tuning only the adapters, by AdamW, costs "
        f"{score['student-64'] - score['student-64/adapters']:.1f} points at rank 64 and "
        f"{score['student-384'] - score['student-384/adapters']:.1f} at rank 384. It pays where many tasks share one "
        "backbone; there [Muon and more passes](../results/optimiser/README.md) lose less.",
        "**Iterations buy quality for time.** Four iterations instead of six run "
        f"{faster:.1f} times as fast in int8. An elastic student scored {-lost['mean']:.1f} points "
        f"(± {lost['interval']:.1f}, mean of three tasks) lower after two of its three iterations than after all.",
        "**Sharing weights saves bytes; it saves little time.** Six iterations against DistilBERT's six layers, both "
        f"int8 in the fastest engine: {gain[0]:.2f} times as fast for 16 tokens, {gain[1]:.2f} times for 128. If "
        "latency is all that counts, take a narrower encoder, of TinyBERT's or MiniLM's shape (second table).",
    ]
    return "\n".join(f"- {line}" for line in lines)


def seconds_of(record: Mapping[str, Any], mode: str) -> float:
    """Return the median seconds of a step."""
    return float(statistics.median(record["metrics"]["seconds"][mode]))


def times(results: Path) -> str:
    """Return measured speeds of distilling, tuning and preparing."""
    rows = []
    for what, folder in STEPS.items():
        record = read(results / "distillation-step" / folder / "result.json")
        mode = "bf16" if folder.endswith("amd") else "fp32"
        rate = record["batch"] * record["length"] / seconds_of(record, mode)
        where = f"{record['batch']} × {record['length']} tokens, {mode}, {processor(record)}"
        told = f"{span(1e6 / rate)} for 1 M tokens"
        rows.append([f"distill: {what}", where, f"{rate:,.0f} tokens/s", told])
    _, found = miniature(results)
    for side, what in (("student-64", "3 iterations"), ("distilbert-like", "3 layers of its own")):
        record = found[f"{side}/distill"].record
        rate, seconds = record["training"]["tokens_per_second"], record["training"]["wall_seconds"]
        where = f"a whole run, bf16, one core, {processor(record)}"
        told = f"{span(seconds)} for 2 M tokens, evaluations included"
        rows.append([f"distill: the miniature's student of {what}", where, f"{rate:,.0f} tokens/s", told])
    tuning = read(results / "tuning-step" / "result.json")
    where = f"{tuning['batch']} × {tuning['length']} tokens, fp32, {processor(tuning)}"
    for what, mode, one in tunings(tuning):
        rate = tuning["batch"] / statistics.median(one["seconds"])
        told = f"{span(1e4 / rate)} for 10,000 rows"
        rows.append([f"finetune, {mode}: {what}", where, f"{rate:.1f} rows/s", told])
    prepare = read(results / "prepare" / "result.json")
    rate = prepare["metrics"]["10x"]["mb_per_second"]
    where = f"plain text, {prepare['num_workers']} processes"
    rows.append(["prepare", where, f"{rate:.1f} MB/s", f"{span(1000 / rate)} for 1 GB"])
    export = read(results / "export-time" / "result.json")
    for name, by_precision in export["metrics"].items():
        for precision, one in by_precision.items():
            where = f"CPU time, comparison included, {processor(export)}"
            rows.append([f"export to {precision}: {name}", where, "-", span(one["cpu"])])
    return markdown(["what", "measured on", "speed", "so it takes"], rows, 2)


def tunings(record: Mapping[str, Any]) -> Iterable[tuple[str, str, Mapping[str, Any]]]:
    """Yield shape, way of tuning and measurements of the benchmark of a tuning step."""
    for shape, what in (("paper", "6 iterations, 768 wide"), ("small", "3 iterations, 384 wide")):
        for mode, told in (("full", "all weights"), ("adapters", "adapters")):
            yield what, told, record["metrics"][shape][mode]


def processor(record: Mapping[str, Any]) -> str:
    """Return the short name of a record's processor."""
    return str(record["machine"]["processor"]).replace("(R)", "").removesuffix(" Processor")


def span(seconds: float) -> str:
    """Return a duration in the unit that suits it."""
    units = {"days": 86400.0, "hours": 3600.0, "minutes": 60.0, "seconds": 1.0}
    unit, size = next((pair for pair in units.items() if seconds >= 1.5 * pair[1]), ("seconds", 1.0))
    value = seconds / size
    return f"{value:.0f} {unit}" if value >= 10 else f"{value:.1f} {unit}"


def computed(results: Path) -> str:
    """Return tokens per second that arithmetic allows, on CPUs by their rate and on GPUs by the maker's figure."""
    assumed = read(results / "scaling" / "gpus.json")["metrics"]["assumed"]
    least, most = sorted(assumed["utilisation"])
    rows = []
    for what, folder in list(STEPS.items())[:2]:
        record = read(results / "distillation-step" / folder / "result.json")
        flops = record["metrics"]["flops_per_token"]
        cells = [f"{CPU_SHARE * rate * 1e9 / flops:,.0f}" for rate in CPU_GFLOPS]
        # A narrow student does too little at a time to reach this share of a GPU.
        for rate, _ in assumed["gpus"].values():
            shares = (f"{round(share * rate / flops, -4):,.0f}" for share in (least, most))
            cells.append(" to ".join(shares) if folder.startswith("paper") else "-")
        rows.append([what, f"{flops / 1e6:.0f} M", *cells])
    header = ["tokens/s of distill", "operations a token", *(f"CPU, {rate} GFLOP/s" for rate in CPU_GFLOPS)]
    return markdown([*header, *(f"one {name}" for name in assumed["gpus"])], rows, 1)


def memory(results: Path) -> str:
    """Return peak memory of preparing, distilling, tuning and serving."""
    rows = []
    prepare = read(results / "prepare" / "result.json")["metrics"]
    for size in ("1x", "10x"):
        one = prepare[size]
        told = f"{one['peak_rss_main_mb']:.0f} MB, and {one['peak_rss_worker_mb']:.0f} for each worker"
        rows.append([f"prepare, {one['corpus_mb']:.0f} MB of text", told])
    for what, folder in list(STEPS.items())[:2]:
        record = read(results / "distillation-step" / folder / "result.json")
        for mode in ("fp32", "bf16"):
            peak = record["metrics"]["peak_bytes"][mode] / 1e6
            batch = f"{record['batch']} × {record['length']} tokens, {mode}"
            rows.append([f"distill: {what}; {batch}", f"{peak:,.0f} MB"])
    tuning = read(results / "tuning-step" / "result.json")
    for what, mode, one in tunings(tuning):
        batch = f"{tuning['batch']} × {tuning['length']} tokens, fp32, beside the libraries"
        rows.append([f"finetune, {mode}: {what}; {batch}", f"{one['peak_bytes'] / 1e6:,.0f} MB"])
    bench = read(results / "bench" / "result.json")["metrics"]
    for name in ("minialbert-128", "distilbert"):
        for engine in ("torch-fp32", "onnx-fp32", "onnx-int8"):
            peak = bench[name][engine]["peak_memory_bytes"] / 1e6
            rows.append([f"serve {name}, {engine}, the whole process", f"{peak:,.0f} MB"])
    for what, one in read(results / "service-costs" / "result.json")["long"].items():
        rows.append(
            [f"encode one text of a million characters ({what}), on top", f"{one['gigabytes']:.2f} GB"]
        )
    return markdown(["what", "peak memory"], rows, 1)


def published(results: Path) -> str:
    """Return what the paper printed of models that a reader could take instead."""
    peers = {
        "BERT-base": "BioBERT", "MobileBERT": "BioMobileBERT", "DistilBERT": "DistilBioBERT",
        "MiniALBERT_128": "BioMiniALBERT_128", "ALBERT_12": "BioALBERT_12", "TinyBERT": "TinyBioBERT",
    }  # fmt: skip
    rows = []
    for name, medical in peers.items():
        general, entities = (
            next(row for row in rows_of if row.model == wanted and not row.marks and row.adapter is not False)
            for rows_of, wanted in ((paper.glue_rows(), name), (paper.ner_rows(), medical))
        )
        label = name.replace("_", "-")
        rows.append([label, general.params.replace("M", " M"), f"{general.average}", f"{entities.average}"])
    return markdown(["model", "parameters", "GLUE, nine columns", "biomedical NER, four sets"], rows, 1)


TABLES = {
    "choosing/quality": quality,
    "choosing/speed": speed,
    "choosing/geometry": geometry,
    "choosing/advice": advice,
    "how-long/measured": times,
    "how-long/computed": computed,
    "memory/measured": memory,
    "comparison/published": published,
}
