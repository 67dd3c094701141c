"""Checkpoints of the paper's release, turned into ours.

The release saved its students as `model_type` "albert" with two extra keys, and with the parameter names
of its own wrapper. `from_pretrained` reads such a directory as it is; `convert` writes a new one that the
Auto classes load too, and accounts for every key on the way.
"""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError
from safetensors.torch import load_file
from torch import Tensor
from transformers.utils.hub import is_offline_mode

from minialbert.errors import UserError, failing_as, listed, one_line, quoted
from minialbert.method.configuration_minialbert import MiniAlbertConfig
from minialbert.method.encoders import ARCHITECTURES, tell_misfit
from minialbert.method.modeling_minialbert import (
    RELEASE_KEY_MAPPING,
    RELEASE_UNUSED_KEYS,
    MiniAlbertModel,
    MiniAlbertPreTrainedModel,
)
from minialbert.runs.files import check_apart, check_folder, whole_folder
from minialbert.runs.untrusted import check_config, check_model_folder

# The release has no class for question answering.
_ARCHITECTURES = [name for name in ARCHITECTURES if name != "MiniAlbertForQuestionAnswering"]

_WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
_MODEL_FILES = ("config.json", "model.safetensors", "configuration_minialbert.py", "modeling_minialbert.py")
_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.txt",
    "spiece.model", "vocab.json", "merges.txt",
)  # fmt: skip
_PREFIX = "minialbert."


@dataclass(frozen=True)
class ConversionReport:
    """What `convert` did with every key of the source.

    `renamed` has the key of ours by that of the release, for every tensor that was kept; `dropped` the
    release's keys that no student uses.
    """

    source: str
    architecture: str
    renamed: dict[str, str]
    dropped: tuple[str, ...]
    parameters: int

    def lines(self) -> list[str]:
        """Return the report as lines of text: a summary, then one line per key of the source."""
        return [
            f"{self.source}: {self.architecture}, {self.parameters:,} parameters",
            f"{len(self.renamed)} tensors kept, {len(self.dropped)} dropped",
            *(f"{release} -> {ours}" for release, ours in self.renamed.items()),
            *(f"{release} dropped (unused by the student)" for release in self.dropped),
        ]


def convert(source: str | Path, output: str | Path, *, overwrite: bool = False) -> ConversionReport:
    """Write a checkpoint of the paper's release as one of ours, and return an account of every key.

    The output holds `config.json`, `model.safetensors`, the two files that define the model, and the
    tokenizer's files where the source has them. A new directory is complete or absent: everything is written
    beside it first, then moved into place (file by file into one that is overwritten, whose other files
    stay). Raises UserError if the source is not a complete, readable checkpoint of the release, or if the
    output exists and may not be replaced.
    """
    target = Path(output).resolve()
    check_apart(target, [source])
    check_folder(target, "student", overwrite=overwrite, advice="give another directory, or --overwrite")
    check_model_folder(source)
    release_config = _read_config(source)
    try:
        config = MiniAlbertConfig.from_dict(release_config)
    except (ValueError, TypeError) as error:
        raise UserError(f"{source}: {one_line(error)}") from error
    check_config(config, source)
    architecture = _architecture(source, config)
    tensors = _read_weights(source)
    model, renamed, dropped = _build(source, ARCHITECTURES[architecture].ours, config, tensors)

    with whole_folder(target, replaces=(*_MODEL_FILES, *_TOKENIZER_FILES)) as staging:
        model.save_pretrained(staging)
        for name in _TOKENIZER_FILES:
            if (path := _locate(source, name)) is not None:
                shutil.copyfile(path, staging / name)
    return ConversionReport(str(source), architecture, renamed, dropped, model.num_parameters())


def rename_release_key(key: str) -> str | None:
    """Return our name of a release key as part of a model with a head; None for a key that no student uses.

    Keys without a counterpart (those of a task head, and unknown ones) come back as they are.
    """
    if any(re.search(pattern, key) for pattern in RELEASE_UNUSED_KEYS):
        return None
    for pattern, replacement in RELEASE_KEY_MAPPING.items():
        renamed, count = re.subn(pattern, replacement, key)
        if count:
            return renamed
    return key


def release_key(key: str, *, bare: bool = False) -> str:
    """Return the name that the release gives to a key of ours (or of a bare encoder): the way back."""
    release = f"{_PREFIX}{key}" if bare else key
    # The mapping's patterns use four constructs only: ^, the optional outer "albert.", one number, "\.".
    # "minialbert.block.LayerNorm." comes before "minialbert.block."
    for pattern, replacement in sorted(RELEASE_KEY_MAPPING.items(), key=lambda pair: -len(pair[1])):
        ours = re.escape(replacement).replace(r"\\1", r"(\d+)")
        theirs = pattern.removeprefix("^").replace(r"(?:albert\.)?", "albert.")
        release, count = re.subn("^" + ours, theirs.replace(r"(\d+)", r"\g<1>").replace(r"\.", "."), release)
        if count:
            break
    return release.removeprefix("albert.") if bare else release


