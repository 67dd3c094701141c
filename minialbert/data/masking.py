"""Masked batches: which tokens are hidden is decided when a batch is made, and always in the same way.

Every draw of a mask comes from a counter-based generator (Philox) keyed by (seed, epoch) whose counter starts at the
window's id. So the masks of a window do not depend on the batch it is in, on padding, on the number of
loader processes or on anything drawn before; a resumed run sees what an uninterrupted one sees.

`B` batch, `T` tokens, `V` vocabulary.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from math import isqrt
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from minialbert.data.tokenizers import tokenizer_name
from minialbert.errors import UserError

if TYPE_CHECKING:
    from transformers.tokenization_utils_base import PreTrainedTokenizerBase

    from minialbert.data.window_store import WindowDataset


_ROUNDS = 8
_MASK = 2**64 - 1


def permuted(position: int, count: int, *, seed: int, epoch: int) -> int:
    """Returns what stands at a position in [0, count) of a random order of 0, ..., count - 1; no number twice.

    The order is a function of (count, seed, epoch), all in [0, 2^64), and takes neither memory nor preparation.
    """
    if not 0 <= position < count:
        raise IndexError(f"position {position} of {count}")
    width, height, keys = _network(count, seed, epoch)
    value = position
    while True:
        left, right = divmod(value, height)
        for even, odd in keys:
            left = (left + _mix(right ^ even)) % width
            right = (right + _mix(left ^ odd)) % height
        value = left * height + right
        if value < count:
            return value


# Two, for batches that straddle the end of an epoch, of training and of a test beside it.
@lru_cache(maxsize=4)
def _network(count: int, seed: int, epoch: int) -> tuple[int, int, tuple[tuple[int, int], ...]]:
    """Returns a, b and the keys of each pair of rounds."""
    width = isqrt(count - 1) + 1
    height = -(-count // width)
    words = b"".join(number.to_bytes(8, "little") for number in (seed, epoch, count))
    salts = (pair.to_bytes(16, "little") for pair in range(_ROUNDS // 2))
    material = b"".join(hashlib.blake2b(words, digest_size=16, salt=salt).digest() for salt in salts)
    keys = [int.from_bytes(material[i : i + 8], "little") for i in range(0, len(material), 8)]
    return width, height, tuple(zip(keys[::2], keys[1::2], strict=True))


def _mix(number: int) -> int:
    """Returns 64 well mixed bits of 64 (the finaliser of splitmix64)."""
    number = ((number ^ (number >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    number = ((number ^ (number >> 27)) * 0x94D049BB133111EB) & _MASK
    return number ^ (number >> 31)


IGNORED_LABEL = -100
# One of four counter words of Philox: it keeps these draws apart from those of `prepare`.
_MASKS = 1


class MaskedLanguageModelCollator:
    """Pads windows to one length and masks them as BERT does.

    Each token is chosen with probability `mask_probability`; of the chosen ones 80 % become the mask token,
    10 % a token drawn from the vocabulary without special tokens (possibly the same one), 10 % stay as they
    are. Special tokens (by id, the unknown token among them) are never chosen. Nothing else is guaranteed: a
    short window may well have no chosen token at all.

    With `whole_word` the draw is made once per word, for all of its pieces, which leaves the expected rate
    per token as it is; what becomes of a chosen token is still drawn for each piece. A word is a token and
    the continuations after it: `##` pieces (WordPiece), or pieces without a leading `Ġ` (byte-level BPE) or
    `▁` (sentencepiece), so there punctuation belongs to the word before it.

    The tokenizer gives the mask, padding and special token ids, and is not kept. The padded length is a multiple of
    `pad_to_multiple_of` tokens.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        mask_probability: float = 0.15,
        whole_word: bool = False,
        seed: int = 42,
        pad_to_multiple_of: int | None = 8,
    ) -> None:
        if not 0.0 <= mask_probability <= 1.0:
            raise UserError(f"mask_probability must lie in [0, 1], found {mask_probability}")
        if pad_to_multiple_of is not None and pad_to_multiple_of < 1:
            raise UserError(f"pad_to_multiple_of must be at least 1 or None, found {pad_to_multiple_of}")
        self.mask_probability = mask_probability
        self.whole_word = whole_word
        self.seed = _checked_seed(seed)
        self.pad_to_multiple_of = pad_to_multiple_of
        self.mask_token_id = _required_id(tokenizer, "mask")
        self.pad_token_id = _required_id(tokenizer, "pad")
        self.with_token_types = "token_type_ids" in tokenizer.model_input_names

        tokens = {token_id: token for token, token_id in tokenizer.get_vocab().items()}
        added = getattr(tokenizer, "added_tokens_decoder", {})
        special = {*tokenizer.all_special_ids, *(i for i, token in added.items() if token.special)}
        self._is_special = np.zeros(max([*tokens, *special]) + 1, dtype=bool)
        self._is_special[sorted(special)] = True
        self._ordinary_ids = np.array(sorted(set(tokens) - special), dtype=np.int64)
        self._continues = _continuations(tokenizer, tokens, len(self._is_special)) if whole_word else None

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Returns one masked batch of examples.

        These have "input_ids" (1-D, special tokens included), "window_id", and "epoch" (0 where missing). The batch has
        int64 tensors: "input_ids", "attention_mask" and "labels" (the original id where a token was chosen, -100
        elsewhere) of shape (B, T), "window_ids" of shape (B,), and "token_type_ids" (zeros) where the tokenizer's model
        takes them.
        """
        return self.lay_out(examples, [[index] for index in range(len(examples))])

    def padded_length(self, length: int) -> int:
        """Returns the length, in tokens, to which rows of at most `length` tokens are padded."""
        multiple = self.pad_to_multiple_of or 1
        return -(-length // multiple) * multiple

    def lay_out(
        self, examples: list[dict[str, Any]], rows: Sequence[Sequence[int]]
    ) -> dict[str, torch.Tensor]:
        """Returns one masked batch whose rows hold these examples, by index, side by side."""
        windows = [np.asarray(example["input_ids"], dtype=np.int64) for example in examples]
        longest = max(sum(len(windows[index]) for index in row) for row in rows)
        shape = (len(rows), self.padded_length(longest))
        input_ids = np.full(shape, self.pad_token_id, dtype=np.int64)
        attention_mask = np.zeros(shape, dtype=np.int64)
        labels = np.full(shape, IGNORED_LABEL, dtype=np.int64)
        for row, indices in enumerate(rows):
            begin = 0
            for index in indices:
                window, example = windows[index], examples[index]
                place = slice(begin, begin + len(window))
                draw = {"epoch": int(example.get("epoch", 0)), "window_id": int(example["window_id"])}
                input_ids[row, place], labels[row, place] = self.mask(window, **draw)
                attention_mask[row, place] = 1
                begin = place.stop
        batch = {"input_ids": input_ids, "attention_mask": attention_mask, "labels": labels}
        if self.with_token_types:
            batch["token_type_ids"] = np.zeros(shape, dtype=np.int64)
        batch["window_ids"] = np.array([int(example["window_id"]) for example in examples], dtype=np.int64)
        return {name: torch.from_numpy(array) for name, array in batch.items()}

    def mask(
        self, input_ids: NDArray[np.int64], *, epoch: int, window_id: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Returns the masked ids and the labels, each (T,), of one window: a function of (seed, epoch, window_id).

        Its ids, (T,), are without padding, special tokens included.
        """
        count = len(input_ids)
        generator = _generator(self.seed, epoch, window_id)
        choice, fate = generator.random((2, count))
        replacements = self._ordinary_ids[generator.integers(0, len(self._ordinary_ids), count)]

        special = self._is_special[input_ids]
        if self._continues is not None and count:
            # Every piece takes the draw of its word's first piece.
            starts = ~self._continues[input_ids] | special
            starts[1:] |= special[:-1]
            starts[0] = True
            choice = choice[np.maximum.accumulate(np.where(starts, np.arange(count), 0))]
        chosen = (choice < self.mask_probability) & ~special

        masked = np.where(chosen & (fate < 0.8), self.mask_token_id, input_ids)
        masked = np.where(chosen & (fate >= 0.8) & (fate < 0.9), replacements, masked)
        return masked, np.where(chosen, input_ids, IGNORED_LABEL)


