"""What docs/study.md shows, from the records: its answer, its figure, and the table of every choice that was compared.

`figures.py` draws the figure and writes the page.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from boxed_models import START, scores_of, tuned_from
from elastic_table import figures
from guide_tables import TASKS, TEACHER, miniature, read
from scipy import stats
from sharing_screening import AGAIN, PLAIN, bytes_of, screened, tuned
from sharing_screening import TASKS as PAIR
from task_distillation import MINIATURE, STUDENT, TWO_TASKS, by_seed, two_scores
from task_distillation import ROWS as COLA

from minialbert.experiments.suite.claims import compare, mean_interval
from minialbert.experiments.suite.schema import Comparison
from minialbert.runs.packed import find_run_records, read_run_file
from minialbert.runs.records import load_record

RESULTS = Path("results")
HEADER = ("choice", "instead of", "measure", "tokens", "distilled", "tuned", "difference", "verdict", "key")
SETS = ("ncbi-disease", "bc5cdr-disease", "bc5cdr-chem")
SHARED = {
    "runs": ("two blocks, in runs", "`student.num_hidden_groups: 2`"),
    "turns": ("two blocks, in turn", "and `student.hidden_group_order: turns`"),
    "ends": ("own blocks for first and last", "`student.num_hidden_groups: 3`, `student.hidden_group_order: ends`"),
    "networks": ("one attention, three networks", "`student.groups_share_attention: true`"),
    "own": ("six blocks", "`student.num_hidden_groups: 6`"),
}  # fmt: skip
APART = {
    "bottleneck": ("bottlenecks, 24 wide", "`student.adapter_reduction_factor: 16`"),
    "wide": ("bottlenecks, 96 wide", "`student.adapter_reduction_factor: 4`"),
    "norms": (
        "LayerNorms and biases, from the teacher's",
        "`student.adapter_kind: layer-norm`, `student.adapter_init: teacher`",
    ),
    "lora": ("LoRA of rank 32", "`student.adapter_kind: lora`, `student.lora_rank: 32`"),
    "both": ("bottlenecks and such LayerNorms", "`student.adapter_kind: bottleneck+layer-norm`"),
}


Ends = tuple[float, float] | None


class Row(NamedTuple):
    """A choice that was compared with another."""

    choice: str
    other: str
    measure: str
    tokens: str
    distilled: str  # seeds of the distillation, of the choice and of the other
    tuned: str  # seeds of the tuning, of each
    gain: float | None  # in points; None if it was not measured
    ends: Ends  # of its interval of 95 %
    key: str
    records: str  # below results/
    bound: float = 0  # what the difference must exceed, below 0 where the question is what is lost
    within: str = ""  # what the interval leaves out
    said: str = ""  # the verdict where the rule does not fit

    def verdict(self, luck: float) -> str:
        """Return what the difference says; without an interval it must be larger than `luck`."""
        if self.said or self.gain is None:
            return self.said or "not measured"
        low, high = self.ends or (self.gain - luck, self.gain + luck)
        good = "better" if self.bound == 0 else f"costs less than {-self.bound:g}"
        word = good if low > self.bound else "worse" if high < self.bound else "undecided"
        note = self.within if self.ends else "one run"
        return f"{word} ({note})" if note and word != "undecided" else word

    def cells(self, luck: float) -> tuple[str, ...]:
        """Return the cells of the table."""
        told = "-" if self.gain is None else f"{round(self.gain, 1) + 0:+.1f}"  # no -0.0
        told += " ({:+.1f}, {:+.1f})".format(*self.ends) if self.ends else ""
        choice = f"[{self.choice}](../results/{self.records})" if self.records else self.choice
        return choice, *self[1:6], told, self.verdict(luck), self.key


def contrast(pairs: Iterable[tuple[str, str]], values: Mapping[str, Sequence[float]]) -> tuple[float, Ends]:
    """Return the mean of differences of means, and the ends of its 95 % interval by Student's t.

    The spread is taken as equal in all of `values`, and estimated from those that have several; None if none has.
    """
    pairs = list(pairs)
    gain = statistics.fmean(statistics.fmean(values[a]) - statistics.fmean(values[b]) for a, b in pairs)
    several = [own for own in values.values() if len(own) > 1]
    freedom = sum(len(own) - 1 for own in several)
    if not freedom:
        return gain, None
    spread = sum(statistics.variance(own) * (len(own) - 1) for own in several) / freedom
    parts = sum(1 / len(values[a]) + 1 / len(values[b]) for a, b in pairs)
    half = float(stats.t.ppf(0.975, freedom)) * (spread * parts) ** 0.5 / len(pairs)
    return gain, (gain - half, gain + half)


def distillations() -> dict[str, list[list[float]]]:
    """Return the scores of every row of `sharing` by task, a list for each distillation."""
    found: dict[str, list[list[float]]] = {}
    for name, row in sorted(tuned().items()):
        found.setdefault(AGAIN.sub("", name), []).append(row.scores)
    return found


def sharing_values() -> dict[str, list[float]]:
    """Return the means over both tasks, a value for each distillation."""
    return {name: [*map(statistics.fmean, own)] for name, own in distillations().items()}


def luck() -> float:
    """Return three times the most by which a task's score of two distillations of one row differs."""
    return 3 * max(max(of) - min(of) for own in distillations().values() for of in zip(*own, strict=True))


