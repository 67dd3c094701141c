"""Draw the figures and badges of README and docs into docs/img, light and dark; write the captions, and docs/study.md.

    python benchmarks/pages/figures.py

Quality is that of the paper's Table 1 (minialbert/report/paper.py); sizes and times are those of results/bench;
what students keep of their teacher is from results/miniature and results/embeddings; study.py has what docs/study.md
shows. Each SVG carries a digest of this
file and of the numbers that it shows, and a test holds it against both.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import matplotlib
import study
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch
from transformers import BertConfig

from minialbert.experiments.suite.cells import find_results
from minialbert.experiments.suite.claims import kept
from minialbert.experiments.suite.schema import load_suite
from minialbert.method.configuration_minialbert import MiniAlbertConfig
from minialbert.method.losses import layer_map
from minialbert.report.paper import glue_rows

RESULTS, IMAGES, README = Path("results"), Path("docs") / "img", Path("README.md")
STUDY = Path("docs") / "study.md"
STUDENT, LENGTH, SHORT = "minialbert-128", 128, 16
SIZED, TODAY = "onnx-int8", "onnx-int8-dynamic"
INT8 = (SIZED, TODAY, "openvino-int8", "native-int8")
# By the name in results/bench: a label, the paper's row, a marker, and how far below the marker the label stands.
PEERS = {
    "bert-base": ("BERT-base", "BERT-base", "s", -16),
    "distilbert": ("DistilBERT", "DistilBERT", "^", 4),
    "mobilebert": ("MobileBERT", "MobileBERT", "D", 9),
    "tinybert-4l-312": ("TinyBERT-4L", "TinyBERT", "v", -17),
    STUDENT: ("MiniALBERT-128", "MiniALBERT_128, adapters", "o", -18),
}
FOUR = [
    "ncbi-disease",
    "cola",
    "stsb",
    "mrpc",
]  # the tasks on which every one of the three students was tuned
BOX = {
    "stsb": "likeness of sentences (STS-B)",
    "medical": "search: medical abstracts",
    "qnli": "search: answers (QNLI)",
    "python": "search: Python docstrings",
    "books": "clustering: textbooks",
    "packages": "clustering: Python packages",
}
SPENT = {"undistilled": "before its first step", "hidden-only": "2 M", "hidden-only-20m": "20 M"}
FONTS = "-apple-system, 'Segoe UI', 'Noto Sans', Helvetica, Arial, sans-serif"
THEMES = {
    "light": {
        "text": "#1f2328", "muted": "#59636e", "grid": "#d1d9e0", "page": "#ffffff", "student": "#0969da",
        "block": "#ddf4ff", "adapter": "#8250df", "teacher": "#9a6700", "layer": "#fff8c5",
    },
    "dark": {
        "text": "#f0f6fc", "muted": "#9198a1", "grid": "#3d444d", "page": "#0d1117", "student": "#4493f8",
        "block": "#121d2f", "adapter": "#ab7df8", "teacher": "#d29922", "layer": "#272115",
    },
}  # fmt: skip
Colours = dict[str, str]


def numbers() -> dict[str, Any]:
    """Return what the figures show, from the records and the paper's table."""
    record = json.loads((RESULTS / "bench" / "result.json").read_text(encoding="utf-8"))
    quality = {row.label: float(row.average) for row in glue_rows()}
    peers = {}
    for name, engines in record["metrics"].items():
        if SIZED not in engines:  # static vectors
            continue
        fast = [engines[engine] for engine in INT8 if engines.get(engine, {}).get("timings")]
        peers[name] = {
            "glue": quality[PEERS[name][1]] if name in PEERS else None,
            "millions": record["models"][name]["parameters"] / 1e6,
            "int8 MB": engines[SIZED]["bytes"] / 1e6, "fp32 MB": engines["onnx-fp32"]["bytes"] / 1e6,
        } | {
            f"{what} {length}": {
                "best": choose(_timing(one, length, many)[key] * factor for one in fast),
                "today": _timing(engines[TODAY], length, many)[key] * factor,
                "torch": _timing(engines["torch-fp32"], length, many)[key] * factor,
            }
            for what, many, key, factor, choose in (
                ("ms", False, "median", 1e3, min), ("tokens/s", True, "tokens_per_second", 1, max)
            )
            for length in (SHORT, LENGTH)
        }  # fmt: skip
    suite = load_suite("miniature")
    results = find_results(suite, [RESULTS / "miniature"])
    keep = suite.reach.model_copy(update={"tasks": FOUR})
    spent = {}
    for side in SPENT:
        share, run = kept(suite, keep, side, results), results[f"{side}/distill"].record
        tokens = run["training"]["windows"] * run["recipe"]["data"]["window_length"]
        spent[side] = {"tokens": tokens, "share": share.share, "sd": share.sd, "seeds": share.n}
    box = {}
    for place in BOX:
        ours, static = (
            json.loads((RESULTS / "embeddings" / name / f"{place}.json").read_text(encoding="utf-8"))
            for name in ("minilm-5mb", "static")
        )
        of_teacher = 100 / ours["reference"]["metrics"][ours["metric"]]
        box[place] = {"student": of_teacher * ours["score"], "static": of_teacher * static["score"]}
    student, teacher = MiniAlbertConfig(embedding_size=128), BertConfig()
    shape = {
        "words": student.vocab_size, "rank": student.embedding_size, "width": student.hidden_size,
        "iterations": student.num_hidden_layers, "layers": teacher.num_hidden_layers,
        "map": layer_map(student.num_hidden_layers, teacher.num_hidden_layers),
    }  # fmt: skip
    machine = f"{record['settings']['threads']} threads of an {record['machine']['processor']}"
    shown = {"peers": peers, "spent": spent, "shape": shape, "machine": machine, "box": box}
    return shown | {"study": study.numbers()}


