"""An exported folder in place of a model: its graph, called as Transformers' models are, or the whole folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from minialbert_runtime.model import Model
from minialbert_runtime.session import open_session
from torch import Tensor, nn
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerFast
from transformers.utils import ModelOutput

from minialbert.data.tokenizers import load_tokenizer
from minialbert.errors import UserError, failing_as
from minialbert.method.encoders import LOADING_ERRORS
from minialbert.runs.untrusted import check_model_folder
from minialbert.tasks.models import TaskInputs, read_task_file


class OnnxEncoder(nn.Module):
    """A graph that `minialbert export` wrote; its outputs are what the PyTorch model's would be.

    It is a `UserError` if the engine does not take the file.
    """

    def __init__(self, path: Path, config: PreTrainedConfig, *, engine: str = "onnx") -> None:
        super().__init__()
        self.config = config
        # The engine's own exception types share no base.
        with failing_as(f"{path} is damaged or no ONNX graph", Exception, "export it again"):
            self.session = open_session(path, engine=engine)
        self._inputs = [entry.name for entry in self.session.get_inputs()]
        self._outputs = [entry.name for entry in self.session.get_outputs()]

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
    ) -> ModelOutput:
        """Return the graph's outputs by name, `logits` or what else the head gives, in fp32, of int64 (B, T)."""
        given = {
            "input_ids": input_ids,
            "attention_mask": torch.ones_like(input_ids) if attention_mask is None else attention_mask,
            "token_type_ids": torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids,
        }
        with failing_as("the graph cannot be run", Exception):
            results = self.session.run(None, {name: given[name].long().numpy() for name in self._inputs})
        return ModelOutput(
            {name: torch.from_numpy(values) for name, values in zip(self._outputs, results, strict=True)}
        )


class ExportedModel(nn.Module):
    """An exported folder in place of a tuned model; `runtime` runs inputs as `predict` does, many side by side."""

    def __init__(self, folder: Path, config: PreTrainedConfig) -> None:
        super().__init__()
        self.config, self.runtime = config, Model(folder)

    @property
    def base_model(self) -> nn.Module:
        """The model itself: it is not made of parts."""
        return self

    def to(self, *args: Any, **kwargs: Any) -> ExportedModel:
        """Return the model as it is: it runs on the CPU."""
        return self


def load_exported(folder: str | Path) -> tuple[ExportedModel, PreTrainedTokenizerFast, TaskInputs]:
    """Return the tuned model of an exported folder, its tokenizer, and how it wants its inputs.

    Raises UserError if a file is missing or damaged, or the model has no task head.
    """
    folder = Path(folder)
    check_model_folder(folder)
    with failing_as(f"{folder}: the export is damaged", LOADING_ERRORS, "export it again"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    inputs = read_task_file(folder)
    if inputs is None:
        raise UserError(
            f"{folder} has no task.json: its model was not tuned for a task, as `minialbert finetune` does"
        )
    return ExportedModel(folder, config), load_tokenizer(folder), inputs
