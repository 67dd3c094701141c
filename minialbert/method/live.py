"""Models as people hand them over in Python: by name, alive, or as what an earlier verb gave back."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeAlias

from minialbert_runtime.folder import find_folder, is_exported
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from minialbert.data.tokenizers import load_tokenizer
from minialbert.errors import UserError, display_name, quoted
from minialbert.method.encoders import repository_file
from minialbert.runs.files import sha256_of
from minialbert.runs.results import ModelResult, Result

# A directory or hub id, a live Transformers model, or what an earlier verb gave back.
AnyModel: TypeAlias = "str | Path | Any"
# What lies beside a model's weights and says how it wants its inputs.
_SIDE_FILES = ("task.json",)
_PREFIX = "minialbert-live-"
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


@contextmanager
def on_disk(model: AnyModel, tokenizer: Any = None) -> Iterator[str]:
    """Yield a directory or hub id that holds a model; a live one is written to a temporary folder meanwhile.

    Without a tokenizer a live model has that of the directory it was loaded from. Raises UserError if the model is
    nothing of the kind, or has no tokenizer.
    """
    alive = getattr(model, "model", None) if isinstance(model, Result) else model
    if isinstance(model, Result) and model.path is not None:
        folder = model.path / "model" if isinstance(model, ModelResult) else model.path  # a run, or an export
        if folder.is_dir():
            yield str(folder)
            return
    if isinstance(model, str | Path):  # one of minialbert-models goes by its name
        yield str(find_folder(model) if is_exported(model) else model)
        return
    if not isinstance(alive, PreTrainedModel):
        raise UserError(
            "expected a model (a directory, a hub id, a live Transformers model, or what distill, finetune or export "
            f"gave back), found {quoted(type(model).__name__)}"
        )
    if tokenizer is None:
        tokenizer = getattr(model, "tokenizer", None)
    source = str(getattr(alive, "name_or_path", "") or "")
    name = (
        Path(source).resolve() if source and Path(source).is_dir() else Path(source or type(alive).__name__)
    )
    shown = name.parent.name if name.name == "model" else name.name
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as root:
        folder = Path(root) / (shown or "model")
        alive.save_pretrained(folder)
        revision = getattr(alive.config, "_commit_hash", None)
        for side in _SIDE_FILES if source else ():
            with suppress(UserError):  # it was loaded from where there is nothing now
                if file := repository_file(source, side, revision, required=False):
                    shutil.copy2(file, folder / side)
        _tokenizer_of(tokenizer, source, revision).save_pretrained(folder)
        yield str(folder)


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