def of_sharing(choice: str, other: str, pairs: Sequence[tuple[str, str]], key: str) -> Row:
    """Return what rows of `sharing` say: after two million tokens, else of the screening."""
    values, there = sharing_values(), tuned()
    both = [pair for pair in pairs if {*pair} <= {*values}]
    if both:
        seeds = ", ".join(_span(len(values[pair[at]]) for pair in both) for at in (0, 1))
        tunings = _span(row.tunings for name, row in there.items() if AGAIN.sub("", name) in {*sum(both, ())})
        (tokens,) = {_tokens(row.record) for row in there.values()}
        found = contrast(both, values)
        return Row(
            more(choice, both), other, "2 tasks", tokens, seeds, tunings, *found, key, "sharing/README.md"
        )
    runs = screened()
    gains = []
    for one, base in (pair for pair in pairs if {*pair} <= {*runs}):
        tokens = _tokens(runs[one][min(runs[one])])
        gains += [_masked(runs[one][seed]) - _masked(runs[base][seed]) for seed in runs[one]]
    if not gains:
        return unmeasured(choice, other, key)
    link = "sharing/README.md#a-screening-of-more-rows"
    seeds = f"{len(gains)}, {len(gains)}"
    choice = more(choice, [pair for pair in pairs if {*pair} <= {*runs}])
    return Row(
        choice, other, "masked tokens", tokens, seeds, "-", *_paired(gains), key, link, 0, "first steps alone"
    )


def more(choice: str, pairs: Sequence[tuple[str, str]]) -> str:
    """Return a choice with the megabytes that it takes more in int8, if it does."""
    sizes = bytes_of()
    extra = round(statistics.fmean(sizes[a] - sizes[b] for a, b in pairs) / 1e6, 1)
    return f"{choice} ({extra:+.1f} MB)" if extra else choice


def of_miniature(
    choice: str, other: str, a: str, b: str, key: str, tasks: Sequence[str] = TASKS, bound: float = 0
) -> Row:
    """Return what two rows of the miniature say, paired by task and seed of the tuning."""
    suite, found = miniature(RESULTS)
    gap = compare(suite, Comparison(a=a, b=b, tasks=list(tasks)), found)
    tokens = _tokens(found[f"{a.partition('/')[0]}/distill"].record)
    seeds = _span(sum(task == one for one, _ in gap.differences) for task in tasks)
    measure = f"{len(tasks)} sets of entities" if a.startswith("bio-") else f"{len(tasks)} tasks"
    return Row(choice, other, measure, tokens, "1, 1", seeds, gap.mean, gap.interval, key,
               "miniature/report.md#claims", bound, "one student")  # fmt: skip


def unmeasured(choice: str, other: str, key: str) -> Row:
    """Return a choice without a record."""
    return Row(choice, other, "-", "-", "-", "-", None, None, key, "")


def _paired(gains: Sequence[float]) -> tuple[float, Ends]:
    """Return the mean of paired differences and the ends of its interval."""
    mean, half = figures(list(gains)).values()
    return mean, None if half is None else (mean - half, mean + half)


def _span(counts: Iterable[int]) -> str:
    least, *_, most = sorted([*counts] * 2)
    return f"{least}" if least == most else f"{least} to {most}"


def _tokens(record: Mapping[str, Any]) -> str:
    return f"{record['training']['windows'] * record['recipe']['data']['window_length'] / 1e6:.1f} M"


def _masked(record: Mapping[str, Any]) -> float:
    return 100 * float(record["metrics"]["student_end"]["mlm_accuracy"])


