r"""Whether a page answers as Python does: a tagger exported with `--to web`, in Node and Chromium beside the runtime.

    python benchmarks/speed/web_answers.py --model models/minialbert_models/biomedical-ner-2mb \
      --iob NER/BC5CDR-disease/test.tsv --texts scripts.jsonl --output results/web-answers

Texts are the first 500 sentences of a file with a token and its tag in each line, and those of a file of lines with a
`text`. For results/web-answers these are the texts of all scripts of the tests (`PYTHONPATH=tests/deploy python -c
"import json, test_web; [print(json.dumps({'text': one})) for one in test_web.texts(500)]" >scripts.jsonl`). The model
is exported in int4, int8 and fp32. What each place answers is compared with ONNX Runtime in Python on the same graph.
For scale, the last row of a graph is what the fp32 graph answers.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import tempfile
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from distillation_step import machine
from minialbert_runtime import Model
from web_page import new_browser, serving

from minialbert import export
from minialbert.deploy.web import PACKAGES
from minialbert.runs.files import write_atomically
from minialbert.runs.records import write_result

COUNT, AT_ONCE = 500, 50  # texts, and those in a call of the browser
EXACT = "fp32, in Python"
NEAR = 1e-3  # of scores
FIND = """
const found = [];
for (const text of texts) found.push((await model.predict(text)).entities);
"""
Found = list[list[dict[str, Any]]]


def read_texts(iob: Path, others: Path) -> dict[str, list[str]]:
    """Return texts by kind."""
    sentences = read_sentences(iob)
    lines = others.read_text(encoding="utf-8").splitlines()
    scripts = [json.loads(line)["text"] for line in lines]
    return {"sentences": sentences[:COUNT], "all scripts": scripts[:COUNT]}


def read_sentences(file: Path) -> list[str]:
    """Return the sentences of a file of tokens and tags, with a space between tokens."""
    blocks = file.read_text(encoding="utf-8").strip().split("\n\n")
    return [" ".join(line.split("\t")[0] for line in block.splitlines()) for block in blocks]


def export_all(model: Path, modules: Path, folder: Path) -> dict[str, Path]:
    """Write a model's folders for the web, by precision; in its own it is taken as it is."""
    own = json.loads((model / "export.json").read_text(encoding="utf-8"))["precision"]
    export(model, folder / "exported", opset=22, progress=False)
    sources: dict[str, tuple[Path, dict[str, Any]]] = {
        "fp32": (folder / "exported", {}),
        "int8": (model, {"quantize": "int8"}),
        "int4": (model, {"quantize": "int4", "tolerance": 1.0}),
    }
    for name, (source, how) in (sources | {own: (model, {})}).items():
        export(source, folder / name, to="web", vendor=modules, progress=False, **how)
    return {name: folder / name for name in ("int4", "int8", "fp32")}


def in_node(site: Path, texts: list[str]) -> Found:
    """Return the entities that Node finds."""
    given = 'import { readFileSync } from "node:fs"; const texts = JSON.parse(readFileSync(0, "utf8"));'
    head = f'import {{ load }} from "{(site / "minialbert.js").as_uri()}"; {given}'
    program = f"{head} const model = await load(); {FIND}"
    command = ["node", "--input-type=module", "--eval", f"{program} console.log(JSON.stringify(found));"]
    given = json.dumps(texts)
    return json.loads(
        subprocess.run(command, input=given, check=True, capture_output=True, encoding="utf-8").stdout
    )


def in_browser(site: Path, texts: list[str]) -> Found:
    """Return the entities that Chromium finds."""
    script = f"""
    const [texts, done] = arguments;
    (async () => {{
      globalThis.model ??= await (await import(location.origin + "/minialbert.js")).load();
      {FIND}
      return JSON.stringify(found);
    }})().then(done, (error) => done(JSON.stringify(String(error))));
    """
    found: Found = []
    with serving(site, "") as (address, _), new_browser() as browser:
        browser.get(address)
        for at in range(0, len(texts), AT_ONCE):  # the driver waits for two minutes
            found += json.loads(browser.execute_async_script(script, texts[at : at + AT_ONCE]))
    return found


def in_python(site: Path, texts: list[str], engine: str) -> list[dict[str, Any]]:
    """Return the runtime's results with the words and their logits; offsets of entities are those of JavaScript."""
    model = Model(site, threads=1, engine=engine)
    model.keeps_logits = True
    results = list(model.predict(texts))
    for result in results:
        for entity in result["entities"]:
            for side in ("start", "end"):
                entity[side] = len(result["text"][: entity[side]].encode("utf-16-le")) // 2
    return results