def _timing(found: dict[str, Any], length: int, many: bool) -> dict[str, float]:
    """Return the median seconds and the rate of one text, or of many."""
    (one,) = (one for one in found["timings"] if one["length"] == length and (one["batch_size"] > 1) == many)
    return {"median": one["seconds"]["median"], "tokens_per_second": one["tokens_per_second"]}


def digest(shown: dict[str, Any]) -> str:
    """Return what a figure is known by: the numbers and the code that drew it."""
    said = json.dumps(shown, sort_keys=True) + Path(__file__).read_text(encoding="utf-8")
    return hashlib.sha256(said.encode()).hexdigest()


def architecture(figure: Figure, colours: Colours, shown: dict[str, Any]) -> None:
    """Draw the teacher's layers above the iterations of one shared block."""
    shape, axes = shown["shape"], figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, 900), ylim=(0, 430))
    axes.axis("off")

    def box(x: float, y: float, wide: float, high: float, face: str, edge: str) -> None:
        style = "round,pad=0,rounding_size=4"
        axes.add_patch(FancyBboxPatch((x, y), wide, high, style, fc=colours[face], ec=colours[edge], lw=1.2))

    def say(x: float, y: float, text: str, colour: str = "text", **more: Any) -> None:
        axes.text(x, y, text, color=colours[colour], **{"ha": "center", "va": "center", **more})

    def arrow(start: tuple[float, float], end: tuple[float, float], colour: str, **more: Any) -> None:
        how = {"arrowstyle": "-|>", "mutation_scale": 9, "lw": 1.2, **more}
        axes.add_patch(FancyArrowPatch(start, end, color=colours[colour], shrinkA=0, shrinkB=0, **how))

    left, step = 190.0, 50.0
    right = left + step * shape["layers"]
    peers = shown["peers"]
    say(14, 404, "Teacher", weight="bold", ha="left", size=15)
    say(14, 384, f"{peers['bert-base']['millions']:.0f} M", "muted", ha="left")
    say(14, 368, "parameters", "muted", ha="left", size=11)
    say(left, 404, f"{shape['layers']} layers, each with its own weights", "muted", ha="left")
    box(90, 300, 72, 78, "layer", "teacher")
    say(126, 350, "embeddings", size=11)
    say(126, 330, f"{shape['words']:,}", "muted", size=11)
    say(126, 315, f"× {shape['width']}", "muted", size=11)
    for layer in range(shape["layers"]):
        box(left + step * layer, 300, step - 8, 78, "layer", "teacher")
        say(left + step * layer + (step - 8) / 2, 339, str(layer + 1), size=14)
    arrow((162, 339), (left, 339), "teacher")
    arrow((right - 8, 339), (right + 16, 339), "teacher")
    box(right + 16, 300, 84, 78, "layer", "teacher")
    say(right + 58, 339, "predicts\nmasked\ntokens", size=11)

    say(14, 204, "Student", weight="bold", ha="left", size=15)
    say(14, 184, f"{peers[STUDENT]['millions']:.0f} M", "muted", ha="left")
    say(14, 168, "parameters", "muted", ha="left", size=11)
    box(88, 92, 22, 110, "block", "student")
    say(99, 147, f"{shape['words']:,} × {shape['rank']}", size=11, rotation=90)
    box(128, 118, 38, 58, "block", "student")
    say(147, 156, f"{shape['rank']}", size=11)
    say(147, 138, f"→ {shape['width']}", size=11)
    arrow((110, 147), (128, 147), "student")
    arrow((166, 147), (left, 147), "student")
    say(127, 78, f"rank {shape['rank']}", "muted", size=11)
    wide = 2 * step - 12
    for iteration, layer in enumerate(shape["map"], start=1):
        x = left + 2 * step * (iteration - 1)
        box(x, 92, wide, 110, "block", "student")
        for what, at in (("attention", 8), ("feed-forward", 48)):
            axes.add_patch(FancyBboxPatch((x + at, 100), 10, 94, "round,pad=0,rounding_size=3", lw=0,
                                          fc=colours["adapter"], alpha=0.5 + 0.1 * (iteration - 1)))  # fmt: skip
            say(x + at + 24, 147, what, size=11, rotation=90)
        if iteration < shape["iterations"]:
            arrow((x + wide, 147), (x + wide + 12, 147), "student")
        say(x + wide / 2, 78, f"iteration {iteration}", "muted", size=11)
        middle = left + step * (layer - 1) + (step - 8) / 2
        arrow((middle, 298), (middle, 204), "text", linestyle=(0, (3, 3)), lw=1)
    for row, line in enumerate(
        ("Each iteration learns", "the attention maps and", "the hidden states of", "the layer above it.")
    ):
        say(14, 280 - 16 * row, line, "muted", ha="left", size=11)
    end = left + 2 * step * shape["iterations"] - 12
    arrow((end, 147), (right + 16, 147), "student")
    box(right + 16, 108, 84, 78, "block", "student")
    say(right + 58, 147, "predicts\nmasked\ntokens", size=11)
    arrow((right + 58, 298), (right + 58, 188), "text", linestyle=(0, (3, 3)), lw=1)
    axes.plot([end - 6, end - 6, left + 6, left + 6], [92, 60, 60, 70], color=colours["student"], lw=1.2)
    arrow((left + 6, 60), (left + 6, 92), "student")
    box(left, 24, 14, 14, "block", "student")
    say(left + 22, 31, f"one shared block, applied {shape['iterations']} times", ha="left")
    axes.add_patch(FancyBboxPatch((left + 290, 24), 10, 14, "round,pad=0,rounding_size=3", lw=0,
                                  fc=colours["adapter"], alpha=0.8))  # fmt: skip
    say(left + 308, 31, "adapters: small, and different in each iteration", ha="left")