def _score(folder: str) -> float:
    return 100 * float(json.loads(read_run_file(RESULTS / folder / "result.json"))["score"])


def _english() -> str:
    return _tokens(read(RESULTS / "boxed" / START / "distillation.json"))


def _record(folder: str) -> Mapping[str, Any]:
    return load_record(RESULTS / folder / "result.json")


def sharing() -> list[Row]:
    """Return what iterations share."""
    ways = ("none", *APART)
    rows = [
        of_sharing(title, "one block", [(f"{name}-{way}", f"one-{way}") for way in ways], key)
        for name, (title, key) in SHARED.items()
    ]
    three = [(f"three-{way}", f"one-{way}") for way in ways]
    return [*rows, of_sharing("three iterations", "six, one block", three, "`student.num_hidden_layers: 3`")]


def apart() -> list[Row]:
    """Return what tells iterations apart."""
    rows = [
        of_sharing(title, "nothing", [(f"{shared}-{name}", f"{shared}-none") for shared in ("one", *SHARED)], key)
        for name, (title, key) in APART.items()
    ]  # fmt: skip
    three, _ = APART["bottleneck"]
    sides = "student-384", "student-384-no-adapters"
    key = "`student.adapter_reduction_factor: 16`"
    return [
        *rows,
        of_miniature(f"{three}, three iterations, rank 384", "nothing", *sides, key),
        of_miniature("the same, biomedical text", "nothing", *(f"bio-{one}" for one in sides), key, SETS),
        of_sharing("scale vectors", "nothing", [("one-scale", "one-none")], "`student.adapter_kind: scale`"),
        of_sharing("an embedding of the iteration", "nothing", [("one-iteration", "one-none")],
                   "`student.adapter_kind: iteration-embedding`"),
        of_sharing("LoRA from what the teacher's layers differ by", "from zero", [("one-lora-teacher", "one-lora")],
                   "`student.adapter_init: teacher`"),
    ]  # fmt: skip


def starts() -> list[Row]:
    """Return where students start."""
    block, low = "block-start/README.md", "low-rank-start/README.md"
    layer = _score("block-start/layer-2/stsb")
    old, new = (
        _record(name) for name in ("low-rank-start/svd-distilled", "block-start/mean-distilled/distill")
    )
    first, second = (_score(f"sharing/start/layer-{one}") for one in (1, 2))
    return [
        Row("the block as layer 2 of 6", "mean of the layers", "STS-B", "0", "0, 0", "1",
            layer - _score("block-start/mean/stsb"), None, "`student.init_layer: 2`, or `third`", block),
        Row("the block as layer 2", "layer 1", "STS-B", "0", "0, 0", "1", second - first, None,
            "`student.init_layer: 2`", "sharing/README.md"),
        Row("embeddings in principal directions", "singular vectors", "masked tokens", _tokens(new), "1, 1", "-",
            _masked(new) - _masked(old), None, "`student.init: teacher`", low),
    ]  # fmt: skip


def embeddings() -> list[Row]:
    """Return rank and vocabulary."""
    key = "`student.embedding_size: 384`"
    wide = more("rank 384, three iterations", [("student-384", "three-bottleneck")])
    cut = read(RESULTS / "boxed" / START / "masked-words.json")["accuracy"]
    trim = read(RESULTS / "boxed" / START / "trim.json")
    lost, english = 100 * (cut["trimmed"] - cut["student"]), _english()
    assert lost >= 0
    return [
        of_sharing("rank 120", "rank 64", [("one-rank-120", "one-bottleneck")], "`student.embedding_size: 120`"),
        of_miniature(wide, "rank 64", "student-384", "student-64", key),
        of_miniature("the same, biomedical text", "rank 64", "bio-student-384", "bio-student-64", key, SETS),
        Row(f"{trim['tokens']:,} tokens of the vocabulary", f"all {trim['tokens_before']:,}", "masked tokens", english,
            "1", "-", lost, None, "`minialbert trim`", "boxed/README.md", said="nothing lost (one run)"),
        unmeasured("a vocabulary of its own", "the teacher's", "`student.own_vocabulary: true`"),
    ]  # fmt: skip


