"""What files from elsewhere may not say: names outside of a model's folder, code to fetch, fields of no record."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from minialbert.errors import UserError, quoted, shown

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerBase

Record = TypeVar("Record")

_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_TENSORS = (".safetensors", ".bin")
_PEFT_FILE, _PEFT_BASE = "adapter_config.json", "base_model_name_or_path"
_MOST_HEADER = 4 * 2**20
_MOST_JSON = 128 * 2**20  # the largest tokenizer.json has 40
_TEMPLATES = "additional_chat_templates"
# Whatever a tokenizer's class takes is passed to it, so that any value may be opened as a file.
TOKENIZER_SETTINGS = ("tokenizer_config.json", "special_tokens_map.json")
_NAMES_FILES = re.compile(r"init_inputs|_files?$|spm|_path$|^vocab$|^merges$|sp_model|transformers_weights")
# Text, and names that are not followed: `name_or_path` is set anew, `auto_map` is of code that is not run.
_NAMES_NONE = re.compile(r"chat_template|tokens?(_decoder|_map)?$|name_or_path$|auto_map|_class$")


def check_model_folder(name: str | Path) -> None:
    """Refuse a folder whose files send the reader elsewhere: to files outside, to another model, or by a link.

    Links to weights are followed, which nothing but tensors can be read from; a vocabulary could be any text. A hub id
    is passed over.
    """
    folder = Path(name)
    if not folder.is_dir():
        return
    for file in (*sorted(folder.iterdir()), *sorted((folder / _TEMPLATES).glob("*"))):
        _check_file(folder, file)
    for file in (folder / index for index in _INDEXES):
        weight_map = _values(file).get("weight_map")
        for shard in sorted(map(str, weight_map.values())) if isinstance(weight_map, dict) else ():
            if not is_plain_name(shard):
                advice = "expected names of files beside it"
                raise UserError(f"{file} names weights outside of its folder ({quoted(shard)}): {advice}")
    for file in (folder / settings for settings in (*TOKENIZER_SETTINGS, "config.json")):
        for key, text in _texts(_values(file)):
            is_name = _NAMES_FILES.search(key) is not None
            if (is_name or file.name in TOKENIZER_SETTINGS) and _leads_out(folder, text, is_name=is_name):
                raise UserError(
                    f"{file} names a file outside of its folder ({shown(key, 30)}: {quoted(text)}): take it out"
                )
    # With peft installed, Transformers would load the base model in its place.
    if (base := _values(folder / _PEFT_FILE).get(_PEFT_BASE)) is not None:
        advice = "merge it into its model, and give the folder of that"
        raise UserError(f"{folder} holds a PEFT adapter of {quoted(base)}: {advice}")


def _check_file(folder: Path, file: Path) -> None:
    """Refuse a link that leads out of a model's folder, what is not a file, and weights of countless names."""
    if file.is_symlink() and file.suffix not in _TENSORS and not _is_of(folder.resolve(), file.resolve()):
        raise UserError(f"{file} is a link that leads out of its folder: put the file itself in its place")
    if file.exists() and not file.is_file() and not file.is_dir():
        raise UserError(f"{file} is a pipe or a device: put a file in its place")
    if file.suffix == ".json" and file.is_file() and file.stat().st_size > _MOST_JSON:
        raise UserError(
            f"{file} has {file.stat().st_size:,} bytes, more than any file of settings: is it one?"
        )
    if file.suffix == ".safetensors" and file.is_file():
        with file.open("rb") as content:
            size = int.from_bytes(content.read(8), "little")
        if _MOST_HEADER < size < file.stat().st_size:  # more than there is: told by whoever loads it
            raise UserError(
                f"{file} names more tensors than any encoder has ({size:,} bytes of names): is it one?"
            )


def check_config(config: PreTrainedConfig, name: str | Path) -> None:
    """Refuse a configuration that wants compiled code from the hub: an attention kernel is named like a repository."""
    for attention in _attentions(config.to_dict() | {"attn_implementation": config._attn_implementation}):
        if "/" in attention:
            raise UserError(
                f"{name}: its config.json wants the attention kernel {quoted(attention)}, and no code is fetched for a "
                "model: take attn_implementation out of it"
            )


def check_tokenizer_files(tokenizer: PreTrainedTokenizerBase, name: str | Path) -> None:
    """Refuse a tokenizer with chat templates that saving would write outside of its folder; forget code it names."""
    tokenizer.init_kwargs.pop("auto_map", None)  # of code that was not run, and is not passed on
    templates = getattr(tokenizer, "chat_template", None)
    for template in templates if isinstance(templates, dict) else ():
        if not is_plain_name(str(template)):
            raise UserError(
                f"{name}: its tokenizer has a chat template called {quoted(template)}, which is not a file name: "
                "take it out of tokenizer_config.json"
            )


def is_plain_name(name: str) -> bool:
    """Tell whether a name is that of a file in whatever folder, on any system."""
    return name not in ("", ".", "..") and name.isprintable() and not any(letter in name for letter in "/\\:")


def _is_of(folder: Path, file: Path) -> bool:
    is_cached = folder.parent.name == "snapshots"  # the hub's cache links each file of a snapshot to a blob
    return folder in file.parents or (is_cached and file.parent == folder.parent.parent / "blobs")


def _texts(values: object, key: str = "") -> Iterator[tuple[str, str]]:
    """Yield each text in plain values that may be opened as a file, with the key that it is under, at any depth."""
    if isinstance(values, str):
        yield key, values
    elif isinstance(values, dict):
        for name, value in values.items():
            if not _NAMES_NONE.search(str(name)):
                yield from _texts(value, key if _NAMES_FILES.search(key) else str(name))
    elif isinstance(values, list):
        for value in values:
            yield from _texts(value, key)


def _leads_out(folder: Path, text: str, *, is_name: bool) -> bool:
    """Tell whether there is a file of this name outside of the folder, seen from it or from where we are."""
    if not is_name and "/" not in text and "\\" not in text:
        return False
    for path in (folder / text, Path(text)):
        with suppress(OSError, ValueError, RuntimeError):  # as for 10,000 letters: no name of a file
            if path.exists() and not _is_of(folder.resolve(), path.resolve()):
                return True
    return False


def _values(file: Path) -> dict[str, Any]:
    # What cannot be read is told by whoever needs it.
    if not file.is_file():
        return {}
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return values if isinstance(values, dict) else {}


def _attentions(values: dict[Any, Any]) -> Iterator[str]:
    for key, value in values.items():
        if str(key).endswith("attn_implementation"):
            yield from map(str, value.values() if isinstance(value, dict) else [value])
        elif isinstance(value, dict):
            yield from _attentions(value)


_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)


def record_from_plain(kind: type[Record], values: object) -> Record:
    """Returns a dataclass from what `asdict` gave and JSON kept; nothing is converted, left out or passed over.

    A ValueError says in one line which of the values is not that of such a record.
    """
    try:
        record: Record = _adapter(kind).validate_json(json.dumps(values), strict=True)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(shown, first["loc"]))
        raise ValueError(f"{place}: {first['msg']}" if place else first["msg"]) from None
    if without_empty(asdict(record)) != without_empty(values):  # type: ignore[call-overload]
        raise ValueError("it has entries that no version of this program writes")
    return record


def without_empty(values: Any) -> Any:
    """Returns a record's values as versions before the fingerprints and pairs had them, where there is none."""
    if isinstance(values, dict):
        fields, later = values.items(), ("files", "sha256", "pair_field")
        return {key: without_empty(one) for key, one in fields if one or key not in later}
    return [without_empty(one) for one in values] if isinstance(values, list) else values