def _against(
    figure: Figure, colours: Colours, shown: dict[str, Any], places: Mapping[str, float], label: str
) -> Axes:
    axes = _axes(figure, colours)
    for name, (called, _, marker, up) in PEERS.items():
        x, y = places[name], shown["peers"][name]["glue"]
        colour = colours["student" if name == STUDENT else "teacher" if name == "bert-base" else "muted"]
        weight, place = "bold" if name == STUDENT else "normal", (9 if up == 4 else -5, up)
        axes.plot([x], [y], marker, color=colour, ms=8)
        axes.annotate(called, (x, y), place, textcoords="offset points", color=colour, weight=weight, size=12)
    axes.set_xscale("log")
    axes.set_xlabel(label, color=colours["text"])
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_ylim(74.5, 85)
    axes.set_title("GLUE average in the paper", loc="left", color=colours["text"])
    return axes


def size(figure: Figure, colours: Colours, shown: dict[str, Any]) -> None:
    """Draw quality against bytes, in fp32 too."""
    places = {name: one["int8 MB"] for name, one in shown["peers"].items()}
    axes = _against(figure, colours, shown, places, "MB on disk, measured: ● int8, ○ fp32")
    for name, (_, _, marker, _) in PEERS.items():
        found = shown["peers"][name]
        y, slow, fast = found["glue"], found["fp32 MB"], found["int8 MB"]
        colour = colours["student" if name == STUDENT else "teacher" if name == "bert-base" else "muted"]
        axes.plot([slow, fast], [y, y], color=colour, lw=1, alpha=0.6)
        axes.plot([slow], [y], marker, mfc=colours["page"], mec=colour, ms=6, mew=1.2)
    axes.set_xticks([10, 20, 50, 100, 200, 400])
    axes.set_xticks([], minor=True)


