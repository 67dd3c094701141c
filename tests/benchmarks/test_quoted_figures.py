"""Figures that pages quote in prose are those of the records.

Each function yields sentences of a page, with # for each figure, and what the records have for these.
"""

from __future__ import annotations

import csv
import json
import re
import statistics
from pathlib import Path

import pytest

from minialbert.runs.packed import read_run_file

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"
NUMBER = r"([-+]?[\d,]*\.?\d+)"


def record(name, file="result.json"):
    return json.loads((RESULTS / name / file).read_text(encoding="utf-8"))


def rows(name):
    with (RESULTS / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def text_of(page):
    return " ".join((ROOT / page).read_text(encoding="utf-8").split())


def interval(low, high):
    """Bounds of a loss are those of a gain, turned."""
    return sorted((abs(low), abs(high)))


def miniature():
    """From the tables that test_results_page.py holds against the cells."""
    score, held = {}, {row["row"]: row for row in rows("miniature/distillation")}
    for name in ("reach", "table-1", "table-3", "table-4"):
        for row in rows(f"miniature/{name}"):
            if row["tuned"].startswith("full"):
                score.setdefault(row["row"], row)
    gap = {
        (row["a"], row["b"]): tuple(float(row[key]) for key in ("mean", "low", "high"))
        for row in rows("miniature/claims")
        if row["mean"] and row["figure"] == "score"
    }

    def of(row, task):
        return float(score[row][task])

    def mean(row):
        return statistics.fmean(of(row, task) for task in ("CoLA", "MRPC", "STS-B", "NCBI-disease"))

    def lost(task):
        return of("teacher", task) - of("hidden-only-20m", task)

    def masked(*names):
        return [held[name]["masked tokens, %"] for name in names]

    def size(row):
        return int(held[row]["#params"]) / 1e6

    def cosines(row):
        return held[row]["cosine by iteration"].split(" / ")

    small, large, last, hidden = "student-64", "student-384", "hidden-only-20m", "hidden-only"
    wide, beside = "distilbert-like", "factorised-embedding-loss"
    eq7, release = "attention-only", "attention-only-release-attention"
    yield "keeps # % of its teacher's mean over nine", 100 * of(last, "mean") / of("teacher", "mean")
    yield (
        "gave # there and gives # now, of the teacher's #; without distillation it is #.",
        *map(mean, (hidden, last, "teacher", "undistilled")),
    )
    yield "CoLA went from # to #, MRPC from # to #.", *(
        of(row, task) for task in ("CoLA", "MRPC") for row in (hidden, last)
    )  # fmt: skip
    yield "within a point of its teacher (# and", *masked(last)
    yield (
        "A quarter of the # points that are missing, summed over nine tasks, is CoLA (#), then SST-2 (#), BC2GM (#)",
        9 * lost("mean"), *map(lost, ("CoLA", "SST-2", "BC2GM")),
    )  # fmt: skip
    rate, taught = re.findall(
        r"\| student, (?:1e-4|3e-4, from a tuned teacher) \| (\S+) \|",
        text_of("results/task-distillation/README.md"),
    )[:2]
    yield "CoLA at 1e-4 gives # and with a tuned teacher # instead of #", rate, taught, of(last, "CoLA")
    yield (
        "was worth # points of the mean over four tasks at 2 M tokens (# on CoLA), for # M parameters instead of # M.",
        -gap[small, large][0], of(large, "CoLA") - of(small, "CoLA"), size(large), size(small),
    )  # fmt: skip
    yield (
        "(rank 64: # and # % of masked tokens, an output KL of # and #), and yet their tuned means are # points apart "
        "at rank 64, CoLA #.",
        *masked(beside, small), held[beside]["output KL"], held[small]["output KL"],
        -gap[small, beside][0], of(beside, "CoLA") - of(small, "CoLA"),
    )  # fmt: skip
    yield (
        "and the # of claim 2 with it; a rank of 64 instead of 384 (#) and adapter-tuning (# and #) cost more",
        gap[large, f"{large}-no-adapters"][0], -gap[small, large][0],
        *(-gap[f"{row}/adapters", row][0] for row in (large, small)),
    )  # fmt: skip
    mean_gap, *bounds = gap[eq7, release]
    yield "it is # points (# to #) behind the release's", -mean_gap, *interval(*bounds)
    yield "# % of masked tokens against #, and hidden", *masked(eq7, release)
    yield (
        "(cosines of #, # and #) than with no alignment at all (#, # and #)",
        *cosines(eq7), *cosines("no-alignment"),
    )  # fmt: skip
    yield "neither good nor harm here: # % against #.", *masked(release, "no-alignment")
    yield "(claim 7, # M parameters) predicts the most masked tokens, # %", size(wide), *masked(wide)
    yield "(#, # to #), rank 384 # points (# to #) ahead", *gap[small, wide], *gap[large, wide]
    bio, large, fresh = "bio-student-64", "bio-student-384", "bio-student-384-no-adapters"
    yield (
        "rank 64 is # points behind itself tuned in full and rank 384 is #,",
        *(-gap[f"{row}/adapters", row][0] for row in (bio, large)),
    )
    mean_gap, *bounds = gap[large, fresh]
    yield "never had any are # behind, as claimed", gap[fresh, f"{fresh}/fresh-random"][0]
    yield "is reversed too, by # (# to #)", -mean_gap, *interval(*bounds)
    yield (
        "masked-LM alone (#) and rank 64 against 384 (#)",
        gap[bio, "bio-albert-3"][0], gap[bio, large][0],
    )  # fmt: skip
    yield "Rank 64 is # behind the fully", -gap[bio, "bio-distilbert-like"][0]
    yield (
        "it is # % of masked tokens against # by masked-LM alone, # at rank 384 and # fully parameterised",
        *masked(bio, "bio-albert-3", large, "bio-distilbert-like"),
    )


def block_start():
    (teacher,) = (row for row in rows("tasks/glue") if row["model"] == "general, full")
    yield "the teacher has # on STS-B", teacher["STS-B"]
    one, other = (
        {row["row"]: row for row in rows("miniature/table-1")[::-1]}[name]
        for name in ("student-64", "masked-lm-64")
    )
    yield "those two students are # points apart", float(one["STS-B"]) - float(other["STS-B"])


def soak():
    for name in ("demo", "long"):
        found = record(f"soak/{name}", "soak.json")["metrics"]
        slope = found["memory_slope"]
        bounds = slope["mb_per_1000_steps"], slope["low"], slope["high"]
        if name == "demo":
            yield "(# MB per 1,000 steps, 95 % interval # to #)", *bounds
            assert found["identical_rounds"] == found["rounds"] == 6 and found["terminated"] == 0
        else:
            yield "grows by # MB per 1,000 steps (# to #): flat, at # MB", *bounds, found["maximum_mb"]


def deployment():
    metrics = record("bench")["metrics"]

    def best(model, batch, length, engines):
        return max(
            time["tokens_per_second"]
            for engine in engines
            for time in metrics[model][engine]["timings"]
            if (time["batch_size"], time["length"]) == (batch, length)
        )

    def ratios(model, ones, others):
        settings = ((1, 16), (1, 128), (32, 16), (32, 128))
        return [best(model, *how, ones) / best(model, *how, others) for how in settings]

    native, dynamic = ["native-int8"], ["onnx-int8-dynamic"]
    others = [one for one in metrics["minialbert-128"] if one not in native]
    yield (
        "it is # times as fast for one text of 16 tokens, but # times for one of 128, # times for 32 of 16 and # times "
        "for 32 of 128; for MiniLM's shape #, #, # and # times.",
        *ratios("minialbert-128", native, others),
        *ratios("minilm-l6-h384", native, others),
    )
    by_token = ratios("minialbert-128", dynamic, ["onnx-int8"])
    yield "takes # and # times as long in ONNX Runtime", *by_token[:2]
    assert round(by_token[3], 1) == 1
    yield "engine it takes # and # times as long", *ratios("minialbert-128", dynamic, native)[:2]
    ours, theirs = (
        best(*of) for of in (("minialbert-128", 1, 128, native), ("distilbert", 1, 128, ["torch-fp32"]))
    )
    yield "in PyTorch (README: # here)", ours / theirs
    profile = record("native-profile")["milliseconds"]
    parts = "integer products with weights", "attention", "adapters and other products of fp32"
    needed = [sum(profile[f"{texts} x 128"][part] for part in parts) for texts in (1, 32)]
    assert all(
        0.93 < some / profile[f"{texts} x 128"]["together"] < 0.95
        for some, texts in zip(needed, (1, 32), strict=True)
    )
    per_second = [best("distilbert", texts, 128, dynamic) for texts in (1, 32)]
    taken = [texts * 128000 / rate for texts, rate in zip((1, 32), per_second, strict=True)]
    yield (
        "would take # times as long for one text of 128 tokens and # times for 32 of them. We aimed at 1.35 and 1.5, "
        "and reached # and #.",
        *(one / some for one, some in zip(taken, needed, strict=True)),
        *(
            best("minialbert-128", texts, 128, native) / rate
            for texts, rate in zip((1, 32), per_second, strict=True)
        ),
    )
    metrics = record("bench-bf16")["metrics"]
    rates = (best("minialbert-128", 1, 128, [f"openvino-{kind}"]) for kind in ("bf16", "fp32", "int8"))
    yield "takes # ms for 128 tokens in bf16, # in fp32 and # in int8", *(128000 / rate for rate in rates)
    metrics, one, many = record("bench-512")["metrics"], (1, 512), (32, 512)
    ours, theirs = metrics["minialbert-128"], ("distilbert", *one, dynamic)
    fastest, compiled = (best("minialbert-128", *one, of) for of in (["openvino-int8"], native))
    assert fastest == best("minialbert-128", *one, ours)
    yield (
        "the student takes # ms, # in the native engine, and DistilBERT # in `onnx-int8-dynamic`, which is # times as "
        "long; 32 such texts take it # times as long",
        *(1000 * 512 / rate for rate in (fastest, compiled, best(*theirs))),
        fastest / best(*theirs),
        best("minialbert-128", *many, ours) / best("distilbert", *many, dynamic),
    )
    metrics = record("bench-busy")["metrics"]

    yield (
        "is # times as fast as DistilBERT in ONNX Runtime's own int8 (`onnx-int8-dynamic`) for one text of 16 tokens, "
        "# times for one of 128 and # times for 32 texts of 128.",
        *(
            best("minialbert-128", *how, metrics["minialbert-128"])
            / best("distilbert", *how, ["onnx-int8-dynamic"])
            for how in ((1, 16), (1, 128), (32, 128))
        ),
    )
    mean = record("elastic")["mean"]
    yield "Two iterations cost # points against", -mean["depth_minus_full"]["2"]["mean"]
    yield "Full depth costs # against", -mean["elastic_minus_fixed"]["3"]["mean"]
    ways = record("early-exit")["ways"]
    yield "Two iterations run # times as fast as three", ways["2 iterations"]["speed"]
    ways = record("early-exit-0.25")["ways"]
    assert round(100 * (ways["3 iterations"]["score"] - ways["early exit"]["score"])) == 1
    yield "a full point, at # times the speed", ways["early exit"]["speed"]
    sizes = re.search(r"\| int4 \| (\S+) \| \S+ \| -(\S+) \|", text_of("results/four-bits/README.md"))
    yield "](../results/four-bits/README.md): # MB, and # points of F1", *sizes.groups()
    yield "scores moved by up to # in batches", max(
        one["difference"] for one in record("service-costs")["company"].values()
    )  # fmt: skip
    found, whole, cut = record("emulation"), [], {}
    for row in found["rows"]:
        if found["processors"][row["processor"]]["cuts_sums"] and row["way"] != "minialbert-runtime":
            cut[row["model"]] = row["lowest_cosine"]
        else:
            whole.append(row["lowest_cosine"])
            assert row["same_answers"] in (None, row["texts"])
    yield "a cosine of 1.00000, the lowest was # (", min(whole)
    lowest = cut.pop("classifier-int4")
    yield "of vectors down to # in the table, of a classifier's two outputs to #", min(cut.values()), lowest


def performance():
    found = record("distillation-step/paper-8x256")
    metrics, tokens = found["metrics"], found["batch"] * found["length"]
    seconds, rates = (
        {name: statistics.median(values) for name, values in metrics[key].items()}
        for key in ("seconds", "matmul_rates")
    )
    work = tokens * metrics["flops_per_token"]
    least = work / rates["fp32"]
    yield "a step takes # M floating-point operations per token", metrics["flops_per_token"] / 1e6
    yield (
        "multiplies matrices at # GFLOP/s in fp32, so 2,048 tokens take at least # s: # times as fast as the plain",
        rates["fp32"] / 1e9, least, seconds["plain"] / least,
    )  # fmt: skip
    half = seconds["plain"] / 2
    yield "plain path would need # % of the rate. That leaves # s", 100 * least / half, half - least
    yield "which now take # s together", seconds["fp32"] - least
    yield "run at # GFLOP/s, slower than fp32", rates["bf16"] / 1e9
    assert seconds["plain"] < 1.4 * work / rates["bf16"]
    yield "it needs # of the plain path", metrics["peak_bytes"]["bf16"] / metrics["peak_bytes"]["plain"]
    attention = {}
    for one in record("bf16-attention")["metrics"]["attention"]:
        attention.setdefault(one["kernel"], []).append(statistics.median(pair[1] for pair in one["seconds"]))
    times = [bf16 / fp32 for bf16, fp32 in zip(attention["bf16"], attention["fp32"], strict=True)]
    assert (round(min(times)), round(max(times))) == (2, 10)  # "two to ten times as long"


def method():
    table = (RESULTS / "low-rank-start" / "table.md").read_text(encoding="utf-8")
    assert table in (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
    names = (
        "low-rank-start/svd-distilled",
        "block-start/mean-distilled/distill",
        "low-rank-start/svd-masked-lm",
        "low-rank-start/masked-lm",
    )
    yield (
        "predicts # % from singular vectors, and # % from principal directions; after masked-LM alone, # and # %.",
        *(100 * record(name)["metrics"]["student_end"]["mlm_accuracy"] for name in names),
    )
    names = ("mean", "layer-2", "layer-3")
    yield (
        "scores # on STS-B from the mean, # from layer 2 and # from layer 3",
        *(100 * record(f"block-start/{name}/stsb")["score"] for name in names),
    )
    tasks = ("stsb", "cola", "ncbi-disease")
    after = [
        [100 * record(f"block-start/{name}-distilled/{task}")["score"] for task in tasks]
        for name in ("layer-2", "mean")
    ]
    yield (
        "it scores # on STS-B, # on CoLA and # on NCBI-disease; after 2 M from the mean, #, # and #.",
        *after[0],
        *after[1],
    )
    (start,) = (row for row in rows("miniature/table-1") if row["row"] == "undistilled")
    yield "layer 2 reaches # without any distillation", start["STS-B"]


def choosing_a_size():
    folder = RESULTS / "sharing" / "two-million-tokens"
    cells = {"ncbi-disease-1": ("test", "entity_f1_strict"), "stsb-1": ("validation", "pearson_spearman")}
    scores = {
        row: [
            100 * json.loads(read_run_file(folder / row / "full" / cell / "result.json"))["metrics"][split][metric]
            for cell, (split, metric) in cells.items()
        ]
        for row in (
            "one-bottleneck", "one-none", "one-bottleneck-2", "one-none-2", "one-rank-120", "turns-bottleneck",
        )
    }  # fmt: skip
    *four, rank, turns = scores.values()
    (ner, stsb) = zip(*four, strict=True)
    yield "# against # on NCBI-disease without any, with another # against", *ner[:3]
    yield "#, and the same on STS-B (# and #, # and #)", ner[3], *stsb
    yield "Rank 120 in place of 64 reached # and #", *rank
    yield "two blocks in turn reached # and #", *turns
    yield (
        "one block reaches # from layer 1 and # from layer 2",
        *(
            100
            * json.loads(read_run_file(RESULTS / "sharing" / "start" / f"layer-{layer}" / "result.json"))[
                "score"
            ]
            for layer in (1, 2)
        ),
    )


def recipes():
    start = [
        100 * record(f"block-start/{name}-distilled/{task}")["score"]
        for name in ("layer-2", "mean")
        for task in ("stsb", "ncbi-disease")
    ]
    yield (
        "from layer 2, after 0.5 M tokens: STS-B #, NCBI-disease #; from the mean, after 2 M: # and #",
        *start,
    )
    held = {row["row"]: row for row in rows("miniature/distillation")}
    one, other = held["hidden-only"], held["student-64"]
    speed = [float(row["tokens/s"].replace(",", "")) for row in (one, other)]
    yield (
        "# % of masked tokens against #, and # times the tokens a second",
        *(float(row["masked tokens, %"]) for row in (one, other)),
        speed[0] / speed[1],
    )
    optimisers = (RESULTS / "optimiser" / "README.md").read_text(encoding="utf-8")
    long = dict(re.findall(r"\| (adamw|muon) \| \S+ \| (\S+) \(1(?:, 2, 3)?\)", optimisers))
    yield "# % of masked tokens (three seeds) against # (one)", float(long["muon"]), float(long["adamw"])
    before, today = record("main-job/distilled"), record("main-job/today")
    own = json.loads(
        read_run_file(
            RESULTS / "sharing" / "two-million-tokens" / "one-bottleneck" / "distill" / "result.json"
        )
    )
    ends = [one["metrics"]["student_end"] for one in (before, own, today)]
    ends.append(today["metrics"]["teacher"])
    assert len({end["masked_tokens"] for end in ends}) == 1
    assert before["training"]["steps"] == today["training"]["steps"] == 800
    before, own, today, teacher = (100 * end["mlm_accuracy"] for end in ends)
    yield (
        "`small` predicts # % of the held-out words, and `small` of before predicted # %; its teacher predicts # %",
        *(today, before, teacher),
    )
    yield "with these settings reached # % after 2 M, six iterations", own


def tasks():
    (found,) = record("decoding")["models"].values()
    path, broken = found["differences"]["viterbi"], found["differences"]["without_broken"]
    yield (
        "this adds # points of F1 to the model of an earlier ready tagger (95 % interval # to #); leaving broken tags "
        "out instead would add #",
        *(100 * value for value in (path["f1"], *path["interval"], broken["f1"])),
    )


def embeddings():
    times = {
        name: found["16"] for name, found in record("embeddings", "latency.json")["milliseconds"].items()
    }
    own, onnx = (times[f"minilm-5mb, {engine}"] for engine in ("native", "ONNX Runtime"))
    common = min(times[f"teacher, {engine}"] for engine in ("ONNX Runtime", "OpenVINO"))
    yield "A sentence of 16 tokens takes # ms in the [native engine]", own
    yield "2-run-it) and # in ONNX Runtime", onnx
    yield "in int8 takes # ms in the faster of", common
    same = times["teacher, native"]
    yield "and # in the native engine: # times as long", same, same / own
    card = text_of("models/minialbert_models/minilm-5mb/README.md")
    first = record("first-vector")
    yield (
        "these three commands took # s on two busy cores, of which the first vector took #",
        first["total"],
        [*first["seconds"].values()][-1],
    )
    folder = RESULTS / "embedding-pairs"
    yield (
        "in pairs # on STS-B, # on QNLI and # on docstrings; single #, # and # (Spearman",
        *(
            100 * json.loads(read_run_file(folder / kind / name / "result.json"))["score"]
            for kind in ("pairs", "single")
            for name in ("stsb", "qnli", "python")
        ),
    )
    steps = {
        json.loads(read_run_file(folder / kind / "distilled" / "result.json"))["training"]["steps"]
        for kind in ("pairs", "single")
    }
    assert len(steps) == 1
    yield "cannot be more than # times there", re.search(r"cannot be more than (\S+) times", card)[1]


def data():
    yield "once more, at about # GB a second", 1 / record("service-costs")["fingerprints"]["1 GB of a file"]


def reliability():
    yield "That takes about # s for a GB", record("service-costs")["fingerprints"]["1 GB of a file"]


def scaling():
    found = record("scaling", "gpus.json")["metrics"]
    yield "**Computed, not measured.** # M operations per token", min(found["flops_per_token"].values()) / 1e6
    sizes = found["gradient_bytes"].values()
    yield "That makes # MB, against # MB for six", *(size / 1e6 for size in sizes)


PAGES = {
    "results/miniature/README.md": miniature,
    "results/block-start/README.md": block_start,
    "results/soak/README.md": soak,
    **{
        f"docs/{of.__name__.replace('choosing_a_size', 'choosing-a-size')}.md": of
        for of in (
            choosing_a_size,
            deployment,
            performance,
            method,
            tasks,
            embeddings,
            data,
            recipes,
            reliability,
            scaling,
        )
    },
}


@pytest.mark.parametrize("page", PAGES)
def test_prose_has_the_figures_of_the_records(page):
    text = text_of(page)
    for sentence, *values in PAGES[page]():
        shown = re.findall(re.escape(sentence).replace(r"\#", NUMBER), text)
        assert len(shown) == 1, f"{page} does not say once: {sentence}"
        figures = [shown[0]] if isinstance(shown[0], str) else shown[0]
        digits = [len(figure.partition(".")[2]) for figure in figures]
        rounded = [round(float(value), places) for value, places in zip(values, digits, strict=True)]
        assert [float(figure.replace(",", "")) for figure in figures] == rounded, sentence


def test_the_guide_to_tuning_has_the_figures_of_these_pages():
    guide = " ".join((ROOT / "docs" / "tasks.md").read_text(encoding="utf-8").split())
    rates, adapters = (
        (ROOT / "results" / name / "README.md").read_text(encoding="utf-8") for name in ("tuning-rate", "optimiser")
    )  # fmt: skip
    cells = [
        line.strip("| ").split(" | ") for line in (rates + adapters).splitlines() if line.startswith("| ")
    ]
    low, high = ("fp32", "0.0001"), ("bf16", "0.0003")
    mean = {tuple(row[:5]): row[6] for row in cells if row[1] == "student-64"}
    for task in ("NCBI-disease", "CoLA"):
        both = (mean[task, "student-64", "full", *how] for how in (low, high))
        assert f"{next(both)} on {task} at 1e-4 (fp32) and {next(both)} at 3e-4 (bf16)" in guide
    first = {row[4]: row[7][3:].split(",")[0] for row in cells if row[:2] == ["CoLA", "teacher"]}  # of seed 1
    assert f"gets {first['0.0001']} on CoLA at 1e-4 and {first['0.0003']} at 3e-4 (one seed)" in guide
    cola, stsb, whole = re.search(
        r"CoLA (\S+), .* STS-B (\S+); over these 4 tasks (\S+)\.\n", adapters
    ).groups()
    assert f"{whole} points as the mean of four tasks, from {stsb} on STS-B to {cola} on CoLA" in guide
    share = re.search(r"`--adapters`: (\S+ % of its weights)", adapters)[1]
    assert f"the adapters of `english-4mb`, {share}, reach" in guide
    (behind,) = (row[7].removeprefix("1: -") for row in cells if row[:2] == ["MRPC", "adamw"])
    assert f"{behind} points behind on MRPC (one seed)" in guide