def compared(found: Found, usual: list[dict[str, Any]]) -> dict[str, Any]:
    """Return how many texts have the same entities, how far scores are apart in those, and how sure the others were.

    `surest` is the highest lead of a tag over the next, as probabilities, at which an answer changed: of the words of
    entities that only one side has, the least lead in a text, and of that the highest over texts.
    """
    differences, leads = [], []
    for mine, result in zip(found, usual, strict=True):
        one, other = (
            {(it["start"], it["end"], it["label"]): it["score"] for it in its}
            for its in (mine, result["entities"])
        )
        if one.keys() == other.keys():
            differences.append(max((abs(one[key] - other[key]) for key in one), default=0.0))
        else:
            leads.append(least_lead(result, one.keys() ^ other.keys()))
    return {
        "texts": len(usual), "entities": sum(len(result["entities"]) for result in usual), "same": len(differences),
        "near": sum(one <= NEAR for one in differences), "largest_difference": max(differences, default=0.0),
        "surest": max(leads, default=None),
    }  # fmt: skip


def least_lead(result: dict[str, Any], entities: set[tuple[int, int, str]]) -> float:
    """Return the least lead of a tag over the next of the words in these entities."""
    text, leads = result["text"], []
    powers = np.exp(result["logits"] - result["logits"].max(axis=1, keepdims=True))
    best = np.sort(powers / powers.sum(axis=1, keepdims=True), axis=1)
    for (start, end), lead in zip(result["words"], best[:, -1] - best[:, -2], strict=True):
        first, last = (len(text[:at].encode("utf-16-le")) // 2 for at in (start, end))
        if any(first < it[1] and it[0] < last for it in entities):
            leads.append(float(lead))
    return min(leads)


def measure(sites: dict[str, Path], texts: dict[str, list[str]]) -> list[dict[str, Any]]:
    """Return a row for each precision, kind of text and place."""
    rows = []
    for kind, some in texts.items():
        exact = [one["entities"] for one in in_python(sites["fp32"], some, "onnx")]
        for precision, site in sites.items():
            usual = in_python(site, some, "onnx")
            node = in_node(site, some)
            places = {"Node": node}
            if precision != "fp32":
                places["Chromium"] = in_browser(site, some)
                if find_spec("minialbert_native"):
                    native = in_python(site, some, "native")
                    places["the compiled engine, in Python"] = [one["entities"] for one in native]
                places[EXACT] = exact
            for place, found in places.items():
                row = {"texts_of": kind, "precision": precision, "place": place, **compared(found, usual)}
                rows.append(row | ({"as_node": found == node} if place == "Chromium" else {}))
    return rows


def table(record: dict[str, Any]) -> str:
    """Return the record as Markdown."""
    lines = [
        "| 500 texts | graph | where | same entities | within 0.001 too | largest difference | surest change |",
        "|---|---|---|---:|---:|---:|---:|",
    ]
    for row in record["rows"]:
        surest = "-" if row["surest"] is None else f"{row['surest']:.3f}"
        lines.append(
            f"| {row['texts_of']} | {row['precision']} | {row['place']} | {row['same']} | {row['near']} "
            f"| {row['largest_difference']:.1g} | {surest} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure, write the record and its table, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="folder of an exported tagger")
    parser.add_argument("--iob", type=Path, required=True, help="file with a token and its tag in each line")
    parser.add_argument("--texts", type=Path, required=True, help=".jsonl, with a `text` in each line")
    parser.add_argument("--vendor", type=Path, default=Path("node_modules"))
    parser.add_argument("--output", type=Path, required=True, help="folder of the record")
    given = parser.parse_args()
    texts = read_texts(given.iob, given.texts)
    with tempfile.TemporaryDirectory() as scratch:
        rows = measure(export_all(given.model, given.vendor, Path(scratch)), texts)
    browser = subprocess.run(["chromium", "--version"], capture_output=True, text=True, check=True).stdout
    record = {
        "kind": "web-answers", "model": given.model.name, "rows": rows, "packages": PACKAGES,
        "browser": browser.strip(), "onnxruntime": version("onnxruntime"), "machine": machine(),
    }  # fmt: skip
    given.output.mkdir(parents=True, exist_ok=True)
    write_result(given.output / "result.json", record)
    write_atomically(given.output / "table.md", table(record))
    print(table(record))


if __name__ == "__main__":
    main()
