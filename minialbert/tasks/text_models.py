"""Models in PyTorch that take texts: a tuned one, which labels them, and a sentence encoder, which gives vectors.

What texts are cut into, and what follows from the logits, is `minialbert_runtime`'s business, of these and of exported
folders alike.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from minialbert_runtime.answers import Logits, TextModel
from minialbert_runtime.windows import Cutter, Row
from minialbert_runtime.words import check_tags
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from minialbert.data.task_inputs import Encoded, PaddingCollator, make_cutter
from minialbert.data.tokenizers import load_tokenizer
from minialbert.errors import UserError
from minialbert.method.encoders import (
    evaluating,
    find_pooling,
    forward_inputs,
    head_of,
    load_encoder,
    load_encoder_config,
    longest_text,
)
from minialbert.method.sentence_vectors import Pooling
from minialbert.runs.device import autocast, resolve_precision
from minialbert.runs.progress import quiet_transformers
from minialbert.tasks.models import TaskInputs, load_tuned, model_labels
from minialbert.tasks.predictions import depth_arguments, depth_notes, run_model

logger = logging.getLogger(__name__)

_PRECISIONS = ("auto", "fp32", "bf16", "fp16")


class Predictor(TextModel):
    """A tuned model that takes texts and gives results as dictionaries; options are as for `predict`.

    Raises UserError if one is out of range, or the labels of a token task are not IOB2 tags.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        inputs: TaskInputs,
        *,
        precision: str = "fp32",
        num_iterations: int | None = None,
        exit_threshold: float | None = None,
        **options: Any,
    ) -> None:
        if precision not in _PRECISIONS:
            raise UserError(f"unknown precision {precision!r}: expected one of {', '.join(_PRECISIONS)}")
        labels = model_labels(model)
        super().__init__(
            inputs.problem,
            labels,
            pairs=inputs.pairs,
            words=inputs.words,
            decision=inputs.decision,
            **options,
        )
        self._depth = depth_arguments(model, num_iterations, exit_threshold)
        for note in depth_notes(model, num_iterations):
            logger.warning(note)
        self.model, self.tokenizer, self.inputs = model, tokenizer, inputs
        self.precision = resolve_precision(precision)
        self._collator = PaddingCollator(int(tokenizer.pad_token_id or 0), inputs.type.label)
        if inputs.type.tagging:
            check_tags(self.labels)

    @classmethod
    def load(cls, name: str, **options: Any) -> Predictor:
        """Return the predictor of a model that was tuned before, on the GPU where there is one.

        Raises UserError if the model cannot be loaded or has no task head, or an option is out of range.
        """
        with quiet_transformers():
            model, tokenizer, inputs = load_tuned(name)
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        return cls(model, tokenizer, inputs, **options)

    def _cutter(self) -> Cutter:
        return make_cutter(
            self.tokenizer, max_length=self.inputs.max_length, overlap=self.inputs.overlap,
            long_texts=self.inputs.long_texts or "windows",
        )  # fmt: skip

    def _logits(self, rows: Sequence[Row]) -> list[Logits]:
        columns = [{"input_ids": row.input_ids, "token_type_ids": row.token_type_ids} for row in rows]
        given = [{name: ids for name, ids in row.items() if ids is not None} for row in columns]
        encoded = Encoded(given, list(range(len(rows))))
        results = run_model(
            self.model,
            encoded,
            self._collator,
            batch_size=self.batch_size,
            precision=self.precision,
            **self._depth,
        )
        if not all(np.isfinite(values).all() for values in results):
            raise UserError(
                f"the model's outputs are not finite in {self.precision}: "
                + ("its weights are damaged" if self.precision == "fp32" else "use the precision fp32")
            )
        return results


class Embedder(TextModel):
    """A sentence encoder in PyTorch that takes texts and gives vectors; options are as for `embed`."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerFast,
        pooling: Pooling,
        *,
        precision: str = "fp32",
        **options: Any,
    ) -> None:
        width = pooling.width(model.config.hidden_size, model.name_or_path)
        super().__init__("embedding", tuple(map(str, range(width))), pairs=False, **options)
        self.model, self.tokenizer, self.pooling = model, tokenizer, pooling
        self.prompts = pooling.prompts
        self._precision = resolve_precision(precision)
        self._cuts = make_cutter(tokenizer, max_length=longest_text(model, pooling), overlap=0)
        self._pad = PaddingCollator(self._cuts.pad_token_id, "class")

    @classmethod
    def load(cls, name: str, **options: Any) -> Embedder:
        """Return the sentence encoder at a directory or hub id, on the GPU where there is one.

        One without modules of sentence-transformers takes the mean of its tokens. Raises UserError if it cannot be
        loaded.
        """
        with quiet_transformers():
            model, tokenizer = load_encoder(name, "features", role="encoder").model, load_tokenizer(name)
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        return cls(model, tokenizer, find_pooling(name) or Pooling(normalize=False), **options)

    def _cutter(self) -> Cutter:
        return self._cuts

    @torch.inference_mode()
    def _logits(self, rows: Sequence[Row]) -> list[Logits]:
        order = sorted(range(len(rows)), key=lambda row: -len(rows[row].input_ids))
        vectors = np.empty((len(rows), len(self.labels)), np.float32)
        with evaluating(self.model):
            for begin in range(0, len(order), self.batch_size):
                batch = order[begin : begin + self.batch_size]
                padded = self._pad([{"input_ids": rows[row].input_ids} for row in batch])
                padded = {name: tensor.to(self.model.device) for name, tensor in padded.items()}
                inputs = forward_inputs(self.model, padded)
                with autocast(self.model.device.type, self._precision):
                    states = self.model(**inputs).last_hidden_state
                vectors[batch] = self.pooling.of_rows(states.float(), padded["attention_mask"]).cpu().numpy()
        if not np.isfinite(vectors).all():
            raise UserError(
                "the model's vectors are not finite: its weights are damaged, or it needs precision fp32"
            )
        return list(vectors)


def fill_mask(name: str) -> Any:
    """Return the pipeline of Transformers that predicts the masked words of texts."""
    from transformers import pipeline  # loads all of them: a third of a second

    with quiet_transformers():
        return pipeline("fill-mask", model=load_encoder(name).model, tokenizer=load_tokenizer(name))


def gives_vectors(name: str) -> bool:
    """Return whether a model that nobody exported is an encoder without a task, rather than a tuned model."""
    with quiet_transformers():
        return head_of(load_encoder_config(name)) in (None, "features", "masked-lm")
