"""A live model in a temporary folder, for what reads models from folders."""

from __future__ import annotations

import logging
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minialbert.data.tokenizers import load_tokenizer
from minialbert.errors import UserError, listed, quoted
from minialbert.method.encoders import repository_file

logger = logging.getLogger(__name__)

# What lies beside a model's weights and says how it wants its inputs.
_SIDE_FILE = "task.json"
# Whose code is there again when weights and configuration are read.
_KNOWN_CODE = ("torch", "transformers", "minialbert")


@contextmanager
def saved(model: Any, alive: Any, tokenizer: Any, *, prefix: str) -> Iterator[str]:
    """Yield a folder with a live model; `model` is what it came in, else see `minialbert.method.live.on_disk`."""
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
    with tempfile.TemporaryDirectory(prefix=prefix) as root:
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
