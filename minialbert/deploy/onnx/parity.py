"""The proof that an exported graph computes what the model does: same inputs, both outputs, the largest difference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from minialbert.data.tokenizers import special_affixes
from minialbert.method.encoders import forward_inputs
from minialbert.method.sentence_vectors import Pooling

# Largest difference allowed, as a share of the largest output (of 1, where all are smaller). What fp32 sums in
# another order differs by; and what rounding comes to in students of 3 to 12 iterations.
TOLERANCES = {"fp32": 1e-4, "int8": 0.1, "int8-dynamic": 0.1, "int8, fixed ranges": 0.15, "int4": 0.25}
_SHAPES = ((1, 8), (3, 24), (2, 77), (16, 32), (32, 16), (1, 128))  # batch, longest input
_PADDING = -1e4  # in place of a logit that no answer begins or ends at; it is no output of the model


@dataclass(frozen=True)
class Parity:
    """What a comparison found."""

    max_difference: float  # of two outputs, absolute
    largest_output: float  # of the model, absolute
    # Share of rows (texts, or tokens) with the same highest output; None of a single score.
    argmax_agreement: float | None
    rows: int
    shapes: tuple[tuple[int, int], ...]  # batch and length of every batch
    tolerance: float  # share of the largest output that may differ; of vectors, what a cosine may lack of 1
    lowest_cosine: float | None = None  # of two vectors of one text

    @property
    def allowed(self) -> float:
        """The largest difference that passes."""
        return self.tolerance * max(1.0, self.largest_output)

    @property
    def holds(self) -> bool:
        """Whether the graph computes what the model does."""
        if self.lowest_cosine is not None:
            return self.lowest_cosine >= 1 - self.tolerance
        return self.max_difference <= self.allowed  # never true of NaN

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as plain data, as JSON would give them back."""
        return {**asdict(self), "shapes": [list(shape) for shape in self.shapes], "allowed": self.allowed}


def parity_line(parity: Mapping[str, Any]) -> str:
    """Return a proof, figures as in the record of an export, as one line."""
    agreement = parity["argmax_agreement"]
    agreed = "" if agreement is None else f", argmax agreement {agreement:.2%}"
    if (cosine := parity.get("lowest_cosine")) is not None:
        agreed = f", lowest cosine {cosine:.4f}"
    shapes = ", ".join(f"{batch} x {length}" for batch, length in parity["shapes"])
    return (
        f"largest difference {parity['max_difference']:.2g} of outputs up to {parity['largest_output']:.3g} (allowed "
        f"{parity['allowed']:.2g}){agreed}; {parity['rows']:,} rows in batches of {shapes}"
    )


def parity_batches(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, *, max_length: int
) -> list[dict[str, Tensor]]:
    """Return batches of several sizes and lengths, of English that every Python has; rows but the first are padded."""
    from pydoc_data.topics import topics

    text = " ".join(" ".join(topics[name].split()) for name in sorted(topics)[:12])
    whole = tokenizer(text, add_special_tokens=False, truncation=False, verbose=False)
    pieces: list[int] = whole["input_ids"]
    before, after = special_affixes(tokenizer)
    special = len(before) + len(after)
    batches, start = [], 0
    for rows, longest in _SHAPES:
        length = min(longest, max_length)
        encoded = []
        for row in range(rows):
            count = max(1, length - special - row * (length - special) // (rows + 1))
            if start + count > len(pieces):
                start = 0
            encoded.append({"input_ids": [*before, *pieces[start : start + count], *after]})
            start += count
        padded = tokenizer.pad(encoded, return_tensors="pt", return_attention_mask=True)
        batch = {"token_type_ids": torch.zeros_like(padded["input_ids"]), **padded}
        batches.append(forward_inputs(model, batch))
    return batches


@torch.inference_mode()
def measure_parity(
    model: PreTrainedModel,
    exported: nn.Module,
    batches: list[dict[str, Tensor]],
    outputs: tuple[str, ...],
    *,
    tolerance: float,
    pooling: Pooling | None = None,
    **options: Any,
) -> Parity:
    """Return how far a graph's outputs are from its model's (in eval mode and fp32), where there is no padding.

    With `pooling` it is the vectors of texts, pooled in the graph and by it.
    """
    difference = largest = 0.0
    cosines = []
    agreed = rows = 0
    scores = False
    for batch in batches:
        mask = batch["attention_mask"].bool()
        wanted, found = model(**batch, **options), exported(**batch)
        if pooling is not None:
            wanted = {"sentence_embedding": pooling(wanted["last_hidden_state"], batch)}
            pair = (wanted["sentence_embedding"], found["sentence_embedding"])
            cosines.append(functional.cosine_similarity(*pair).min().item())
        for name in outputs:
            expected, got = _compared(wanted, name, mask), _compared(found, name, mask)
            gap = (expected - got).abs().max().item()
            difference = max(difference, gap) if gap == gap else float("nan")
            largest = max(largest, expected[expected != _PADDING].abs().max().item())
            scores = scores or expected.shape[-1] == 1
            agreed += int((expected.argmax(-1) == got.argmax(-1)).sum())
            rows += expected.shape[0]
        if difference != difference:
            break
    shapes = tuple((batch["input_ids"].shape[0], batch["input_ids"].shape[1]) for batch in batches)
    agreement = None if scores or cosines else agreed / rows
    return Parity(difference, largest, agreement, rows, shapes, tolerance, min(cosines) if cosines else None)


def _compared(outputs: Mapping[str, Tensor], name: str, mask: Tensor) -> Tensor:
    """Return the rows of an output that count: (rows, values)."""
    values = outputs[name].float()
    if values.ndim == 3:  # of every token
        return values[mask]
    if values.shape == mask.shape and name != "logits":  # start and end of an answer: one choice per text
        return values.masked_fill(~mask, _PADDING)
    return values
