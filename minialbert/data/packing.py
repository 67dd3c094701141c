"""Several short windows in one row: less padding, and the same losses as one window per row.

A window attends to itself alone (`block_mask`) and its positions start at 0, so a model gives its tokens the
hidden states that they have in a row of their own. Sums over tokens, masked tokens and valid queries, and
with them all losses that divide by such counts, stay what they were. What depends on the number or the
length of the rows does not: the attention term with `reduction="elements"` also divides by T and cannot be
equal, and windows must be counted by `window_ids`, not by rows.

`B` windows, `R` rows, `T` tokens of the longest row, padded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from minialbert.data.masking import MaskedLanguageModelCollator
from minialbert.errors import UserError


def pack_rows(lengths: Sequence[int], row_length: int) -> list[list[int]]:
    """Returns which windows share a row: first-fit decreasing, a function of the arguments alone.

    The longest window goes first, each into the first row with room for it. No two rows could be made one,
    and there are at most 11/9 as many as needed, plus one. Each row has the indices of its windows in ascending order;
    rows are in the order of their first window, so they are [[0], [1], …] where nothing can be shared.
    """
    for index, length in enumerate(lengths):
        if length > row_length:
            told = f"window {index} of {len(lengths)} has {length} tokens but a packed row holds {row_length}"
            raise UserError(f"{told}: set the row length to that of the longest window, or more")
    free = np.full(len(lengths), row_length, dtype=np.int64)
    rows: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        row = int(np.argmax(free >= lengths[index]))
        free[row] -= lengths[index]
        if row == len(rows):
            rows.append([])
        rows[row].append(index)
    return sorted(sorted(row) for row in rows)


class PackedCollator:
    """Masks windows as another collator does, and lays several in one row.

    What a window's tokens and labels are does not depend on packing: the masks are the other collator's, a
    function of seed, epoch and window. A row holds at most `row_length` tokens, such as the window length of the
    manifest, and is then padded to the other collator's multiple. None is the length to which the other collator would
    pad the batch, so rows get fewer but no longer.
    """

    def __init__(self, collator: MaskedLanguageModelCollator, row_length: int | None = None) -> None:
        if row_length is not None and row_length < 1:
            raise UserError(f"row_length must be at least 1 or None, found {row_length}")
        self.collator = collator
        self.row_length = row_length

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Returns one masked batch of packed rows; where no two windows fit in one row, what the other collator gives.

        It has int64 tensors. Of shape (R, T): "input_ids", "labels" (-100 elsewhere), "attention_mask" (1 for tokens, 0
        for padding), "position_ids" (from 0 in each window; 0 for padding), "sequence_ids" (0, 1, … within the row; -1
        for padding), and "token_type_ids" where the other collator gives them. "window_ids" of shape (B,), in the order
        of the examples.
        """
        lengths = [len(example["input_ids"]) for example in examples]
        rows = pack_rows(lengths, self.row_length or self.collator.padded_length(max(lengths)))
        batch = self.collator.lay_out(examples, rows)
        if len(rows) == len(lengths):
            return batch
        positions, sequences = torch.zeros_like(batch["labels"]), torch.full_like(batch["labels"], -1)
        for row, windows in enumerate(rows):
            own = [lengths[window] for window in windows]
            positions[row, : sum(own)] = torch.cat([torch.arange(length) for length in own])
            sequences[row, : sum(own)] = torch.arange(len(own)).repeat_interleave(torch.tensor(own))
        return {**batch, "position_ids": positions, "sequence_ids": sequences}


def block_mask(sequence_ids: Tensor) -> Tensor:
    """Returns who sees whom, bool (R, 1, T, T): a query sees the keys of its own window.

    Padding sees the padding of its row, so that no row of the softmax is empty; no token sees padding. The
    `sequence_ids` (R, T) are the window within the row, -1 for padding; queries are the third dimension, keys the
    fourth.
    """
    return sequence_ids[:, None, :, None] == sequence_ids[:, None, None, :]
