"""Two vocabularies: a teacher reads with its own tokenizer what a student reads, and they meet at shared characters.

`B` windows, `T` tokens of a student, `P` tokens of the teacher that go with these, `V` entries of a vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain, groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn.functional import embedding_bag

from minialbert.data.masking import MaskedLanguageModelCollator
from minialbert.data.tokenizers import serialized_backend, special_affixes, special_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Ints = NDArray[np.int64]


def compared(batch: Mapping[str, Tensor]) -> Tensor:
    """Returns which tokens of a batch have a hidden state of the teacher to be compared with, (B, T)."""
    return batch["aligned_mask"] if "aligned_mask" in batch else batch["attention_mask"]


def means(rows: Tensor, indices: Tensor, offsets: Tensor) -> Tensor:
    """Returns the mean of rows (U, D) over each stretch of `indices` (P,), exact for one and zero for none.

    `offsets` are where stretches begin, and P.
    """
    return embedding_bag(indices, rows.float(), offsets, mode="mean", include_last_offset=True)


def shared_characters(ours: Ints, theirs: Ints) -> Ints:
    """Returns where the tokens of another tokenizer that share characters with each token begin and end, (T, 2).

    Both arguments are what tokens cover of one text, (T, 2) and (U, 2): the first character, and that after the last.
    Where no token shares a character, the end is the beginning.
    """
    ends, starts = np.maximum.accumulate(theirs[:, 1]), np.minimum.accumulate(theirs[::-1, 0])[::-1]
    first = np.searchsorted(ends, ours[:, 0], side="right")
    after = np.searchsorted(starts, ours[:, 1], side="left")
    return np.stack([first, np.where(ours[:, 0] < ours[:, 1], np.maximum(first, after), first)], axis=1)


class PairedCollator(MaskedLanguageModelCollator):
    """Masks windows of a student, and lays beside them what a teacher with another tokenizer reads.

    That is the text which the student's tokens spell, in at most `longest` tokens of the tokenizer `teacher`. Where a
    token of the student's is hidden, the teacher reads its mask token. Where one is replaced, the teacher reads the new
    token too, if both have it and it stands for one token of each; else it reads its mask token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        teacher: PreTrainedTokenizerFast,
        *,
        longest: int,
        **masking: Any,  # of `MaskedLanguageModelCollator`
    ) -> None:
        super().__init__(tokenizer, **masking)
        of_teacher = MaskedLanguageModelCollator(teacher)  # which knows its special tokens
        self._pad, self._mask = of_teacher.pad_token_id, of_teacher.mask_token_id
        self.tokenizer, self._backend = tokenizer, _backend(teacher)
        self._spellings = _spellings(tokenizer)
        self._affixes = [len(ids) for ids in special_affixes(tokenizer)]
        self._prefix, self._suffix = (np.array(ids, dtype=np.int64) for ids in special_affixes(teacher))
        self._room = longest - len(self._prefix) - len(self._suffix)
        self.translation = translate(tokenizer, teacher)
        self._read_as = [ids[0] if len(ids) == 1 else self._mask for ids in self.translation]
        self._read_as[self.mask_token_id] = self._mask

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        """Returns one masked batch, as `MaskedLanguageModelCollator` does, and what the teacher reads.

        That is "teacher_input_ids" and "teacher_attention_mask", (B, U). "teacher_indices" (P,) and "teacher_offsets"
        (B * T + 1,) say for `means` which of these B * U tokens go with each of the student's, and "aligned_mask"
        (B, T) where there is one.
        """
        batch = super().__call__(examples)
        shape = batch["input_ids"].shape
        pairs = zip(examples, batch["input_ids"].numpy(), strict=True)
        read = [self._beside(np.asarray(one["input_ids"], dtype=np.int64), masked) for one, masked in pairs]
        length = self.padded_length(max(len(ids) for ids, _ in read))
        input_ids = np.full((len(read), length), self._pad, dtype=np.int64)
        attention_mask, spans = np.zeros_like(input_ids), np.zeros((*shape, 2), dtype=np.int64)
        for row, (ids, found) in enumerate(read):
            input_ids[row, : len(ids)], attention_mask[row, : len(ids)] = ids, 1
            spans[row, : len(found)] = found + row * length
        counts = (spans[..., 1] - spans[..., 0]).ravel()
        offsets = np.concatenate([[0], counts.cumsum()])
        indices = np.repeat(spans[..., 0].ravel() - offsets[:-1], counts) + np.arange(offsets[-1])
        arrays = {
            "aligned_mask": (counts > 0).reshape(shape), "teacher_input_ids": input_ids,
            "teacher_attention_mask": attention_mask, "teacher_indices": indices, "teacher_offsets": offsets,
        }  # fmt: skip
        return batch | {name: torch.from_numpy(array) for name, array in arrays.items()}

    def _beside(self, window: Ints, masked: Ints) -> tuple[Ints, Ints]:
        """Returns what the teacher reads of a window, and where in it the tokens of each of its tokens are, (T, 2)."""
        before, after = self._affixes
        text, covered = self.spelt(window[before : len(window) - after].tolist())
        encoded = self._backend.encode(text, add_special_tokens=False)
        content = np.array(encoded.ids[: self._room], dtype=np.int64)
        spans = shared_characters(covered, np.array(encoded.offsets, dtype=np.int64).reshape(-1, 2))
        spans = np.where(spans[:, 1:] <= len(content), spans, 0) + len(self._prefix)
        ids = np.concatenate([self._prefix, content, self._suffix])
        prefix, suffix = _in_turn(before, len(self._prefix)), _in_turn(after, len(self._suffix))
        spans = np.concatenate([prefix, spans, suffix + len(ids) - len(self._suffix)])
        apart = spans[1:, 0] >= spans[:-1, 1]  # neighbours share none of the teacher's tokens
        alone = spans[:, 1] - spans[:, 0] == 1
        alone[1:] &= apart
        alone[:-1] &= apart
        for place in np.flatnonzero(masked[: len(window)] != window):
            begin, end = spans[place]
            ids[begin:end] = self._read_as[masked[place]] if alone[place] else self._mask
        return ids, spans

    def spelt(self, window: list[int]) -> tuple[str, Ints]:
        """Returns the text that a student's tokens spell, and the characters that each covers, (T, 2)."""
        text, covered = "", []
        for of_letter, run in groupby(window, lambda token_id: self._spellings[token_id] is None):
            tokens = list(run)
            for group in [tokens] if of_letter else [[one] for one in tokens]:
                spelling = self._spellings[group[0]]
                spelling = _spelling(self.tokenizer, group) if spelling is None else spelling
                covered += [(len(text), len(text) + len(spelling))] * len(group)
                text += spelling
        return text, np.array(covered, dtype=np.int64).reshape(-1, 2)


