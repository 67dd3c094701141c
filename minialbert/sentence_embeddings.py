"""Lets sentence-transformers read a student as a sentence encoder: the mean of its last hidden states over the tokens.

The files have the layout of sentence-transformers 2, which every later version reads without a word.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from .configuration_minialbert import MiniAlbertConfig
from .errors import UserError

POOLING_FOLDER = "1_Pooling"
SENTENCE_FILES = (
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    f"{POOLING_FOLDER}/config.json",
)
# Heads whose checkpoint is first of all an encoder. Of a task's hidden states nobody knows what they are good for.
SENTENCE_ARCHITECTURES = ("MiniAlbertModel", "MiniAlbertForMaskedLM")


def max_tokens(config: MiniAlbertConfig, tokenizer: PreTrainedTokenizerBase) -> int:
    """Return how many tokens an input may have: what the positions hold, or the tokenizer's limit if lower.

    Args:
        config: of the model.
        tokenizer: its tokenizer.

    Returns:
        The number, special tokens included.
    """
    return int(min(config.max_position_embeddings, tokenizer.model_max_length))


def write_sentence_embeddings(folder: Path, config: MiniAlbertConfig, *, max_seq_length: int) -> list[str]:
    """Write what makes a saved student a model for sentence-transformers.

    Args:
        folder: where its weights, config and tokenizer are.
        config: its configuration.
        max_seq_length: tokens after which a sentence is cut.

    Returns:
        The names of the files written, relative to the folder.

    Raises:
        UserError: if the model has not that many positions.
    """
    if not 1 <= max_seq_length <= config.max_position_embeddings:
        raise UserError(
            f"max_seq_length must lie between 1 and the model's {config.max_position_embeddings} positions, "
            f"got {max_seq_length}"
        )
    contents: dict[str, Any] = {
        "modules.json": [
            {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
            {"idx": 1, "name": "1", "path": POOLING_FOLDER, "type": "sentence_transformers.models.Pooling"},
        ],
        "sentence_bert_config.json": {"max_seq_length": max_seq_length, "do_lower_case": False},
        "config_sentence_transformers.json": {
            "prompts": {},
            "default_prompt_name": None,
            "similarity_fn_name": "cosine",
        },
        f"{POOLING_FOLDER}/config.json": {
            "word_embedding_dimension": config.hidden_size,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_max_tokens": False,
            "pooling_mode_mean_sqrt_len_tokens": False,
        },
    }
    assert tuple(contents) == SENTENCE_FILES
    (folder / POOLING_FOLDER).mkdir(exist_ok=True)
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return list(contents)
