"""Puts exported models into models/minialbert_models, each with a card, records and checksums, and checks their size.

    python benchmarks/pages/boxed_models.py NAME=EXPORTED ...    copy exported folders, then write what follows
    python benchmarks/pages/boxed_models.py                      write cards, list and checksums anew

Figures come from results/embeddings and results/boxed; a test holds the cards against these records.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import jinja2
from transformers import AutoConfig, BertConfig

from minialbert.method.costs import forward_flops_per_token
from minialbert.runs.packed import find_run_records
from minialbert.runs.records import load_record

BOX, RESULTS, README = Path("models"), Path("results"), Path("README.md")
HOME = BOX / "minialbert_models"
MOST_BYTES = 15_000_000
ENCODER, TAGGER, START, MEDICAL = "minilm-5mb", "biomedical-ner-2mb", "english-4mb", "biomedical-2mb"
LEFT_OUT = ("special_tokens_map.json", "vocab.txt")  # which the runtime does not read
SETS = {
    "stsb": "STS-B dev: likeness of two sentences",
    "python": "docstrings of Python: first line to the rest",
    "qnli": "QNLI dev: question to sentence",
    "medical": "medical abstracts: title to text",
    "packages": "docstrings of Python: which package",
    "books": "paragraphs of textbooks: which book",
}
TASKS = {
    ENCODER: "vectors of sentences",
    TAGGER: "diseases and chemicals in biomedical text",
    START: "masked words; to be tuned on your labels, without a teacher",
    MEDICAL: "the same, from biomedical text",
}
# What each masked LM is asked on its card, and its answers; a test asks again.
MASKED = {
    START: ("Water boils at a high [MASK].", ["temperature", "level", "price"]),
    MEDICAL: ("Mutations in this [MASK] cause cystic fibrosis.", ["gene", "mutation", "disease"]),
}


def read(file: Path) -> Any:
    """Return a record."""
    return json.loads(file.read_text(encoding="utf-8"))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table; the first column is text, the others are numbers."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, rule, *rows))


def size_of(name: str) -> str:
    """Return the size of a model's graph."""
    return f"{(HOME / name / 'model.onnx').stat().st_size / 1e6:.1f} MB"


def scores() -> str:
    """Return the table of the sentence encoder: its teacher, the share that is kept, and the static baseline."""
    rows = []
    for place, title in SETS.items():
        ours = read(RESULTS / "embeddings" / ENCODER / f"{place}.json")
        statics = [RESULTS / "embeddings" / name / f"{place}.json" for name in ("static", "wordllama")]
        beside = ours["reference"]
        mixed = "" if beside.get("mixed_share") is None else f"{beside['mixed_share']:.1%}"
        rows.append(
            (
                f"{title} ({ours['metric'].replace('_', ' ')})",
                f"{beside['metrics'][ours['metric']]:.3f}",
                f"{ours['score']:.3f}",
                f"{beside['share']:.1%}",
                mixed,
                *(f"{read(static)['score']:.3f}" for static in statics),
            )
        )
    held, larger = (
        read(RESULTS / "embeddings" / name / "stsb.json")["bytes"] / 1e6 for name in ("static", "wordllama")
    )
    return table(
        (
            "",
            "teacher",
            ENCODER,
            "kept",
            "queries by it, documents by the teacher",
            f"model2vec, {held:.1f} MB",
            f"wordllama, {larger:.1f} MB",
        ),
        rows,
    )


def latencies() -> str:
    """Return the table of milliseconds."""
    found: Mapping[str, Mapping[str, float]] = read(RESULTS / "embeddings" / "latency.json")["milliseconds"]
    return table(
        ("ms for one text, 2 threads", "16 tokens", "128 tokens"),
        [(name, *(f"{values[length]:.2f}" for length in ("16", "128"))) for name, values in found.items()],
    )


def failures(most: int = 3) -> str:
    """Return where the sentence encoder is furthest from its teacher."""
    lines = []
    for place in ("stsb", "python", "qnli"):
        for one in read(RESULTS / "embeddings" / ENCODER / f"{place}.json")["reference"]["furthest"][:most]:
            lines.append(
                f"- “{one['first']}” and “{one['second']}”: people gave {one['gold']:g} of 5; it places them "
                f"above {one['place']:.0%} of all pairs, its teacher above {one['place_of_reference']:.0%}."
                if "gold" in one
                else f"- “{one['query']}”: the right text comes at rank {one['rank']}, by the teacher at rank "
                f"{one['rank_of_reference']}."
            )
    return "\n".join(lines)