def _in_turn(ours: int, theirs: int) -> Ints:
    """Returns which of the teacher's special tokens goes with each of the student's: the first with the first."""
    edges = np.minimum(np.arange(ours + 1), theirs)
    return np.stack([edges[:-1], edges[1:]], axis=1)


def translate(student: PreTrainedTokenizerFast, teacher: PreTrainedTokenizerFast) -> list[list[int]]:
    """Returns the teacher's tokens that spell each entry of a student's vocabulary, special ones by their roles."""
    theirs, backend = _spellings(teacher), _backend(teacher)
    known = {spelling: token_id for token_id, spelling in sorted(theirs.items(), reverse=True) if spelling}
    roles = special_ids(teacher)
    same_role = {token_id: roles[role] for role, token_id in special_ids(student).items() if role in roles}
    normal = backend.normalizer.normalize_str if backend.normalizer is not None else str
    pieces: list[list[int]] = [[] for _ in range(max(student.get_vocab().values()) + 1)]
    for token_id, spelling in _spellings(student).items():
        same = teacher.convert_tokens_to_ids(student.convert_ids_to_tokens(token_id))
        if token_id in same_role:
            pieces[token_id] = [same_role[token_id]]
        elif spelling:
            one = same if theirs.get(same) == spelling else known.get(spelling, known.get(normal(spelling)))
            spelt = [one] if one is not None else backend.encode(spelling, add_special_tokens=False).ids
            pieces[token_id] = spelt
    return pieces


def translated(rows: Tensor, translation: list[list[int]]) -> Tensor:
    """Returns rows for the entries of a student's vocabulary, (V, ...), from those of a teacher's.

    A token that both have takes the teacher's row, another the mean of the rows of its pieces, and one that the teacher
    cannot spell the mean of all.
    """
    table, lengths = rows.detach().reshape(len(rows), -1), torch.tensor([0, *map(len, translation)])
    pieces, offsets = torch.tensor([*chain(*translation)]), lengths.cumsum(0)
    found = means(table, pieces.to(rows.device), offsets.to(rows.device))
    found[(lengths[1:] == 0).to(rows.device)] = table.float().mean(0)
    return found.reshape(-1, *rows.shape[1:]).to(rows.dtype)


def _backend(tokenizer: PreTrainedTokenizerFast) -> Tokenizer:
    backend = Tokenizer.from_str(serialized_backend(tokenizer))
    backend.encode_special_tokens = True  # a text cannot spell them
    return backend


def _spellings(tokenizer: PreTrainedTokenizerFast) -> dict[int, str | None]:
    """Returns what each token adds to a text, with a space before a word; None where it is a part of a letter."""
    found = {token_id: _spelling(tokenizer, [token_id]) for token_id in tokenizer.get_vocab().values()}
    special = set(tokenizer.all_special_ids)
    return {i: "" if i in special else None if "\ufffd" in text else text for i, text in found.items()}


def _spelling(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    return tokenizer.convert_tokens_to_string(["a", *tokenizer.convert_ids_to_tokens(ids)])[1:]
