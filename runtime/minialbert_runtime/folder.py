"""An exported folder as facts: which task, which labels, how inputs are cut and padded."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import file_digest, sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeGuard

from .answers import ANSWERS, Decision, decision_of, is_tagging
from .errors import UserError, one_line, shown
from .limits import PROVED_ENGINES
from .questions import QUESTIONS
from .words import WordRule, check_tags, word_rule

# From 2 on task.json may have rules for words and long texts, from 3 on a decision, from 4 on its decoding;
# earlier ones are read as before.
FORMAT_VERSION = 4
ONE_LENGTH = "one length"  # what a run may hold, where padding or other lengths could change a text's bits
_MOST_LABELS, _MOST_BYTES = 1_000_000, 64 * 2**20
_BOX = "minialbert_models"  # a distribution of its own, that holds folders and no code
EXPORT_FILE, MODEL_FILE, TOKENIZER_FILE = "export.json", "model.onnx", "tokenizer.json"
_PROBLEMS: dict[str, Collection[str]] = {
    "features": ("embedding",),
    "sequence-classification": [problem for problem in ANSWERS if problem != "embedding"],
    "token-classification": ("token",),
    "question-answering": (QUESTIONS,),
}


@dataclass(frozen=True, slots=True)
class Folder:
    """What an exported folder says about its model."""

    path: Path
    task: str  # its name
    problem: str  # a name of `answers.ANSWERS`, "question-answering" or "token"
    labels: tuple[str, ...]  # by id; of a sentence encoder the numbers of its dimensions
    max_length: int  # tokens of an input at most, special tokens included
    overlap: int  # tokens that windows of a long text share
    pad_token: str | None  # None where only its id is known
    unknown_token: str | None
    pad_token_id: int  # in config.json
    has_token_types: bool  # whether the tokenizer tells the texts of a pair apart by them
    split_special_tokens: bool  # whether special tokens that are spelled out in a text are plain text
    precision: str  # of the weights, as in "int8"
    one_length: bool  # whether a run of the model has only inputs of one length, without padding
    engines: tuple[str, ...]  # in which the graph was compared with its model, the best one first
    words: WordRule | None  # how a tagger cuts texts; None for a folder from before there was a rule
    pairs: bool | None  # whether the model was tuned on pairs of texts; None where that is not said
    long_texts: str  # "windows", or "cut", where the end of a long text is not read
    prompts: Mapping[str, str]  # of a sentence encoder, to put before texts, by name
    decision: Decision  # how a calibrated model chooses its answers


def boxed_models() -> dict[str, Path]:
    """Return the folders of the models in minialbert-models, by name; none where that is not installed."""
    spec = find_spec(_BOX)
    places = [] if spec is None else spec.submodule_search_locations or []
    files = (file for place in places for file in sorted(Path(place).glob(f"*/{EXPORT_FILE}")))
    return {file.parent.name: file.parent for file in files}


def version_of(decision: Decision) -> int:
    """Return the first format version with what a decision says: an older runtime has to refuse it."""
    return 2 if decision == Decision() else 3 if decision.decoding == "alone" else FORMAT_VERSION


def find_folder(name: str | Path) -> Path:
    """Return the folder of that path, or where there is none, of the model of that name in minialbert-models."""
    path = Path(name)
    return path if path.exists() or path.name != str(name) else boxed_models().get(str(name), path)


def digest(path: str | Path) -> str:
    """Return a hash of the files that decide a model's answers; records beside them do not count."""
    facts = sorted(file.name for file in Path(path).glob("*.json") if file.name != "result.json")
    whole = sha256()
    for name in (*facts, MODEL_FILE):
        with (Path(path) / name).open("rb") as file:
            whole.update(f"{name} {file_digest(file, 'sha256').hexdigest()}\n".encode())
    return whole.hexdigest()


@contextmanager
def _closed_files_named() -> Iterator[None]:
    try:
        yield
    except PermissionError as error:  # as of a container's user, who is not the one that wrote the folder
        raise UserError(
            f"{error.filename} may not be read by this user: `chmod -R go+rX` on the folder, and `chmod go+x` on those "
            "above it, let everybody read it"
        ) from error
    except OSError as error:  # as of a text in the place of a name, which is too long for one
        told = f"{shown(str(error.filename), 120)} cannot be opened ({error.strerror})"
        raise UserError(f"{told}: expected the folder or the name of a model") from error