def losses() -> list[Row]:
    """Return what students learn."""
    rows = [_record(f"block-start/layer-2-distilled{name}/stsb") for name in ("-to-2-3-6", "")]
    one, other = (100 * record["score"] for record in rows)
    tokens = _tokens(_record("block-start/layer-2-distilled/distill"))
    return [
        of_miniature("distillation, all losses", "masked-LM alone", "student-64", "masked-lm-64",
                     "`distill.preset: default`"),
        of_miniature("hidden states alone", "and attention rows (Eq. 7)", "hidden-only", "student-64",
                     "`distill.attention_weight: 0`"),
        of_miniature("hidden states alone", "attention rows alone", "hidden-only", "attention-only",
                     "`distill.attention_weight: 0`"),
        of_miniature("hidden states alone", "no alignment", "hidden-only", "no-alignment",
                     "`distill.hidden_weight: 3`"),
        of_miniature("attention rows as in the release", "as in Eq. 7, both alone", "attention-only-release-attention",
                     "attention-only", "`distill.attention_reduction: elements`"),
        of_miniature("an embedding loss, rank 64", "none", "factorised-embedding-loss", "student-64",
                     "`distill.embedding_weight: 1`"),
        Row("layers 2, 3 and 6 as targets", "2, 4 and 6", "STS-B", tokens, "1, 1", "1", one - other, None,
            "`distill.layer_map: [2, 3, 6]`", "block-start/README.md"),
        of_sharing("MiniLMv2's relations", "hidden states", [("one-relations", "one-bottleneck")],
                   "`distill.relation_weight: 3`"),
    ]  # fmt: skip


def training() -> list[Row]:
    """Return how students are distilled."""
    page = "optimiser/README.md"
    long = [
        record
        for record in map(load_record, find_run_records(RESULTS / "task-distillation" / "two-million-tokens"))
        if record["kind"] == "distillation"
    ]
    by = {
        name: [_masked(one) for one in long if one["recipe"]["training"]["optimizer"] == name]
        for name in ("muon", "adamw")
    }
    averages = read(RESULTS / "optimiser" / "averages.json")["held_out"]
    last = averages.pop("last")["mlm_accuracy"]
    ahead = 100 * (max(one["mlm_accuracy"] for one in averages.values()) - last)
    assert ahead <= 0
    today, before = (_record(f"main-job/{name}") for name in ("today", "distilled"))
    return [
        of_miniature("20 M tokens, hidden states alone", "2 M", "hidden-only-20m", "hidden-only",
                     "`training.max_steps`"),
        Row("Muon at 2e-3", "AdamW at 7e-4", "masked tokens", _tokens(long[0]),
            ", ".join(str(len(own)) for own in by.values()), "-", *contrast([("muon", "adamw")], by),
            "`training.optimizer: muon`", page),
        Row("the best of four exponential means of the weights", "the last weights", "masked tokens",
            _tokens(long[0]), "1", "-", ahead, None, "no key", f"{page}#averaged-weights", said="no gain (one run)"),
        Row("recipe `small` of today: start, losses, Muon", "`small` of before", "masked tokens", _tokens(today),
            "1, 1", "-", _masked(today) - _masked(before), None, "`--recipe small`", "main-job/README.md"),
        of_sharing("constant rate, then to zero", "linear", [("one-constant", "one-bottleneck")],
                   "`training.lr_scheduler: warmup_stable_decay`"),
    ]  # fmt: skip