def latency(figure: Figure, colours: Colours, shown: dict[str, Any]) -> None:
    """Draw quality against time."""
    places = {name: one[f"ms {LENGTH}"]["best"] for name, one in shown["peers"].items()}
    axes = _against(figure, colours, shown, places, f"ms for {LENGTH} tokens in int8, measured")
    axes.set(xlim=(3.5, 90))
    axes.set_xticks([5, 10, 20, 50])
    axes.set_xticks([], minor=True)


def tokens(figure: Figure, colours: Colours, shown: dict[str, Any]) -> None:
    """Draw the share of the teacher that is kept against the tokens seen."""
    axes, spent = _axes(figure, colours), list(shown["spent"].values())
    places, shares = range(len(spent)), [one["share"] for one in spent]
    axes.errorbar(places, shares, [one["sd"] for one in spent], color=colours["student"], marker="o", ms=8,
                  capsize=4, lw=1.5)  # fmt: skip
    for place, share in zip(places, shares, strict=True):
        axes.annotate(
            f"{share:.1f} %", (place, share), (9, -12), textcoords="offset points", color=colours["text"]
        )
    axes.axhline(100, color=colours["teacher"], lw=1.5)
    axes.annotate("teacher", (0, 100), (0, 5), textcoords="offset points", color=colours["teacher"])
    axes.set(xlim=(-0.3, len(spent) - 0.5), ylim=(85, 102))
    axes.set_xticks(places, [f"{one['tokens'] / 1e6:.0f} M" for one in spent])
    axes.set_xlabel("tokens of distillation", color=colours["text"])
    axes.set_title("% of the teacher's score", loc="left", color=colours["text"])


