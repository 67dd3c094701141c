"""Whether exported models answer alike on other processors, emulated: x86 with AVX2 and without VNNI, and aarch64.

    apt-get install qemu-user
    benchmarks/quality/aarch64.sh ROOT
    python benchmarks/quality/emulated.py WORK --aarch64 ROOT --model FOLDER TEXTS --model … --output results/emulation

Each exported FOLDER answers its TEXTS (one a line, or .jsonl with a `text`) by the runtime alone, on this processor and
on the emulated ones; an encoder gives its outputs. Answers and outputs are compared. What WORK has of an interrupted
call is kept. Emulation says nothing about speed.

results/emulation has the first 16 texts (--texts 16) of BC5CDR's test, or of STS-B's dev (english-4mb), for the ready
models and for minilm-5mb exported again without --quantize; and of SST-2's dev for a classifier: `minialbert finetune
--model english-4mb --task classification --set tuning.epochs=2` on the first 2,000 rows of SST-2's train.tsv, exported
with --quantize int4 --tolerance 1. Its biomedical-ner-2mb is the one before the present: of the same shape and size,
but it had learnt BC5CDR alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from minialbert_runtime import Model, session
from numpy.typing import NDArray
from tokenizers import Tokenizer

HERE, USUAL, OURS = "this processor", "ONNX Runtime's sums", "minialbert-runtime"
X86 = {  # without what QEMU does not know
    "x86 with AVX2, without VNNI (Haswell)": "Haswell,-pcid,-x2apic,-tsc-deadline,-hle,-invpcid,-rtm"
}
AARCH64 = {  # one for each way in which ONNX Runtime multiplies integers
    "aarch64 (Cortex-A72)": "cortex-a72",
    "aarch64 with dot products (Neoverse N1)": "neoverse-n1",
    "aarch64 with matrix products": "max,sve=off",
    "aarch64 with SVE2 and matrix products": "max,sve128=on,sme=off",
}
PACKAGES = ("numpy", "onnxruntime", "tokenizers")
Arrays = list[NDArray[np.float32]]


def answers(folder: str, texts: list[str]) -> tuple[list[Any], Arrays, bool]:
    """Return answers without scores, outputs, and whether a text has the same bits alone and beside others."""
    contract = json.loads((Path(folder) / "export.json").read_text(encoding="utf-8"))
    if contract["head"] in ("features", "masked-lm") and "vectors" not in contract:
        return outputs(folder, texts)
    model, seen = Model(folder, threads=1, engine="onnx"), []  # the compiled one is for one kind of processor
    run = model._logits
    model._logits = lambda rows: seen.append(run(rows)) or seen[-1]  # type: ignore[method-assign]
    found = [model(text) for text in texts]
    alone = [np.concatenate([one.reshape(-1) for one in logits]) for logits in seen]
    seen.clear()
    list(model.predict(texts))
    together = np.concatenate([one.reshape(-1) for logits in seen for one in logits])
    plain = [
        [(one["start"], one["end"], one["label"]) for one in result["entities"]]
        if "entities" in result
        else result.get("label")
        for result in found
    ]
    return plain, alone, bool(np.array_equal(np.concatenate(alone), together))


def outputs(folder: str, texts: list[str]) -> tuple[list[Any], Arrays, bool]:
    """Return the same of what gives neither answers nor vectors: no answers, the graph's outputs, and their bits."""
    tokenizer = Tokenizer.from_file(str(Path(folder) / "tokenizer.json"))
    graph = session.open_session(Path(folder) / "model.onnx", 1)

    def run(rows: list[list[int]]) -> NDArray[np.float32]:
        ids = np.array(rows, np.int64)
        columns = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "token_type_ids": np.zeros_like(ids),
        }
        return graph.run(None, {one.name: columns[one.name] for one in graph.get_inputs()})[0]

    tokens = [tokenizer.encode(text).ids[:128] for text in texts]
    alone = [run([ids])[0].reshape(-1) for ids in tokens]
    beside = [run([ids[::-1], ids, ids])[1].reshape(-1) for ids in tokens]
    same = all(np.array_equal(*pair) for pair in zip(alone, beside, strict=True))
    return [None] * len(texts), alone, same


def work(given: Path) -> None:
    """Answer what a file asks for, and write beside it what was found."""
    from numpy._core._multiarray_umath import __cpu_features__

    asked = json.loads(given.read_text(encoding="utf-8"))
    cuts = session.cuts_sums()
    if not asked["exact"]:
        session.cuts_sums = lambda: False
    found = {folder: answers(folder, texts) for folder, texts in asked["models"].items()}
    for number, (_, logits, _) in enumerate(found.values()):
        np.savez(given.with_name(f"{given.stem}-{number}.npz"), *logits)
    said = {
        "cuts_sums": cuts,
        "instructions": [name for name, has in __cpu_features__.items() if has],
        "models": {folder: {"answers": one[0], "same_bits": one[2]} for folder, one in found.items()},
    }
    given.with_suffix(".found.json").write_text(json.dumps(said), encoding="utf-8")


def command_on_aarch64(root: Path, cpu: str) -> list[str]:
    """Return what runs this file on an emulated processor with the Python of a folder that aarch64.sh made."""
    paths = os.pathsep.join(map(str, (root / "site", Path(session.__file__).parents[1])))
    emulator = ["qemu-aarch64", "-cpu", cpu, "-L", str(root), str(root / "usr/bin/python3.11")]
    return ["env", f"PYTHONPATH={paths}", *emulator, __file__]


def run(command: list[str]) -> None:
    """Run a command; an error ends the program."""
    subprocess.run(command, check=True)