def tuning() -> list[Row]:
    """Return how students are tuned, and what is left of their scores in fewer bytes or iterations."""
    noise, depth = (
        read(RESULTS / "weight-noise" / "result.json"),
        read(RESULTS / "elastic" / "result.json")["mean"],
    )
    noisy = [
        100 * (noise["metrics"][f"noise of int4, seed {seed}"]["int4"]["accuracy"]
               - noise["metrics"][f"without noise, seed {seed}"]["int4"]["accuracy"])
        for seed in noise["settings"]["seeds"]
    ]  # fmt: skip
    cola = [[*by_seed(*COLA[way]).values()] for way in (f"{STUDENT}, from a tuned teacher", STUDENT)]
    pairs, labels = (
        _score(f"task-distillation/two-million-tokens/stsb-{way}1") for way in ("", "from-labels-")
    )
    scores, all_labels = two_scores(), scores_of(tuned_from(RESULTS / "boxed" / START))
    new = [statistics.fmean(own) for name, own in scores.items() if name.startswith("distilled")]
    own = scores_of(tuned_from(MINIATURE / "student-64" / "full"))
    old = [statistics.fmean(one) for one in zip(*(own[task][1] for task in TWO_TASKS), strict=True)]
    taught = {data: own for data, (_, own) in scores_of(
        one for one in tuned_from(RESULTS / "task-distillation" / "nine-tasks") if one["recipe"]["teacher"]["model"]
    ).items() if data in all_labels}  # fmt: skip
    ways = {
        f"{data} {way}": own
        for data in taught
        for way, own in (("a", taught[data]), ("b", all_labels[data][1]))
    }
    lost = depth["elastic_minus_fixed"]["3"], depth["depth_minus_full"]["2"]
    full, fewer = (
        (one["mean"], (one["mean"] - one["interval"], one["mean"] + one["interval"])) for one in lost
    )
    three = f"{len(depth['seeds'])}, {len(depth['seeds'])}"
    page, two = "task-distillation/README.md", "task-distillation/README.md#two-million-tokens"
    english, long = _english(), _tokens(_record("miniature/cells/hidden-only-20m/distill"))
    short = _tokens(_record("task-distillation/two-million-tokens/distilled-1"))
    return [
        Row("a teacher tuned for the task, on the same rows", "labels", "CoLA", long, "1, 1", f"{len(cola[0])}",
            *_paired([a - b for a, b in zip(*cola, strict=True)]), "`teacher.model`", page, 0, "one student"),
        Row("and it labels further texts", "labels", f"{len(taught)} tasks", english, "1, 1",
            _span(map(len, taught.values())),
            *contrast([(f"{data} a", f"{data} b") for data in taught], ways),
            "`teacher.unlabelled`, `teacher.altered`", f"{page}#nine-tasks", 0, "one student"),
        Row("and it labels further pairs", "labels", "STS-B", short, "1, 1", "1", pairs - labels, None,
            "`teacher.unlabelled`", two),
        Row("rank 84, Muon and such teachers together", "`student-64`", "3 tasks", short, f"{len(new)}, 1",
            f"1, {len(old)}", *contrast([("a", "b")], {"a": new, "b": old}), "`--recipe miniature/muon`", two, 0,
            "one `student-64`"),
        of_miniature("adapters alone, AdamW", "all weights", "student-64/adapters", "student-64",
                     "`tuning.mode: adapters`", bound=-2),
        Row("adapters alone, Muon", "all weights, AdamW", "4 tasks", english, "1, 1", *_adapters(),
            "and `tuning.optimizer: muon`", "optimiser/README.md#adapters-alone", -2, "one student"),
        Row("noise of int4 while tuning, then int4", "no noise, then int4", "accuracy", "-", "1, 1", f"{len(noisy)}",
            *_paired(noisy), "`tuning.weight_noise: int4`", "weight-noise/table.md", 0, "one student"),
        Row("elastic, all three iterations", "tuned for the last alone", "3 tasks", short, three, "1", *full,
            "`tuning.elastic: true`", "elastic/README.md", -1),
        Row("elastic, two iterations", "all three", "3 tasks", short, three, "1", *fewer,
            "`--num-iterations 2`", "elastic/README.md", -1),
        *_exported(),
    ]  # fmt: skip


def _adapters() -> tuple[str, float, Ends]:
    """Return seeds of Muon's adapters and their difference to full tuning, of each task's row with most seeds."""
    full = {
        (one["recipe"]["task"]["data"], one["seed"]): scores_of([one])
        for one in tuned_from(RESULTS / "boxed" / START)
    }
    found: dict[tuple[str, float | None], list[float]] = {}
    for one in tuned_from(RESULTS / "optimiser"):
        data, how = one["recipe"]["task"]["data"], one["recipe"]["tuning"]
        if how["optimizer"] == "muon" and (data, one["seed"]) in full:
            ((_, (score,)),) = scores_of([one]).values()
            ((_, (other,)),) = full[data, one["seed"]].values()
            found.setdefault((data, how["dropout"]), []).append(score - other)
    best: dict[str, list[float]] = {}
    for (data, _), gains in found.items():
        best[data] = max(best.get(data, []), gains, key=len)
    gain = statistics.fmean(map(statistics.fmean, best.values()))
    return _span(map(len, best.values())), gain, mean_interval([*best.values()], 0.95)