def box(figure: Figure, colours: Colours, shown: dict[str, Any]) -> None:
    """Draw the share of the teacher's score that the sentence encoder of the box keeps, beside a static model."""
    axes, found = _axes(figure, colours), list(shown["box"].values())
    axes.set_position((0.31, 0.12, 0.63, 0.76))
    for name, colour, down, said in (
        ("student", "student", -0.18, "minilm-5mb"),
        ("static", "muted", 0.2, "model2vec, equal bytes"),
    ):
        places, shares = [at + down for at in range(len(found))], [one[name] for one in found]
        axes.barh(places, shares, 0.34, color=colours[colour], label=said)
        for place, share in zip(places, shares, strict=True):
            axes.annotate(
                f"{share:.0f}", (share, place), (-5, 0), textcoords="offset points", ha="right", va="center",
                color=colours["page"], size=11,
            )  # fmt: skip
    axes.axvline(100, color=colours["teacher"], lw=1.5)
    axes.annotate(
        "teacher, 90 MB",
        (100, -0.5),
        (-4, 4),
        textcoords="offset points",
        ha="right",
        color=colours["teacher"],
    )
    axes.grid(visible=False)
    axes.set(xlim=(0, 104), ylim=(len(found) - 0.5, -0.5))
    axes.set_yticks(range(len(found)), BOX.values(), color=colours["text"])
    axes.set_xticks([0, 25, 50, 75, 100])
    axes.set_title("% of the teacher's score", loc="left", color=colours["text"], pad=20, x=-0.44)
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=2, frameon=False, labelcolor=colours["text"])


def sharing(figure: Figure, colours: Colours, shown: dict[str, Any]) -> None:
    """Draw the score of the study's students against their bytes, each named where there is room."""
    axes, found = _axes(figure, colours), shown["study"]
    axes.set_position((0.06, 0.13, 0.91, 0.78))
    markers = {
        "sharing": ("o", "student", True),
        "adamw": ("o", "muted", False),
        "taught": ("*", "adapter", True),
    }
    low, high = (pick(one["score"] for one in found["students"]) for pick in (min, max))
    axes.set_xscale("log")
    axes.set(xlim=(3.4, 24), ylim=(low - 1, max(high, found["teacher"]) + 1))
    axes.axhline(found["teacher"], color=colours["teacher"], lw=1.5)
    axes.annotate("teacher", (23.5, found["teacher"]), (0, 5), textcoords="offset points", ha="right",
                  color=colours["teacher"])  # fmt: skip
    front = [one for name in found["front"] for one in found["students"] if one["name"] == name]
    places, scores = (
        [*(one["MB"] for one in front), 24],
        [*(one["score"] for one in front), front[-1]["score"]],
    )
    axes.step(places, scores, where="post", color=colours["student"], lw=1, alpha=0.6)
    taken = []
    for one in found["students"]:
        marker, colour, full = markers[one["kind"]]
        face = colours[colour] if full else colours["page"]
        axes.plot([one["MB"]] * 2, [one["low"], one["high"]], color=colours[colour], lw=1.2)
        axes.plot(
            [one["MB"]], [one["score"]], marker, mfc=face, mec=colours[colour], ms=13 if marker == "*" else 7
        )
        x, y = axes.transData.transform((one["MB"], one["score"]))
        bottom, top = axes.transData.transform([(one["MB"], one["low"]), (one["MB"], one["high"])])[:, 1]
        taken += [(x - 6, x + 6, y - 6, y + 6), (x, x, bottom, top)]
    for start, end, score in zip(places[:-1], places[1:], scores, strict=False):  # the front's own line
        (left, y), (right, _) = axes.transData.transform([(start, score), (end, score)])
        taken.append((left, right, y, y))
    for one in sorted(found["students"], key=lambda one: -one["score"]):
        x, y = axes.transData.transform((one["MB"], one["score"]))
        wide, ups = 6.6 * len(one["name"]), (0, 9, -9, 16, -16, 24, -24, 32, -32, 42, -42)
        for up, side in itertools.product(ups, (1, -1)):
            ends = sorted((x + 8 * side, x + (8 + wide) * side))
            box = (*ends, y + up - 6, y + up + 6)
            if all(box[0] > o[1] or box[1] < o[0] or box[2] > o[3] or box[3] < o[2] for o in taken):
                break
        taken.append(box)
        axes.annotate(one["name"], (one["MB"], one["score"]), (8 * side, up), textcoords="offset points", va="center",
                      ha="left" if side > 0 else "right", size=11, color=colours[markers[one["kind"]][1]])  # fmt: skip
    axes.set_xticks([4, 5, 6, 8, 10, 14, 20], ["4", "5", "6", "8", "10", "14", "20"])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("MB of the encoder in int8", color=colours["text"])
    axes.set_title("Mean of NCBI-disease and STS-B", loc="left", color=colours["text"])