def lines(path: Path, count: int) -> list[str]:
    """Return the first texts of a file."""
    found = [line for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return [json.loads(line)["text"] if path.suffix == ".jsonl" else line for line in found[:count]]


def compared(logits: Arrays, usual: Arrays) -> dict[str, float]:
    """Return the lowest and the median cosine of texts, and the largest difference as a share of the largest logit."""
    pairs = [
        (one.astype(np.float64), other.astype(np.float64)) for one, other in zip(logits, usual, strict=True)
    ]
    cosines = [float(one @ other / (np.linalg.norm(one) * np.linalg.norm(other))) for one, other in pairs]
    difference = max(np.abs(one - other).max() for one, other in pairs) / max(
        np.abs(one).max() for one in usual
    )
    return {
        "lowest_cosine": min(cosines),
        "median_cosine": float(np.median(cosines)),
        "largest_difference": float(difference),
    }


def main() -> None:
    """Measure, write the record and its table, and print the table."""
    from minialbert.runs.files import write_atomically
    from minialbert.runs.records import write_result

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("work", type=Path, help="folder for what each processor answers")
    parser.add_argument("--model", nargs=2, action="append", required=True, metavar=("FOLDER", "TEXTS"))
    parser.add_argument("--texts", type=int, default=60, help="of each file, the first ones")
    parser.add_argument("--aarch64", type=Path, help="folder that aarch64.sh made (default: x86 alone)")
    parser.add_argument("--output", type=Path, required=True, help="folder of the record")
    given = parser.parse_args()
    os.environ |= {"PYTHONPATH": os.pathsep.join(sys.path[1:]), "OMP_NUM_THREADS": "1"}
    models = {folder: lines(Path(texts), given.texts) for folder, texts in given.model}
    work_folder = given.work.absolute()
    native = [sys.executable, __file__]
    ways: dict[tuple[str, str], tuple[list[str], bool]] = {(HERE, OURS): (native, True)}
    for name, cpu in X86.items():
        command = ["qemu-x86_64", "-cpu", cpu, *native]
        ways |= {(name, USUAL): (command, False), (name, OURS): (command, True)}
    for name, cpu in AARCH64.items() if given.aarch64 else ():
        ways[name, OURS] = command_on_aarch64(given.aarch64.absolute(), cpu), True
    processors: dict[str, dict[str, Any]] = {}
    rows: list[dict[str, Any]] = []
    usual: dict[str, tuple[list[Any], Arrays]] = {}
    for number, ((processor, way), (command, exact)) in enumerate(ways.items()):
        asked = work_folder / f"way-{number}.json"
        question, answer = json.dumps({"exact": exact, "models": models}), asked.with_suffix(".found.json")
        if not answer.is_file() or asked.read_text(encoding="utf-8") != question:
            answer.unlink(missing_ok=True)
            asked.write_text(question, encoding="utf-8")
            run([*command, "--work", str(asked)])
        said = json.loads(answer.read_text(encoding="utf-8"))
        processors[processor] = {name: said[name] for name in ("cuts_sums", "instructions")}
        for index, (folder, one) in enumerate(said["models"].items()):
            with np.load(work_folder / f"way-{number}-{index}.npz") as stored:
                logits = [stored[name] for name in stored.files]
            answered, wanted = usual.setdefault(folder, (one["answers"], logits))
            pairs = list(zip(one["answers"], answered, strict=True))
            labelled = any(other is not None for _, other in pairs)  # an encoder gives vectors alone
            same = sum(found == other for found, other in pairs) if labelled else None
            contract = json.loads((Path(folder) / "export.json").read_text(encoding="utf-8"))
            rows.append({
                "processor": processor, "way": way, "model": Path(folder).name, "precision": contract["precision"],
                "texts": len(answered), "same_answers": same, **compared(logits, wanted),
                "same_bits_in_company": one["same_bits"],
            })  # fmt: skip
    emulator = subprocess.run(
        [str(shutil.which("qemu-x86_64")), "--version"], capture_output=True, text=True, check=True
    )
    record = {
        "kind": "emulation", "rows": rows, "processors": processors,
        "emulator": emulator.stdout.splitlines()[0], "versions": {name: version(name) for name in PACKAGES},
    }  # fmt: skip
    given.output.mkdir(parents=True, exist_ok=True)
    write_result(given.output / "result.json", record)
    written = table(rows, processors)
    write_atomically(given.output / "table.md", written)
    print(written)


def table(rows: list[dict[str, Any]], processors: dict[str, dict[str, Any]]) -> str:
    """Return the figures as Markdown."""
    written = [
        "| processor | sums | model | same answers | lowest cosine | median cosine "
        "| largest difference, % | same bits beside other texts |",
        "|---|---|---|---:|---:|---:|---:|---|",
    ]
    for row in rows:
        cuts = processors[row["processor"]]["cuts_sums"]
        sums = "whole" if not cuts else "cut" if row["way"] == USUAL else "whole, by uint8 weights"
        figures = (
            f"{row['lowest_cosine']:.5f} | {row['median_cosine']:.5f} | {100 * row['largest_difference']:.3f}"
        )
        same = "-" if row["same_answers"] is None else f"{row['same_answers']} of {row['texts']}"
        model = f"{row['model']} ({row['precision']}) | {same}"
        alike = "yes" if row["same_bits_in_company"] else "no"
        written.append(f"| {row['processor']} | {sums} | {model} | {figures} | {alike} |")
    return (
        "\n".join(written)
        + "\n\nAgainst this processor, by text; differences as a share of the largest output.\n"
    )


if __name__ == "__main__":
    work(Path(sys.argv[2])) if sys.argv[1:2] == ["--work"] else main()
