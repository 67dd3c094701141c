"""Models as people hand them over in Python: by name, alive, or as what an earlier verb gave back."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from minialbert_runtime.folder import find_folder, is_exported

from minialbert.errors import display_name
from minialbert.runs.files import sha256_of
from minialbert.runs.results import ModelResult, Result

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

# A directory or hub id, a live Transformers model, or what an earlier verb gave back.
AnyModel: TypeAlias = "str | Path | Any"
_PREFIX = "minialbert-live-"  # of the folder of a live model
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
    from minialbert.method.saved import saved  # PyTorch, which an exported folder runs without

    with saved(model, alive, tokenizer, prefix=_PREFIX) as folder:
        yield folder


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
