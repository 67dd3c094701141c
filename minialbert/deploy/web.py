"""A folder that answers texts in a browser or in Node: an exported model with a page, and what JavaScript must know.

What a character is (a letter, a mark, nothing) differs between Python, the tokenizer and JavaScript, and between
versions of Unicode. So the folder holds tables of all characters, read off the Python side.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import shutil
import tempfile
import unicodedata
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from itertools import groupby, pairwise
from operator import itemgetter
from pathlib import Path
from typing import Any

from minialbert_runtime.answers import MAX_CHARACTERS
from minialbert_runtime.folder import EXPORT_FILE, MODEL_FILE, TOKENIZER_FILE, is_exported
from minialbert_runtime.model import Model
from minialbert_runtime.questions import QUESTIONS
from minialbert_runtime.words import character_kind
from tokenizers import Tokenizer, normalizers, pre_tokenizers

from minialbert.deploy.onnx.export import export_onnx
from minialbert.errors import UserError
from minialbert.method.graph_weights import has_type_int4
from minialbert.runs.directory import RunDirectory
from minialbert.runs.files import check_apart, check_folder, sha256_of, whole_folder, write_json, writing
from minialbert.runs.records import load_record
from minialbert.tasks.models import TASK_FILE

PACKAGES = ("onnxruntime-web@1.22.0", "@huggingface/tokenizers@0.2.0")
INSTALL = f"npm install --no-save --ignore-scripts {' '.join(PACKAGES)}"
# Names here, and places in node_modules. Servers know the type of .js, not all know that of .mjs.
_VENDOR = {
    "ort.js": "onnxruntime-web/dist/ort.wasm.min.mjs",
    "ort-wasm.js": "onnxruntime-web/dist/ort-wasm-simd-threaded.mjs",
    "ort-wasm.wasm": "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm",
    "tokenizers.LICENSE": "@huggingface/tokenizers/LICENSE",
    "tokenizers.js": "@huggingface/tokenizers/dist/tokenizers.min.mjs",
}
_SHA256 = {
    "ort.js": "6ef726f355b791129f7ddf3f62e7877a16b9b777abe87004b8ab306e6b9cf265",
    "ort-wasm.js": "30dd851d9c00622940500f71ddd2ff8820c5cb65270816080175b958705385a8",
    "ort-wasm.wasm": "71aef04959c5c1b6de461b6538e2058e306610034a85aad2742d0c7fd4533fe4",
    "tokenizers.LICENSE": "c71d239df91726fc519c6eb72d318ec65820627232b2f796219e87dcf35d0ab4",
    "tokenizers.js": "258e46332101335ce8d95aed7745b19ac3b46d37f3e159a89cf894c2ea9b1d3a",
}
_ASSETS = Path(__file__).parent / "assets"
_SERVICE_WORKER = "service-worker.js"
FACTS_FILE = "model.json"
_MOST_OPSET = 22  # of the operators of that ONNX Runtime
# What is not among them (but halves of surrogate pairs) is not assigned, or private, as the last one before it is.
_CODES = (*range(0xD800), *range(0xE000, 0x34001), 0x40000, *range(0xE0000, 0xE1001), 0xF0000)
_CHARACTERS = "".join(map(chr, _CODES))
_APART = "\u2603"  # a character that no step changes or joins to another


def export_to_web(
    model: str,
    output: str | Path,
    *,
    vendor: str | Path | None = None,
    overwrite: bool = False,
    **options: Any,
) -> dict[str, Any]:
    """Write a model as a folder for any static web server, which works without a network, and return its record.

    The folder is that of an ONNX export, in int8 unless `options` of `export_onnx` say otherwise, with a page,
    an ES module, a service worker, and two packages of npm's, whose files `vendor` (`node_modules`) holds. A model
    that was exported already is taken as it is, or with `options` exported again. Raises UserError if a file of
    `vendor` is missing or another than the pinned one, the model labels no text, or its tokenizer is of a kind that
    JavaScript cannot repeat.
    """
    packages = _checked_packages(Path(vendor or "node_modules").expanduser())
    check_apart(Path(output), [model])
    check_folder(Path(output), "export", overwrite=overwrite, marker=EXPORT_FILE)
    source = Path(model) if is_exported(model) and not options else None
    if source is not None:
        _check_exported(source)
    with (
        writing(output, advice=None),
        tempfile.TemporaryDirectory() as scratch,
        whole_folder(output, replaces=(TASK_FILE,)) as staging,
    ):
        if source is None:
            source = Path(scratch) / "exported"
            defaults: dict[str, Any] = {"precision": "int8", "opset": _MOST_OPSET}
            export_onnx(model, source, **(defaults | options))
        shutil.copytree(source, staging, dirs_exist_ok=True)
        write_json(staging / FACTS_FILE, _facts(Model(staging, threads=1)), indent=None)
        for name, file in packages.items():
            (staging / "vendor").mkdir(exist_ok=True)
            shutil.copyfile(file, staging / "vendor" / name)
        shutil.copytree(_ASSETS, staging, dirs_exist_ok=True)
        names = _write_service_worker(staging, [name for name in packages if "LICENSE" not in name])
        contents = [(staging / name).read_bytes() for name in names]
        packed = sum(len(gzip.compress(one, 9)) for one in contents)
        sizes = {"bytes": sum(map(len, contents)), "gzip": packed}
        result = RunDirectory(staging).result
        record = {"kind": "export"} | (load_record(result) if result.is_file() else {}) | {"web": sizes}
        write_json(result, record)
    return record


def _check_exported(folder: Path) -> None:
    """Refuse a folder that would have to be exported again."""
    facts = json.loads((folder / EXPORT_FILE).read_text(encoding="utf-8"))
    advice = "give --quantize int8 (or int4) to export it again"
    web = "ONNX Runtime for the web"
    if facts.get("precision") == "int4" and has_type_int4(folder / MODEL_FILE):
        raise UserError(f"{folder} has matrices in a type that {web} does not know: {advice}")
    if (opset := facts.get("opset", 0)) > _MOST_OPSET:
        raise UserError(f"{folder} has opset {opset}, and {web} takes {_MOST_OPSET}: {advice}")


def _checked_packages(modules: Path) -> dict[str, Path]:
    """Return the files of the packages by their names in the folder, if they are the pinned ones."""
    found = {name: modules / place for name, place in _VENDOR.items()}
    for name, file in found.items():
        if not file.is_file() or sha256_of(file) != _SHA256[name]:
            fault = "is another version" if file.is_file() else "is missing"
            raise UserError(f"{file} {fault}: run {INSTALL}, and give that node_modules as --vendor")
    return found


def _facts(model: Model) -> dict[str, Any]:
    """Return what minialbert.js must know of a model: its folder in one file, and tables of characters."""
    folder, cuts = model.folder, model._cutter()
    if folder.problem == QUESTIONS:
        raise UserError("a page cannot answer questions about a text yet: minialbert-runtime serve does")
    paired = folder.pairs is not False and not model.tagging
    over = folder.decision.over(folder.labels, tagging=model.tagging)
    tokenizer = json.loads((folder.path / TOKENIZER_FILE).read_text(encoding="utf-8"))
    return {
        "format_version": 1, "problem": folder.problem, "labels": folder.labels, "pairs": folder.pairs,
        "max_length": folder.max_length, "overlap": folder.overlap, "long_texts": folder.long_texts,
        "max_characters": MAX_CHARACTERS, "pad_token_id": cuts.pad_token_id,
        "unknown_token_id": cuts.unknown_token_id, "token_types": folder.has_token_types, "output": model.outputs[0],
        "split_special_tokens": folder.split_special_tokens, "prompts": dict(folder.prompts),
        "add_prefix_space": model.tagging and (tokenizer["pre_tokenizer"] or {}).get("type") == "ByteLevel",
        "words": None if folder.words is None else asdict(folder.words),
        "layouts": {"single": cuts.layout(paired=False), "pair": cuts.layout(paired=True) if paired else None},
        "temperature": folder.decision.temperature, "over": None if over is None else over.tolist(),
        "decoding": folder.decision.decoding,
        "kinds": _kinds(), **_tokenizer_tables(folder.path / TOKENIZER_FILE, tokenizer),
    }  # fmt: skip


def _tokenizer_tables(file: Path, tokenizer: dict[str, Any]) -> dict[str, Any]:
    """Return what BERT's steps make of characters; nothing for byte-level BPE, which JavaScript repeats by itself."""
    steps = [tokenizer["normalizer"], tokenizer["pre_tokenizer"]]
    kinds = [str(step and step.get("type")) for step in steps]
    if tokenizer["model"]["type"] == "WordPiece" and kinds == ["BertNormalizer", "BertPreTokenizer"]:
        return {"normal": _normal_forms(Tokenizer.from_file(str(file)).normalizer), "borders": _borders()}
    if tokenizer["model"]["type"] == "BPE" and kinds[0] in ("None", "NFC") and kinds[1] == "ByteLevel":
        return {}
    raise UserError(
        f"the tokenizer has the parts {tokenizer['model']['type']}, {', '.join(kinds)}, which JavaScript would not "
        "take apart alike: expected BERT's WordPiece, or byte-level BPE as RoBERTa's"
    )