@_closed_files_named()
def is_exported(path: str | Path) -> bool:
    """Tell whether a path, or the name of a model in minialbert-models, is that of an exported folder."""
    return (find_folder(path) / EXPORT_FILE).is_file()


@_closed_files_named()
def exported_head(path: str | Path) -> str:
    """Return the head with which a folder was exported, as "features"; "" where that is not said."""
    return str(_read_object(find_folder(path) / EXPORT_FILE).get("head", ""))


@_closed_files_named()
def read_folder(path: str | Path) -> Folder:
    """Return what an exported folder, or a model of that name in minialbert-models, says of itself.

    The model is not opened. What is missing or damaged, or labels no text, is a UserError.
    """
    path = find_folder(path)
    if not path.is_dir():
        if path.exists():
            raise UserError(f"{path} is not a folder: expected one that `minialbert export` wrote")
        boxed = ", ".join(boxed_models())
        others = (
            f"one of {boxed}" if boxed else "`pip install ./models` in the repository for some with names"
        )
        raise UserError(f"no such folder: {path}; expected one that `minialbert export` wrote, or {others}")
    head, vectors, export = _read_export(path)
    for name in (MODEL_FILE, TOKENIZER_FILE):
        if not (path / name).is_file():
            raise _missing(path / name)
        (path / name).open("rb").close()  # here the system says who may not read it
    task = _read_task(path, head) if vectors is None else _vectors_as_task(path / EXPORT_FILE, vectors)
    config = _read_object(path / "config.json")
    pad = config.get("pad_token_id")
    if vectors is None:
        task["labels"] = _labels(path / "config.json", config)
    labels = task["labels"]
    special = _read_object(path / "special_tokens_map.json", optional=True)
    special |= _read_object(path / "tokenizer_config.json", optional=True)
    if is_tagging(task["problem"]):
        check_tags(labels, f"{path / 'config.json'}: ")
    names = [label[2:] for label in labels] if is_tagging(task["problem"]) else labels
    if unknown := task["decision"].thresholds.keys() - set(names):
        raise _damaged(
            path / "task.json", f"it has a threshold for {sorted(unknown)[0]!r}, which is no label"
        )
    return Folder(
        path=path,
        pad_token=_token(special.get("pad_token")),
        unknown_token=_token(special.get("unk_token")),
        pad_token_id=pad if _is_count(pad) and pad < 2**31 else 0,
        has_token_types=_has_token_types(special),
        split_special_tokens=special.get("split_special_tokens") is True,
        **export,
        **task,
    )


def _read_export(path: Path) -> tuple[str, object, dict[str, Any]]:
    """Return the head, what is said of vectors, and what a folder's facts have of its export."""
    file = path / EXPORT_FILE
    if not file.is_file():
        raise UserError(
            f"{path} has no export.json: expected a folder that `minialbert export` wrote, not a plain model"
        )
    export = _read_object(file)
    version, head = export.get("format_version"), export.get("head")
    if not _is_count(version) or not isinstance(head, str):
        raise _damaged(file, "format_version or head is missing")
    if not 1 <= version <= FORMAT_VERSION:
        raise UserError(
            f"{file}: format version {version}, but this minialbert-runtime reads versions 1 to {FORMAT_VERSION}: "
            f"{'upgrade it' if version > FORMAT_VERSION else 'export the model again'}"
        )
    vectors = export.get("vectors")
    if head in ("features", "masked-lm") and vectors is None:
        raise UserError(
            f"{path} has no task, so it does not label text: `minialbert finetune --model {path.name} --task TASK "
            "--data DATA --output tuned/` teaches it one"
        )
    if head not in _PROBLEMS:
        raise UserError(f"{path} was exported with the head {head!r}: expected {', '.join(_PROBLEMS)}")
    engines = export.get("engines", ["onnx"])
    if not isinstance(engines, list) or not engines or not set(map(str, engines)) <= set(PROVED_ENGINES):
        raise _damaged(file, f"engines are {engines!r}, expected some of {', '.join(PROVED_ENGINES)}")
    facts = {"precision": str(export.get("precision", "")), "one_length": export.get("batches") == ONE_LENGTH}
    return head, vectors if head == "features" else None, facts | {"engines": tuple(engines)}


