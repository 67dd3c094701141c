"""Vectors of texts by a sentence encoder: from PyTorch or an exported folder, in memory or as a file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from minialbert_runtime.answers import Logits, TextModel, prompt_of
from minialbert_runtime.folder import is_exported
from minialbert_runtime.lines import to_json_line
from minialbert_runtime.windows import Cutter, Row
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from minialbert.data.task_inputs import PaddingCollator, make_cutter
from minialbert.data.tokenizers import load_tokenizer
from minialbert.errors import UserError, listed, needs_extra
from minialbert.method.encoders import evaluating, find_pooling, forward_inputs, load_encoder, longest_text
from minialbert.method.live import AnyModel, on_disk
from minialbert.method.sentence_vectors import Pooling
from minialbert.runs.files import check_file, whole_file, writing
from minialbert.runs.machine import autocast, resolve_precision
from minialbert.runs.progress import quiet_transformers

FORMATS = (".npy", ".parquet", ".jsonl")


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
        model = load_encoder(name, "features", role="encoder").model
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        return cls(model, load_tokenizer(name), find_pooling(name) or Pooling(normalize=False), **options)

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


def embed(
    model: AnyModel,
    texts: str | Iterable[str],
    *,
    dim: int | None = None,
    prompt: str | None = None,
    normalize: bool = False,
    batch_size: int | None = None,
    precision: str = "auto",
    tokenizer: Any = None,
) -> NDArray[np.float32]:
    """Return the vectors of texts, (texts, V), by a sentence encoder.

    Examples:
        >>> vectors = minialbert.embed("bert-base-uncased", ["A large house.", "A small river."])
        >>> vectors.shape
        (2, 64)

    Args:
        model: a directory or hub id of a sentence encoder, a folder that `export(..., head="features")` wrote of one, a
            live model (the mean of its tokens), or the result of `distill`.
        texts: a text, or texts. Longer ones than the model reads at once are read in windows, see `TextModel.embed`.
        dim: so many leading dimensions (Matryoshka), brought to length one; all without.
        prompt: the name of one of the model's prompts, or a text of your own, to put before each text.
        normalize: bring vectors to length one where the model does not, which those with a module Normalize always do.
        batch_size: inputs per forward pass.
        precision: "auto", "fp32", "bf16" or "fp16", of a model in PyTorch.
        tokenizer: of a live model.

    Returns:
        float32 vectors, in the order of the texts.

    Raises:
        UserError: if the model cannot be loaded, an option is out of range, or a text is none.
    """
    with quiet_transformers(), on_disk(model, tokenizer) as source:
        embedder = load_embedder(source, batch_size=batch_size, precision=precision)
        given = [texts] if isinstance(texts, str) else texts
        return embedder.embed(given, dim=dim, prompt=prompt_of(embedder, prompt), normalize=normalize)


def load_embedder(name: str, *, precision: str = "auto", **options: Any) -> TextModel:
    """Return the sentence encoder of a directory, hub id, or exported folder."""
    if not is_exported(name):
        return Embedder.load(name, precision=precision, **options)
    with needs_extra("export", "vectors of an exported folder"):
        from minialbert_runtime.model import Model
    return Model(name, **options)


def check_vectors_file(path: Path, *, overwrite: bool) -> None:
    """Refuse a file of another kind than `write_vectors` writes, or one that is there already."""
    if path.suffix not in FORMATS:
        raise UserError(f"{path}: vectors go into a file that ends with {listed(FORMATS)}")
    check_file(path, overwrite=overwrite)


def write_vectors(path: Path, texts: Sequence[str], vectors: NDArray[np.float32]) -> None:
    """Write vectors, (texts, V), by the extension: .npy alone, .parquet or .jsonl with their texts."""
    with writing(path), whole_file(path, "xb") as file:
        if path.suffix == ".npy":
            np.save(file, vectors)
        elif path.suffix == ".jsonl":
            for text, vector in zip(texts, vectors.tolist(), strict=True):
                file.write(f"{to_json_line({'text': text, 'vector': vector})}\n".encode())
        else:
            import pyarrow as pa
            import pyarrow.parquet as pq

            kind = pa.list_(pa.float32(), vectors.shape[1])
            pq.write_table(pa.table({"text": list(texts), "vector": pa.array(list(vectors), kind)}), file)