def products() -> tuple[float, float]:
    """Return how many million multiplications a token of 16 takes in the sentence encoder, and in its teacher."""
    student, run = (
        AutoConfig.from_pretrained(HOME / ENCODER),
        read(RESULTS / "boxed" / ENCODER / "result.json"),
    )
    teacher = BertConfig(
        hidden_size=student.hidden_size,
        intermediate_size=4 * student.hidden_size,
        num_hidden_layers=max(run["layer_map"]),
    )
    ours, its = (forward_flops_per_token(config, 16) / 2e6 for config in (student, teacher))
    return ours, its


def faster() -> dict[str, float]:
    """Return how many times as fast as its teacher the sentence encoder is for 16 tokens, and can be by products."""
    times = read(RESULTS / "embeddings" / "latency.json")["milliseconds"]
    own, its = (times[f"{model}, native"]["16"] for model in (ENCODER, "teacher"))
    common = min(times[f"teacher, {engine}"]["16"] for engine in ("ONNX Runtime", "OpenVINO"))
    ours, teachers = products()
    return {"common_ms": common, "common": common / own, "native": its / own, "bound": teachers / ours}


def encoder_facts() -> dict[str, Any]:
    """Return what the sentence encoder's card shows."""
    folder = RESULTS / "boxed" / ENCODER
    passes = [read(folder / f"{name}.json") for name in ("first-pass", "second-pass", "third-pass", "result")]
    packages = len((folder / "packages.tsv").read_text(encoding="utf-8").splitlines()) - 1  # its header
    return {
        "run": passes[-1],
        "passes": passes,
        "third": read(folder / "third-pass-docstrings.json"),
        "trimmed": read(folder / "trim.json"),
        "packages": packages,
        "scores": scores(),
        "latencies": latencies(),
        "failures": failures(),
        "products": products(),
        "faster": faster(),
    }


def tagger_facts() -> dict[str, Any]:
    """Return what the tagger's card shows."""
    tuned, teacher, int8, int4, alone, elsewhere = (
        read(RESULTS / "boxed" / TAGGER / f"{name}.json")
        for name in ("result", "teacher", "int8", "int4", "alone", "ncbi-disease")
    )
    rows = [
        (
            f"{where}, {kind}",
            *(f"{100 * found[one]:.1f}" for one in ("precision", "recall", "f1")),
            f"{found['support']:,}",
        )
        for where, record in (("BC5CDR", int4), ("NCBI-disease", elsewhere))
        for kind, found in record["metrics"][record["split"]]["per_type"].items()
        if found["support"]
    ]
    return {
        "tuned": tuned,
        "teacher": teacher,
        "ncbi": elsewhere["metrics"][elsewhere["split"]]["per_type"]["Disease"],
        "int8": int8,
        "int4": int4,
        "alone": alone,
        "trimmed": read(RESULTS / "boxed" / TAGGER / "trim.json"),
        "tokens": read(HOME / TAGGER / "config.json")["vocab_size"],
        "types": table(("test set and type", "precision", "recall", "F1", "entities"), rows),
    }


def scores_of(records: Iterable[Mapping[str, Any]]) -> dict[str, tuple[str, list[float]]]:
    """Return, for each data set that models were tuned on, the metric and each seed's score in per cent."""
    found: dict[str, tuple[str, list[float]]] = {}
    for record in records:
        figures = record["metrics"][record["split"]]
        metric = "entity_f1_strict" if "entity_f1_strict" in figures else record["metric"]
        found.setdefault(record["recipe"]["task"]["data"], (metric, []))[1].append(100 * figures[metric])
    return found


def tuned_from(folder: Path) -> list[Any]:
    """Return the records of tuned models below a folder."""
    return [record for record in map(load_record, find_run_records(folder)) if record["kind"] == "finetune"]