def _axes(figure: Figure, colours: Colours) -> Axes:
    axes = figure.add_axes((0.1, 0.16, 0.87, 0.74))
    axes.patch.set_visible(False)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(colours["muted"])
    axes.grid(axis="y", color=colours["grid"], lw=0.8)
    axes.tick_params(which="both", colors=colours["muted"], length=0)
    axes.set_axisbelow(True)
    return axes


FIGURES: dict[str, tuple[Callable[[Figure, Colours, dict[str, Any]], None], int, int]] = {
    "architecture": (architecture, 900, 430), "size": (size, 410, 330), "latency": (latency, 410, 330),
    "tokens": (tokens, 410, 330), "box": (box, 760, 330), "study": (sharing, 760, 430),
}  # fmt: skip


def draw(name: str, theme: str, shown: dict[str, Any]) -> str:
    """Return a figure as SVG, its words as text in the reader's own font."""
    paint, wide, high = FIGURES[name]
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 13})
        figure = Figure(figsize=(wide / 72, high / 72), dpi=72)
        figure.patch.set_visible(False)
        paint(figure, THEMES[theme], shown)
        file = io.StringIO()
        figure.savefig(
            file, format="svg", metadata={"Date": None, "Creator": None, "Description": digest(shown)}
        )
    svg = re.sub(r"'DejaVu Sans'[^;\"]*sans-serif", FONTS.replace('"', "'"), file.getvalue())
    return "\n".join(line.rstrip() for line in svg.splitlines()) + "\n"


def caption(shown: dict[str, Any]) -> str:
    """Return what stands under the two plots of the README."""
    peers = shown["peers"]
    mb = {name: f"{one['int8 MB']:.1f}" for name, one in peers.items()}
    ms = {name: f"{one[f'ms {LENGTH}']['best']:.1f}" for name, one in peers.items()}
    glue = {name: one["glue"] for name, one in peers.items()}
    ours, few, distil, tiny, mini = STUDENT, f"{STUDENT}@4", "distilbert", "tinybert-4l-312", "minilm-l6-h384"

    def times(what: str, against: str, student: str = STUDENT) -> str:
        one, other = peers[student][what]["best"], peers[distil][what][against]
        return f"{(one / other if 'tokens' in what else other / one):.2f}"

    one, short, many = f"ms {LENGTH}", f"ms {SHORT}", f"tokens/s {LENGTH}"
    return f"""
Quality is the GLUE average that the paper reports, of fp32 models. Sizes and times were measured here, on
{shown["machine"]}, each model in its fastest int8 of ONNX Runtime (`int8`, `int8-dynamic`), OpenVINO and our
[native engine](docs/deployment.md#2-run-it), which does not run MobileBERT, ALBERT or TinyBERT-4L. The weights were
random: we have not trained the 12 M student ([record](results/bench/table.md)). The paper has no row for MiniLM; its
shape with 6 layers, 384 wide, takes {mb[mini]} MB and {ms[mini]} ms in int8.

- **Smaller.** In int8 MiniALBERT-128 takes {mb[ours]} MB, MobileBERT {mb["mobilebert"]}, DistilBERT
  {mb[distil]} and BERT-base {mb["bert-base"]}. In the paper MiniALBERT-128 keeps
  {100 * glue[ours] / glue["bert-base"]:.0f} % of BERT-base's average ({glue[ours]:.2f} of {glue["bert-base"]:.2f}).
- **Against DistilBERT as most run it,** in ONNX Runtime with the arithmetic of its own quantiser
  (`int8-dynamic`, by our exporter), MiniALBERT-128 in its fastest engine is {times(short, "today")} times
  as fast for a text of {SHORT} tokens, {times(one, "today")} times for one of {LENGTH}, and
  {times(many, "today")} times for 32 of {LENGTH}, which DistilBERT takes in one batch. Against DistilBERT in
  PyTorch fp32 it is {times(one, "torch")} times as fast for {LENGTH} tokens, and
  {times(short, "torch")} times for {SHORT}.
- **Against DistilBERT at its best,** in the same engines as ours, six iterations are {times(short, "best")},
  {times(one, "best")} and {times(many, "best")} times as fast as its six layers. Four of the six iterations are
  {times(one, "best", few)} times as fast for {LENGTH} tokens.
- **The alternatives.** TinyBERT-4L is the fast one, with {ms[tiny]} ms for {LENGTH} tokens against our {ms[ours]}, and
  {mb[tiny]} MB; its average is {glue[ours] - glue[tiny]:.1f} points lower ({glue[tiny]:.2f} against {glue[ours]:.2f}).
  MobileBERT reaches {glue["mobilebert"]:.2f} in {ms["mobilebert"]} ms, with {mb["mobilebert"]} MB.

"""