def _table(values: Sequence[str]) -> dict[str, Any]:
    """Return the values of `_CHARACTERS` as runs of code points: steps from start to start, and values by name."""
    alike = groupby(zip(values, _CHARACTERS, strict=True), itemgetter(0))
    runs = [(value, ord(next(same)[1])) for value, same in alike]
    names = {value: index for index, value in enumerate(dict.fromkeys(values))}
    steps = [0, *(after - before for (_, before), (_, after) in pairwise(runs))]
    return {"steps": steps, "values": [names[value] for value, _ in runs], "names": list(names)}


@cache
def _kinds() -> dict[str, Any]:
    """Return the table of what characters are in words."""
    return _table(list(map(character_kind.__wrapped__, _CHARACTERS)))


@cache
def _borders() -> dict[str, Any]:
    """Return the table of where BERT's pre-tokenizer cuts: at " ", around "mark", not "inside"."""
    values = [" "] * len(_CHARACTERS)
    probe = f"a{'a'.join(_CHARACTERS)}a"  # each between two letters
    for _, (start, end) in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(probe):
        for at in range(start | 1, end, 2):
            values[at // 2] = "mark" if end - start == 1 else "inside"
    return _table(values)


def _normal_forms(normalizer: normalizers.BertNormalizer) -> dict[str, Any]:
    """Return the table of what BERT's normaliser makes of characters: NUL stands for itself, U+0001 for its NFD."""
    forms = normalizer.normalize_str(_APART.join(_CHARACTERS)).split(_APART)
    forms[ord(_APART) : ord(_APART) + 2] = [_APART]  # itself stood between two empty ones
    values = [form.replace(one, "\0") for one, form in zip(_CHARACTERS, forms, strict=True)]
    for at in range(_CHARACTERS.index("\uac00"), _CHARACTERS.index("\ud7a3") + 1):
        # Eleven thousand syllables, whose parts are the same in every version of Unicode.
        if forms[at] == unicodedata.normalize("NFD", _CHARACTERS[at]):
            values[at] = "\1"
    return _table(values)


def _write_service_worker(folder: Path, packages: Sequence[str]) -> list[str]:
    """Put the names of the files that a page loads into the service worker, and their fingerprint; return the names."""
    own = sorted(path.name for path in _ASSETS.iterdir() if path.suffix in (".js", ".html", ".css"))
    names = [*own, FACTS_FILE, TOKENIZER_FILE, MODEL_FILE, *(f"vendor/{name}" for name in packages)]
    names.remove(_SERVICE_WORKER)
    version = hashlib.sha256("".join(sha256_of(folder / name) for name in names).encode()).hexdigest()[:16]
    file = folder / _SERVICE_WORKER
    start, rest = file.read_text(encoding="utf-8").split("\n", 1)
    assert start.startswith("const VERSION")
    file.write_text(
        f'const VERSION = "{version}", FILES = {json.dumps(["./", *names])};\n{rest}', encoding="utf-8"
    )
    return names