class ShuffledWindows(Dataset[dict[str, Any]]):
    """As many samples as a run needs: the windows of epoch 0 in a random order, then those of epoch 1, ...

    Sample i is window `permuted(i % n)` of epoch `i // n`: a function of (seed, i, n) that is computed on the spot,
    so a run that resumes at sample i, or a rank that reads every k-th batch, needs no state, and none of the
    windows of the others. Read it in order (a sequential sampler): it is shuffled already. Of pairs of windows
    the order is one of pairs: an even number of samples, from an even one on, parts none.
    """

    def __init__(self, windows: WindowDataset, num_samples: int, seed: int) -> None:
        if len(windows) == 0:
            raise UserError("there are no windows to draw samples from: prepare a larger corpus")
        if num_samples < 0:
            raise UserError(f"num_samples must not be negative, found {num_samples}")
        self.windows = windows
        self.num_samples = num_samples
        self.seed = _checked_seed(seed)

    def __len__(self) -> int:
        return self.num_samples

    def __getitem__(self, index: int) -> dict[str, Any]:
        """Returns sample `index` in [0, num_samples): "input_ids" and "window_id", and its "epoch"."""
        if not 0 <= index < self.num_samples:
            raise IndexError(f"sample {index} of {self.num_samples}")
        epoch, position = divmod(int(index), len(self.windows))
        size = getattr(self.windows, "texts_per_row", 1)  # of any data set
        row, text = divmod(position, size)
        window = permuted(row, len(self.windows) // size, seed=self.seed, epoch=epoch) * size + text
        return {**self.windows[window], "epoch": epoch}


def _generator(seed: int, epoch: int, window_id: int) -> np.random.Generator:
    """Returns the generator of one window: 2^128 numbers away from that of the next one."""
    key = np.array([seed, epoch], dtype=np.uint64)
    counter = np.array([0, 0, window_id, _MASKS], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=counter))