def _locate(source: str | Path, name: str) -> Path | None:
    """Return the path of a file of the source, fetched from the hub where needed; None if it has none."""
    if Path(source).is_dir():
        path = Path(source) / name
        return path if path.is_file() else None
    try:
        return Path(hf_hub_download(str(source), name))
    except EntryNotFoundError as error:
        if not isinstance(error, LocalEntryNotFoundError) or is_offline_mode():
            return None
        raise UserError(f"{source}: the hub cannot be reached for {name}; try again") from error
    except (OSError, ValueError) as error:
        raise UserError(
            f"{source} is neither a directory nor a hub id within reach: {one_line(error)}"
        ) from error


def _read_config(source: str | Path) -> dict[str, Any]:
    path = _locate(source, "config.json")
    if path is None:
        what = "has no config.json" if Path(source).is_dir() else "is not a directory or a hub id in reach"
        raise UserError(f"{source} {what}: give a checkpoint directory of the MiniALBERT release")
    with failing_as(f"{path} is not valid JSON", (OSError, ValueError, RecursionError)):
        config = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise UserError(f"{path} must hold a JSON object, got {type(config).__name__}")
    model_type = config.get("model_type")
    if model_type == MiniAlbertConfig.model_type:
        raise UserError(f"{source} is already a MiniALBERT checkpoint of this package: nothing to convert")
    if model_type != "albert":
        raise UserError(
            f"{source} is not a checkpoint of the MiniALBERT release: its model_type is {quoted(model_type)}, "
            "not 'albert'"
        )
    return config


def _architecture(source: str | Path, config: MiniAlbertConfig) -> str:
    names = config.architectures or []
    if not (isinstance(names, list) and len(names) == 1 and names[0] in _ARCHITECTURES):
        raise UserError(
            f"{source}/config.json: architectures must name one class of {', '.join(_ARCHITECTURES)}, "
            f"got {quoted(names)}"
        )
    return str(names[0])


def _read_weights(source: str | Path) -> dict[str, Tensor]:
    """Read the weights without running any code: safetensors, or a .bin of plain tensors."""
    path = next((path for name in _WEIGHT_FILES if (path := _locate(source, name)) is not None), None)
    if path is None:
        raise UserError(f"{source} has no weights: expected {' or '.join(_WEIGHT_FILES)}")
    try:
        if path.suffix == ".safetensors":
            tensors = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever damaged bytes make of both readers, struct.error among it
        raise UserError(
            f"{path} cannot be read as plain tensors: it is damaged, an incomplete download, or holds code "
            f"({type(error).__name__}); fetch it again from where you trust it"
        ) from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise UserError(f"{path} must hold a dictionary of tensors (a state dict)")
    return tensors


def _build(
    source: str | Path,
    model_class: type[MiniAlbertPreTrainedModel],
    config: MiniAlbertConfig,
    tensors: dict[str, Tensor],
) -> tuple[MiniAlbertPreTrainedModel, dict[str, str], tuple[str, ...]]:
    # Returns the model with the tensors in it, the renamed keys and the dropped ones; keys of file and model
    # must correspond one to one.
    prefix = _PREFIX if model_class is MiniAlbertModel else ""
    names = {key: rename_release_key(key) for key in tensors}
    renamed = {key: ours.removeprefix(prefix) for key, ours in names.items() if ours is not None}
    dropped = tuple(key for key, ours in names.items() if ours is None)

    iterations = config.num_hidden_layers
    if config.adapter_reduction_factor is not None and iterations > len(tensors):
        raise UserError(
            f"{source}: its config.json says {iterations} iterations, more than the file has tensors"
        )
    with torch.device("meta"):  # no memory and no random numbers: every tensor comes from the file
        beyond = (RuntimeError, TypeError, OverflowError)  # of sizes beyond what torch counts
        with failing_as(f"{source}: its config.json describes no model", beyond):
            model = model_class(config)
    origin = {ours: key for key, ours in renamed.items()}
    twice = sorted(key for key, ours in renamed.items() if origin[ours] != key)
    expected = {
        origin.get(key, release_key(key, bare=model_class is MiniAlbertModel)): tuple(tensor.shape)
        for key, tensor in model.state_dict().items()
    }
    found = tell_misfit(expected, {key: tuple(tensors[key].shape) for key in origin.values()})
    if twice:
        found = "; ".join(part for part in (found, f"given twice: {listed(twice, 200)}") if part)
    if found:
        raise UserError(f"{source} is not a complete checkpoint of the MiniALBERT release; {found}")
    model.load_state_dict({ours: tensors[key] for key, ours in renamed.items()}, assign=True)
    return model, renamed, dropped