def spent_caption(shown: dict[str, Any]) -> str:
    """Return what stands under the plot of tokens."""
    spent = shown["spent"]
    (seeds,) = {one["seeds"] for one in spent.values()}
    before, small, large = (f"{one['share']:.1f} %" for one in spent.values())
    tasks = ", ".join(load_suite("miniature").tasks[task].label for task in FOUR)
    return f"""
Share of the teacher's mean score over four tasks ({tasks}), measured here: {before} before the first step,
{small} after 2 M tokens, {large} after 20 M. Bars are standard deviations over {seeds} tuning seeds.

"""


def badge(label: str, value: str) -> str:
    """Return a badge, as wide as its words are long."""
    left, right = (round(6.6 * len(text) + 12) for text in (label, value))
    style = f'font-family="{FONTS.replace(chr(34), chr(39))}" font-size="11" fill="#fff" text-anchor="middle"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{left + right}" height="20" role="img">'
        f'<title>{label}: {value}</title><clipPath id="r"><rect width="{left + right}" height="20" rx="3"/></clipPath>'
        f'<g clip-path="url(#r)"><path fill="#444c56" d="M0 0h{left}v20H0z"/>'
        f'<path fill="#0969da" d="M{left} 0h{right}v20H{left}z"/></g>'
        f'<g {style}><text x="{left / 2}" y="14">{label}</text>'
        f'<text x="{left + right / 2}" y="14">{value}</text></g></svg>\n'
    )


def badges() -> dict[str, str]:
    """Return the badges by name, from what pyproject.toml says."""
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    pythons = [said.rpartition(" ")[2] for said in project["classifiers"] if ":: 3." in said]
    return {
        "version": badge("version", project["version"]),
        "python": badge("python", " | ".join(pythons)),
        "licence": badge("licence", project["license"]),
        "paper": badge("paper", "EACL 2023"),
    }


def files() -> dict[Path, str]:
    """Return every file that this script makes, but for the figures, with its text."""
    pages, shown = {page: page.read_text(encoding="utf-8") for page in (README, STUDY)}, numbers()
    for page, name, text in (
        (README, "figures", caption(shown)),
        (README, "tokens", spent_caption(shown)),
        (STUDY, "answer", study.answer()),
        (STUDY, "choices", study.table()),
    ):
        begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
        before, _, rest = pages[page].partition(begin)
        pages[page] = f"{before}{begin}{text}{end}{rest.partition(end)[2]}"
    return pages | {IMAGES / f"badge-{name}.svg": text for name, text in badges().items()}


def main() -> None:
    """Write the figures, the badges and the caption."""
    shown = numbers()
    IMAGES.mkdir(exist_ok=True)
    for name in FIGURES:
        for theme in THEMES:
            (IMAGES / f"{name}-{theme}.svg").write_text(draw(name, theme, shown), encoding="utf-8")
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
