"""Puts exported models into models/minialbert_models, each with a card, records and checksums, and checks their size.

    python benchmarks/pages/boxed_models.py NAME=EXPORTED ...    copy exported folders, then write what follows
    python benchmarks/pages/boxed_models.py                      write cards, list and checksums anew

Figures come from results/embeddings, results/boxed and results/decoding; a test holds the cards against these records.
"""

from __future__ import annotations

import csv
import hashlib
import json
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import jinja2

from minialbert.runs.packed import find_run_records
from minialbert.runs.records import load_record

BOX, RESULTS, README = Path("models"), Path("results"), Path("README.md")
HOME = BOX / "minialbert_models"
MOST_BYTES = 15_000_000
ENCODER, TAGGER, START = "minilm-5mb", "biomedical-ner-4mb", "english-4mb"
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
    START: "none yet: to be tuned on your labels, without a teacher",
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
        static = RESULTS / "embeddings" / "static" / f"{place}.json"
        beside = ours["reference"]
        mixed = "" if beside.get("mixed_share") is None else f"{beside['mixed_share']:.1%}"
        rows.append(
            (
                f"{title} ({ours['metric'].replace('_', ' ')})",
                f"{beside['metrics'][ours['metric']]:.3f}",
                f"{ours['score']:.3f}",
                f"{beside['share']:.1%}",
                mixed,
                f"{read(static)['score']:.3f}",
            )
        )
    held = read(RESULTS / "embeddings" / "static" / "stsb.json")["bytes"] / 1e6
    return table(
        (
            "",
            "teacher",
            ENCODER,
            "kept",
            "queries by it, documents by the teacher",
            f"model2vec, {held:.1f} MB",
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


def encoder_facts() -> dict[str, Any]:
    """Return what the sentence encoder's card shows."""
    folder = RESULTS / "boxed" / ENCODER
    first, run = (read(folder / f"{name}.json") for name in ("first-pass", "result"))
    packages = len((folder / "packages.tsv").read_text(encoding="utf-8").splitlines()) - 1  # its header
    return {
        "run": run,
        "first": first,
        "packages": packages,
        "scores": scores(),
        "latencies": latencies(),
        "failures": failures(),
    }


def tagger_facts() -> dict[str, Any]:
    """Return what the tagger's card shows."""
    tuned, int8 = (read(RESULTS / "boxed" / TAGGER / f"{name}.json") for name in ("result", "int8"))
    found = int8["metrics"][int8["split"]]["per_type"]
    rows = [
        (
            name,
            *(f"{100 * values[one]:.1f}" for one in ("precision", "recall", "f1")),
            f"{values['support']:,}",
        )
        for name, values in found.items()
    ]
    return {
        "tuned": tuned,
        "int8": int8,
        "decoding": read(RESULTS / "decoding" / "result.json")["models"][f"{TAGGER} as a model"]["f1"],
        "types": table(("type", "precision", "recall", "F1", "entities"), rows),
    }


def start_facts() -> dict[str, Any]:
    """Return what the card of the encoder to tune shows: its scores after tuning beside its teacher's."""
    folder, found = RESULTS / "boxed" / START, {}
    for file in find_run_records(folder):
        record = load_record(file)
        if record["kind"] == "finetune":
            data = record["recipe"]["task"]["data"]
            found.setdefault(data, []).append(record)
    with (RESULTS / "miniature" / "reach.csv").open(encoding="utf-8", newline="") as lines:
        reached = {row["row"]: row for row in csv.DictReader(lines)}
    rows = []
    for data, records in sorted(found.items()):
        figures = [record["metrics"][record["split"]] for record in records]
        metric = (
            "entity_f1_strict" if "entity_f1_strict" in figures[0] else records[0]["metric"]
        )  # as reached
        scores = [100 * one[metric] for one in figures]
        others = [f"{float(reached[row][data]):.1f}" for row in ("teacher", "undistilled")]
        rows.append(
            (f"{data} ({metric.replace('_', ' ')})", *others, f"{mean(scores):.1f}", str(len(scores)))
        )
    header = ("", "its teacher", "not distilled", START, "seeds")
    return {
        "run": read(folder / "distillation.json"),
        "trimmed": read(folder / "trim.json"),
        "parameters": records[0]["model"]["encoder_parameters"],
        "scores": table(header, rows),
        "ner": next(row for row in rows if row[0].startswith("NCBI")),
    }


CARDS = {
    ENCODER: ("card-encoder", encoder_facts),
    TAGGER: ("card-tagger", tagger_facts),
    START: ("card-start", start_facts),
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
    )  # noqa: S701 - Markdown


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
    }
    facts |= {"tagger": TAGGER, "tagger_size": size_of(TAGGER), **tagger_facts()}
    facts |= {"start": START, "start_size": size_of(START), "ner": start_facts()["ner"]}
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