def start_facts(name: str = START) -> dict[str, Any]:
    """Return what the card of an encoder to tune shows: its scores after tuning beside its teacher's."""
    folder = RESULTS / "boxed" / name
    records = tuned_from(folder)
    others: dict[str, dict[str, float]] = {}
    if name == START:
        with (RESULTS / "miniature" / "reach.csv").open(encoding="utf-8", newline="") as lines:
            reached = {row["row"]: row for row in csv.DictReader(lines)}
        for heading, row in (("its teacher", "teacher"), ("not distilled", "undistilled")):
            others[heading] = {data: float(reached[row][data]) for data in scores_of(records)}
    else:
        teachers = [read(file) for file in (RESULTS / "without-gold").glob("*/teacher/tuning/result.json")]
        for heading, tuned in (
            ("its teacher (one seed)", teachers),
            (START, tuned_from(RESULTS / "boxed" / START)),
        ):
            others[heading] = {data: mean(scores) for data, (_, scores) in scores_of(tuned).items()}
    rows = [
        (
            f"{data} ({metric.replace('_', ' ')})",
            *(f"{known[data]:.1f}" for known in others.values()),
            f"{mean(scores):.1f}",
            str(len(scores)),
        )
        for data, (metric, scores) in sorted(scores_of(records).items())
    ]
    return {
        "medical": name == MEDICAL,
        "precision": read(HOME / name / "export.json")["precision"],
        "run": read(folder / "distillation.json"),
        "trimmed": read(folder / "trim.json"),
        "masked": read(folder / "masked-words.json"),
        "sentence": MASKED[name][0],
        "guesses": MASKED[name][1],
        "parameters": records[0]["model"]["encoder_parameters"],
        "scores": table(("", *others, name, "seeds"), rows),
        "ner": next(row for row in rows if row[0].startswith("NCBI")),
    }


CARDS = {
    ENCODER: ("card-encoder", encoder_facts),
    TAGGER: ("card-tagger", tagger_facts),
    START: ("card-start", start_facts),
    MEDICAL: ("card-start", partial(start_facts, MEDICAL)),
}


def card(name: str) -> str:
    """Return a model's card."""
    template, facts = CARDS[name]
    return filled(template, name=name, size=size_of(name), **facts())


def filled(template: str, **values: object) -> str:
    """Return one of the templates beside this file, filled."""
    text = Path(__file__).with_name(f"{template}.md.j2").read_text(encoding="utf-8")
    return (
        jinja2.Environment(undefined=jinja2.StrictUndefined, keep_trailing_newline=True)
        .from_string(text)
        .render(values)
    )


def overview() -> str:
    """Return the README of the distribution."""
    rows = [(f"[{name}](minialbert_models/{name}/README.md)", size_of(name), TASKS[name]) for name in CARDS]
    return filled("card-list", models=table(("name", "size", "task"), rows), first=ENCODER)


def summary() -> str:
    """Return what the README of the repository says of the models."""
    records = [read(RESULTS / "embeddings" / ENCODER / f"{place}.json") for place in SETS]
    kept = [one["reference"]["share"] for one in records]
    times = read(RESULTS / "embeddings" / "latency.json")["milliseconds"]
    facts = {
        "stsb": records[0],
        "least": min(kept[1:]),
        "most": max(kept[1:]),
        "others": len(kept) - 1,
        "times": times,
        "faster": faster(),
    }
    facts |= {"tagger": TAGGER, "tagger_size": size_of(TAGGER), **tagger_facts()}
    for name in (START, MEDICAL):
        facts[name.partition("-")[0]] = {"name": name, "size": size_of(name), "ner": start_facts(name)["ner"]}
    return filled("card-summary", name=ENCODER, size=size_of(ENCODER), **facts)


def main() -> None:
    """Copy what is named, then write cards, list and checksums."""
    for named in sys.argv[1:]:
        name, _, folder = named.partition("=")
        shutil.rmtree(HOME / name, ignore_errors=True)
        shutil.copytree(folder, HOME / name, ignore=shutil.ignore_patterns(*LEFT_OUT))
    for name in CARDS:
        (HOME / name / "README.md").write_text(card(name), encoding="utf-8")
    (BOX / "README.md").write_text(overview(), encoding="utf-8")
    start, end = "<!-- box:begin -->", "<!-- box:end -->"
    before, after = README.read_text(encoding="utf-8").split(start)
    README.write_text(f"{before}{start}\n{summary()}{end}{after.split(end)[1]}", encoding="utf-8")
    files = sorted(file for name in CARDS for file in (HOME / name).rglob("*") if file.is_file())
    sums = (
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(HOME).as_posix()}\n"
        for file in files
    )
    (HOME / "SHA256SUMS").write_text("".join(sums), encoding="utf-8")
    total = sum(file.stat().st_size for file in files)
    sys.stdout.write(f"{len(CARDS)} models, {total / 1e6:.1f} MB\n")
    assert total <= MOST_BYTES, f"{total:,} bytes, and {MOST_BYTES:,} are the limit"


if __name__ == "__main__":
    main()
