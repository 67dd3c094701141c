"""Vectors of texts by a sentence encoder: from PyTorch or an exported folder, in memory or as a file."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from minialbert_runtime.answers import TextModel, prompt_of
from minialbert_runtime.folder import is_exported
from minialbert_runtime.lines import to_json_line
from numpy.typing import NDArray

from minialbert.errors import UserError, listed, needs_extra
from minialbert.method.live import AnyModel, on_disk
from minialbert.runs.files import check_file, whole_file, writing
from minialbert.runs.progress import quiet_transformers

FORMATS = (".npy", ".parquet", ".jsonl")


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
        from minialbert.tasks.text_models import Embedder  # PyTorch, which an exported folder runs without

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