def _vectors_as_task(file: Path, vectors: object) -> dict[str, Any]:
    """Return what the export of a sentence encoder says, in the places of a task."""
    said = vectors if isinstance(vectors, dict) else {}
    size, most, prompts = (said.get(key) for key in ("size", "max_length", "prompts"))
    if not _is_count(size) or not 1 <= size <= _MOST_LABELS or not _is_count(most) or not 8 <= most <= 65536:
        raise _damaged(file, f"vectors are {size!r} wide and texts {most!r} tokens long, expected numbers")
    return {
        "task": "embedding", "problem": "embedding", "labels": tuple(map(str, range(size))), "max_length": most,
        "overlap": 0, "words": None, "pairs": False, "long_texts": "windows", "decision": Decision(),
        "prompts": {str(name): str(text) for name, text in prompts.items()} if isinstance(prompts, dict) else {},
    }  # fmt: skip


def _read_task(path: Path, head: str) -> dict[str, Any]:
    file = path / "task.json"
    task = _read_object(file)
    problem, max_length, overlap = task.get("problem"), task.get("max_length"), task.get("overlap")
    if problem not in _PROBLEMS[head]:
        expected = ", ".join(_PROBLEMS[head])
        raise _damaged(file, f"problem is {problem!r}, and the head {head} wants one of {expected}")
    if not _is_count(max_length) or not 8 <= max_length <= 65536:
        raise _damaged(file, f"max_length is {max_length!r}, expected 8 to 65536")
    if not _is_count(overlap):
        raise _damaged(file, f"overlap is {overlap!r}, expected a number of tokens")
    try:
        words, decision = word_rule(task.get("words")), decision_of(task.get("decision"))
    except ValueError as error:
        raise _damaged(file, str(error)) from error
    pairs = task.get("pairs")
    if not isinstance(pairs, bool | None):
        raise _damaged(file, f"pairs is {pairs!r}, expected true or false")
    long_texts = task.get("long_texts") or "windows"
    if long_texts not in ("cut", "windows"):
        raise _damaged(file, f"long_texts is {long_texts!r}, expected cut or windows")
    return {
        "task": str(task.get("task", "")), "problem": problem, "max_length": max_length, "overlap": overlap,
        "words": words, "pairs": pairs, "long_texts": long_texts, "prompts": {}, "decision": decision,
    }  # fmt: skip


def _labels(file: Path, config: Mapping[str, Any]) -> tuple[str, ...]:
    # Transformers leaves out the names that it would give by itself.
    named = config.get("id2label")
    if named is None:
        count = config.get("num_labels", 2)
        if _is_count(count) and count > _MOST_LABELS:
            raise _damaged(file, f"num_labels is over {_MOST_LABELS:,}")
        named = {str(index): f"LABEL_{index}" for index in range(count if _is_count(count) else 0)}
    try:
        by_id = {int(index): name for index, name in named.items()}
    except (AttributeError, ValueError) as error:
        raise _damaged(file, "id2label is not a mapping of ids to names") from error
    labels = tuple(by_id[index] for index in sorted(by_id))
    if sorted(by_id) != list(range(len(by_id))) or not labels:
        raise _damaged(file, "id2label does not name the ids 0, 1, …")
    if not all(isinstance(label, str) for label in labels):
        raise _damaged(file, "a label in id2label is not a text")
    if len(set(labels)) < len(labels):
        raise _damaged(file, "two labels in id2label have one name")
    return labels


def _has_token_types(config: Mapping[str, Any]) -> bool:
    names, kind = config.get("model_input_names"), config.get("tokenizer_class")
    if isinstance(names, list):
        return "token_type_ids" in names
    # Classes of Transformers that have them without saying so in the file.
    return not isinstance(kind, str) or kind.startswith(("Bert", "Deberta", "FNet"))


def _token(value: object) -> str | None:
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else None


def _is_count(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _read_object(file: Path, *, optional: bool = False) -> dict[str, Any]:
    if optional and not file.exists():
        return {}
    if not file.is_file():
        raise _missing(file)
    if file.stat().st_size > _MOST_BYTES:
        raise _damaged(file, f"it has over {_MOST_BYTES // 2**20} MB")
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except PermissionError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise _damaged(file, one_line(error)) from error
    if not isinstance(values, dict):
        raise _damaged(file, f"expected a JSON object, found {type(values).__name__}")
    return values


def _missing(file: Path) -> UserError:
    return UserError(f"{file} is missing: export the model again")


def _damaged(file: Path, reason: str) -> UserError:
    return UserError(f"{file} is damaged ({reason}): export the model again")