def _checked_seed(seed: int) -> int:
    if not 0 <= seed < 2**64:
        raise UserError(f"a seed must lie in [0, 2^64), found {seed}")
    return seed


def _required_id(tokenizer: PreTrainedTokenizerBase, role: str) -> int:
    token_id = getattr(tokenizer, f"{role}_token_id", None)
    if token_id is None:
        advice = "masked language modelling needs the tokenizer of a BERT-like encoder"
        raise UserError(f"the tokenizer {tokenizer_name(tokenizer)} has no {role} token: {advice}")
    return int(token_id)


def _continuations(
    tokenizer: PreTrainedTokenizerBase, tokens: dict[int, str], size: int
) -> NDArray[np.bool_]:
    """Returns, for every id, whether the token goes on with the word before it; shape (V,)."""
    prefixes = {prefix: sum(t.startswith(prefix) for t in tokens.values()) for prefix in ("##", "Ġ", "▁")}
    prefix = max(prefixes, key=lambda p: prefixes[p])
    if prefixes[prefix] == 0:
        told = f"the vocabulary of {tokenizer_name(tokenizer)} marks no words with ##, Ġ or ▁"
        raise UserError(f"whole_word: {told}; mask single tokens instead")
    continues = np.zeros(size, dtype=bool)
    for token_id, token in tokens.items():
        continues[token_id] = token.startswith(prefix) == (prefix == "##")
    return continues
