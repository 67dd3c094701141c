"""Text to token ids, in this process or as a worker that reads batches from its standard input.

As a worker (`python -m minialbert_runtime.encoding`) it starts in a fraction of a second, and takes a quarter of the
memory that it would take beside torch and transformers.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

Ids = NDArray[np.uint32]

PIECE_CHARACTERS = 100_000
_GROUP_CHARACTERS = 500_000
_MOST_GROWTH = 1000


def check_normalizer(file: Path) -> None:
    """Raises ValueError for a tokenizer.json whose replacements make a text thousands of times longer, or no JSON."""
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    rules, growth = [tokenizer.get("normalizer") if isinstance(tokenizer, dict) else None], 1
    while rules:
        rule = rules.pop()
        if isinstance(rule, dict):
            rules += rule["normalizers"] if isinstance(rule.get("normalizers"), list) else []
            growth *= max(1, *(len(str(rule.get(key) or "")) for key in ("content", "prepend")))
    if growth > _MOST_GROWTH:
        raise ValueError(f"its normaliser makes a text up to {growth:.0e} times longer")


def encode_documents(backend: Tokenizer, texts: Sequence[str]) -> list[Ids]:
    """Returns the content ids of each document, without special tokens, by a tokenizer that neither cuts nor pads.

    Long documents are encoded in pieces, so that beside the ids themselves no more than a group of pieces is
    in memory.
    """
    # A corpus that spells out "[MASK]" or "[SEP]" must not get the special token's id for it.
    backend.encode_special_tokens = True
    parts: list[list[Ids]] = [[] for _ in texts]
    owners: list[int] = []
    group: list[str] = []

    def encode_group() -> None:
        encoded = backend.encode_batch_fast(group, add_special_tokens=False)
        for owner, encoding in zip(owners, encoded, strict=True):
            parts[owner].append(np.array(encoding.ids, dtype=np.uint32))
        group.clear()
        owners.clear()

    characters = 0
    for owner, text in enumerate(texts):
        for piece in split_at_whitespace(text):
            group.append(piece)
            owners.append(owner)
            characters += len(piece)
            if characters >= _GROUP_CHARACTERS:
                encode_group()
                characters = 0
    encode_group()
    return [np.concatenate(part) if part else np.empty(0, dtype=np.uint32) for part in parts]


def split_at_whitespace(text: str, size: int = PIECE_CHARACTERS) -> Iterator[str]:
    """Yields pieces of at most `size` characters that give, encoded apart, the tokens of the whole.

    A cut lies before a run of whitespace, where WordPiece has a word boundary and where byte-level BPE and
    sentencepiece attach the space to the word that follows. Only where no space is found in the second half
    of a piece (one endless word) is it cut anywhere. Pieces are consecutive, and none is empty.
    """
    start = 0
    while len(text) - start > size:
        end = start + size
        cut = text.rfind(" ", start + size // 2, end)
        if cut < 0:
            cut = text.rfind("\n", start + size // 2, end)
        while cut > start and text[cut - 1].isspace():
            cut -= 1
        cut = cut if cut > start else end
        yield text[start:cut]
        start = cut
    if start < len(text):
        yield text[start:]


def serve() -> None:
    """Answers pickled batches of texts with (ids of all texts in a row, their lengths) until the input ends.

    The first message is the serialised tokenizer. The input ends when the parent closes it or dies.
    """
    # Ctrl-C reaches the whole process group; the parent alone decides how to stop.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Whatever a library prints must not get between the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    # Both ends break when the parent dies, which is not an error of this process.
    with contextlib.suppress(EOFError, BrokenPipeError):
        tokenizer = Tokenizer.from_str(pickle.load(sys.stdin.buffer))
        while True:
            encoded = encode_documents(tokenizer, pickle.load(sys.stdin.buffer))
            answer = np.concatenate(encoded), [len(ids) for ids in encoded]
            pickle.dump(answer, answers, pickle.HIGHEST_PROTOCOL)
            answers.flush()


if __name__ == "__main__":
    serve()