def _exported() -> list[Row]:
    """Return what fewer bits cost."""
    scores: dict[str, dict[str, float]] = {}
    for file in find_run_records(RESULTS / "four-bits"):
        name, _, seed = file.parent.name.partition("-")
        if name != "graph":
            scores.setdefault(name, {})[seed] = 100 * load_record(file)["score"]
    return [
        Row(f"{name} after tuning", "fp32", "NCBI-disease", _english(), "1, 1", f"{len(scores[name])}",
            *_paired([scores[name][seed] - score for seed, score in scores["fp32"].items()]),
            f"`--quantize {name}`", "four-bits/README.md", -1, "one student")
        for name in ("int8", "int4")
    ]  # fmt: skip


PARTS: dict[str, Callable[[], list[Row]]] = {
    "What iterations share": sharing, "What tells them apart": apart, "Where the student starts": starts,
    "Rank and vocabulary": embeddings, "What it learns": losses, "How it is distilled": training,
    "How it is tuned and used": tuning,
}  # fmt: skip


def table() -> str:
    """Return the table of choices."""
    lines = [HEADER, ["---"] * len(HEADER)]
    chance = luck()
    for part, made in PARTS.items():
        lines.append([f"**{part}**", *[""] * (len(HEADER) - 1)])
        lines += [row.cells(chance) for row in made()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


# Rows of the miniature that are tuned alike: by their name, the shape whose bytes they take.
BESIDE = {
    "hidden-only": "three-bottleneck", "student-64": "three-bottleneck", "student-384": "student-384",
    "student-384-no-adapters": "student-384-no-adapters", "distilbert-like": "distilbert-like",
}  # fmt: skip


def numbers() -> dict[str, Any]:
    """Return what the figure shows: scores over both tasks, megabytes, and the names of the front."""
    sizes, places = bytes_of(), [TWO_TASKS.index(task) for task in PAIR]

    def student(name: str, shape: str, kind: str, scores: Sequence[float]) -> dict[str, Any]:
        return {
            "name": name, "kind": kind, "MB": sizes[shape] / 1e6, "score": statistics.fmean(scores),
            "low": min(scores), "high": max(scores), "of": len(scores),
        }  # fmt: skip

    students = [student(name, name, "sharing", own) for name, own in sharing_values().items()]
    for name, shape in BESIDE.items():
        students.append(student(name, shape, "adamw", [_pair(name, "full")]))
    taught = [own for name, own in two_scores().items() if name.startswith("distilled")]
    means = [statistics.fmean(own[place] for place in places) for own in taught]
    students.append(student("rank 84, taught", "three-rank-84", "taught", means))
    front: list[dict[str, Any]] = []
    for one in sorted(students, key=lambda one: (one["MB"], -one["score"])):
        if one["kind"] != "taught" and (not front or one["score"] > front[-1]["score"]):
            front.append(one)
    names = [one["name"] for one in front]
    return {"teacher": _pair(*TEACHER.split("/")), "students": students, "front": names}


def _pair(row: str, mode: str) -> float:
    """Return the mean over both tasks of a row of the miniature."""
    found = scores_of(tuned_from(MINIATURE / row / mode))
    return statistics.fmean(statistics.fmean(found[task][1]) for task in PAIR)


def answer() -> str:
    """Return the headline, and what the figure shows."""
    shown, chance = numbers(), luck()
    one = {student["name"]: student for student in shown["students"]}
    best = one[shown["front"][-1]]
    rows = [row for made in (sharing, apart) for row in made() if row.measure == "2 tasks"]
    found: dict[str, list[str]] = {}
    for row in rows:
        found.setdefault(row.verdict(chance), []).append(f"{row.choice.partition(' (')[0]} ({row.gain:+.1f})")
    told = "; ".join(f"{word}: {', '.join(found[word])}" for word in sorted(found))
    gains = {row.choice: row for row in (*tuning(), *starts())}
    texts, start = gains["and it labels further texts"], gains["the block as layer 2 of 6"]
    plain = one[PLAIN]
    return f"""\
**At 4 MB and 2 M tokens, share one block among all iterations, start it as one layer of the teacher, align hidden
states alone, and put your effort into tuning.** The start is worth {start.gain:.0f} points on STS-B before any
distillation, and a tuned teacher that labels further texts {texts.gain:.1f} as the mean of four tasks. Of the students
below that are tuned from labels alone, none of more than {best["MB"]:.1f} MB is ahead of `{best["name"]}`; `{PLAIN}`,
where nothing tells iterations apart, is {best["score"] - plain["score"]:.1f} points behind it, in {plain["MB"]:.1f} MB.
The teacher has {shown["teacher"]:.1f}.

Against one plain block, with intervals over seeds of the distillation: {told}.
"""
