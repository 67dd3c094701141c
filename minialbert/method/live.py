"""Models as people hand them over in Python: by name, alive, or as what an earlier verb gave back."""

from __future__ import annotations

import hashlib
import logging
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

import torch
from minialbert_runtime.folder import find_folder, is_exported
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from minialbert.data.tokenizers import load_tokenizer
from minialbert.errors import UserError, display_name, listed, quoted
from minialbert.method.encoders import repository_file
from minialbert.runs.files import sha256_of
from minialbert.runs.results import ModelResult, Result

logger = logging.getLogger(__name__)

# A directory or hub id, a live Transformers model, or what an earlier verb gave back.
AnyModel: TypeAlias = "str | Path | Any"
# What lies beside a model's weights and says how it wants its inputs.
_SIDE_FILE = "task.json"
_PREFIX = "minialbert-live-"
# Whose code is there again when weights and configuration are read.
_KNOWN_CODE = ("torch", "transformers", "minialbert")
# What a model is read from, by what it says.
MODEL_FILES = {
    "weights": ("*.safetensors", "pytorch_model*.bin"),
    "config": ("config.json",),
    "tokenizer": ("*token*.json", "vocab.*", "merges.txt", "*.model"),
}


def lasting_name(place: str | None) -> str | None:
    """Return what a recipe calls a model: a live one by its name, since its folder is gone when the call ends.

    So a run with a live model can be resumed with that model.
    """
    is_live = place is not None and Path(place).parent.name.startswith(_PREFIX)
    return Path(place).name if is_live and place is not None else place


def of_result(model: AnyModel) -> AnyModel:
    """Return the model that a verb gave back: its folder, or the live one where that is gone; others as given."""
    if not isinstance(model, Result):
        return model
    folder = model.path / "model" if isinstance(model, ModelResult) and model.path else model.path
    if folder is not None and folder.is_dir():  # a run, or an export
        return folder
    return getattr(model, "model", None) or model


@contextmanager
def on_disk(model: AnyModel, tokenizer: Any = None) -> Iterator[str]:
    """Yield a directory or hub id that holds a model; a live one is written to a temporary folder meanwhile.

    Without a tokenizer a live model has that of the directory it was loaded from. Raises UserError if the model is
    nothing of the kind, has no tokenizer, or weights that no configuration describes.
    """
    alive = of_result(model)
    if isinstance(alive, str | Path):  # one of minialbert-models goes by its name
        yield str(find_folder(alive) if is_exported(alive) else alive)
        return
    if not isinstance(alive, PreTrainedModel):
        raise UserError(
            "expected a model (a directory, a hub id, a live Transformers model, or what distill, finetune or export "
            f"gave back), found {quoted(type(model).__name__)}"
        )
    if tokenizer is None:
        tokenizer = getattr(model, "tokenizer", None)
    source = str(getattr(alive, "name_or_path", "") or "")
    name = Path(source or type(alive).__name__)
    if source and name.is_dir():
        name = name.resolve()
    shown = name.parent.name if name.name == "model" else name.name
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as root:
        folder = Path(root) / (shown or "model")
        _check_alive(alive, str(name))
        alive.save_pretrained(folder)
        revision = getattr(alive.config, "_commit_hash", None)
        with suppress(UserError):  # it was loaded from where there is nothing now
            if source and (file := repository_file(source, _SIDE_FILE, revision, required=False)):
                shutil.copy2(file, folder / _SIDE_FILE)
        _tokenizer_of(tokenizer, source, revision).save_pretrained(folder)
        try:
            yield str(folder)
        except UserError as error:  # the caller knows the model by another name
            error.args = (str(error).replace(str(folder), str(name)),)
            raise


def _check_alive(model: PreTrainedModel, name: str) -> None:
    """Refuse weights that would be lost on the way through a file, and say what code would be."""
    with suppress(TypeError), torch.device("meta"):  # of a class that is made in a way of its own
        described = type(model)(model.config).state_dict().keys()
        if added := sorted(model.state_dict().keys() - described):
            raise UserError(
                f"{name} has weights that its configuration does not describe ({listed(added, 120)}), and would be "
                "read without them: merge them into the model's own (merge_and_unload of PEFT does), or take them out"
            )
    code: list[Any] = [type(part) for part in model.modules()]
    for part in model.modules():
        code += (*part._forward_hooks.values(), *part._forward_pre_hooks.values())
    own = [one for one in dict.fromkeys(code) if one.__module__.partition(".")[0] not in _KNOWN_CODE]
    if own:
        lost = listed(getattr(one, "__name__", type(one).__name__) for one in own)
        logger.warning("%s is read by weights and configuration, without code of its own: %s", name, lost)


def _tokenizer_of(tokenizer: Any, source: str, revision: str | None) -> PreTrainedTokenizerBase:
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        return tokenizer
    if tokenizer is not None:
        return load_tokenizer(str(tokenizer))
    if not source:
        raise UserError("a live model that was not loaded from anywhere needs its tokenizer: give tokenizer=")
    return load_tokenizer(source, revision=revision)


def model_identity(place: str, config: PreTrainedConfig | None = None) -> dict[str, str | None]:
    """Return what a run keeps of a model that it loads, to know it again.

    "weights", "config" and "tokenizer" are fingerprints of the files in its folder, which are read for it (about 0.7 s
    for a GB); of a model of the hub the commit, which its configuration knows, stands for them.
    """
    folder, name = Path(place).expanduser(), {"name": display_name(place)}
    if not folder.is_dir():
        return {**name, "commit": getattr(config, "_commit_hash", None)}
    found = {kind: hash_files(folder, patterns) for kind, patterns in MODEL_FILES.items()}
    return {**name, **{kind: digest for kind, digest in found.items() if digest or kind == "weights"}}


def hash_files(folder: Path, patterns: Iterable[str]) -> str | None:
    """Return a SHA-256 of the files in a folder that fit one of some patterns, None where there is none."""
    files = sorted(path for pattern in patterns for path in folder.glob(pattern))
    digest = hashlib.sha256(b"".join(bytes.fromhex(sha256_of(file)) for file in files))
    return digest.hexdigest() if files else None
