"""A model with a smaller vocabulary: the tokens that some texts need, and the same numbers for texts of such tokens."""

from __future__ import annotations

import copy
import json
import logging
from collections import Counter
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from minialbert.data.corpora import Corpus, corpus_entries, find_sources, read_documents
from minialbert.data.text_streams import Asked
from minialbert.data.tokenizers import load_tokenizer
from minialbert.errors import UserError, display_name
from minialbert.method.adapters import count_parameters
from minialbert.method.encoders import (
    check_vocabulary,
    find_pooling,
    forward_inputs,
    head_of,
    load_encoder,
    load_encoder_config,
    max_input_length,
    repository_file,
)
from minialbert.method.live import AnyModel, on_disk
from minialbert.method.sentence_vectors import write_pooling
from minialbert.runs.files import check_apart, check_folder, whole_folder, writing
from minialbert.runs.progress import speaking
from minialbert.runs.results import Result
from minialbert.tasks.models import TASK_FILE

logger = logging.getLogger(__name__)

_PROVED_TEXTS, _PROVED_TOKENS = 64, 128
_BATCH = 1000
_ASKED = Asked(documents="", limit="")


def trim(
    model: AnyModel,
    corpus: Corpus,
    output: str | Path,
    *,
    keep: int | None = None,
    min_count: int = 1,
    text_field: str = "text",
    tokenizer: Any = None,  # of a live model
    overwrite: bool = False,
    progress: bool = True,
) -> Result:
    """Write a model with only the tokens of its vocabulary that a corpus needs.

    Special tokens and single characters stay, so that every word can still be spelled; not those that would go on a
    word that no text has, as "##!", for signs are words of their own. A text whose tokens all stay has
    the same tokens and the same hidden states to the bit; this is checked on texts of the corpus before anything is
    written. A word that needs a dropped token is cut into smaller pieces.

    Examples:
        >>> small = minialbert.trim("tuned/model", ["A large house.", "A small river."], "trimmed")
        >>> small.record["tokens"] < small.record["tokens_before"]
        True

    Args:
        model: a directory or hub id, a live model, or the result of `distill` or `finetune`, with a WordPiece tokenizer
            (BERT's).
        corpus: texts, files or folders, as for `prepare`.
        output: the folder to write; it appears complete or not at all.
        keep: at most so many tokens, the most frequent ones. Default: all that occur.
        min_count: how often a token must occur.
        text_field: the field of the text in tables.
        tokenizer: of a live model.
        overwrite: replace an earlier folder.
        progress: show lines.

    Returns:
        What was kept, and the folder, which is a model as any other.

    Raises:
        UserError: if the model or tokenizer is of another kind, an option is out of range, or the proof fails.
    """
    if min_count < 1 or (keep is not None and keep < 1):
        raise UserError(f"expected min_count and keep of at least 1, found {min_count} and {keep}")
    with speaking(progress), on_disk(model, tokenizer) as source:
        check_apart(Path(output), [source])
        check_folder(Path(output), "trim", overwrite=overwrite)
        whole = load_tokenizer(source)
        settings = json.loads(whole.backend_tokenizer.to_str())
        if settings["model"].get("type") != "WordPiece":
            raise UserError(
                f"the tokenizer is a {settings['model'].get('type')} one, and only WordPiece (BERT's) can be trimmed: "
                "how it cuts a word then depends on no token beside those it gives"
            )
        loaded = load_encoder(source, head_of(load_encoder_config(source)) or "features", role="model").model
        check_vocabulary(loaded, whole, str(display_name(source)))
        counts, sample = _count(whole, corpus, text_field)
        ids = _kept(whole, settings, counts, keep, min_count)
        cut = _trimmed_tokenizer(whole, settings, ids)
        smaller = _trimmed_model(loaded, ids)
        proved = _prove(loaded, whole, smaller, cut, sample)
        total = sum(counts.values())
        record = {
            "kind": "trim", "model": display_name(source), "tokens_before": len(settings["model"]["vocab"]),
            "tokens": len(ids), "occurrences_kept": sum(counts[one] for one in ids) / total if total else 1.0,
            "parameters_before": count_parameters(loaded).total, "parameters": count_parameters(smaller).total,
            "texts_proved": proved,
        }  # fmt: skip
        with writing(output, advice=None), whole_folder(output, replaces=()) as staging:
            smaller.save_pretrained(staging)
            cut.save_pretrained(staging)
            if (task := repository_file(source, TASK_FILE)) is not None:
                (staging / TASK_FILE).write_bytes(task.read_bytes())
            if (pooling := find_pooling(source)) is not None:
                width, longest = loaded.config.hidden_size, max_input_length(loaded)
                write_pooling(staging, pooling, width=width, max_tokens=longest)
        logger.info(
            "%s of %s tokens stay; %s of the corpus keep their tokens; %s texts give the same hidden states to the bit",
            f"{len(ids):,}", f"{record['tokens_before']:,}", f"{record['occurrences_kept']:.2%}", proved,
        )  # fmt: skip
    return Result(record, Path(output))


def _count(tokenizer: PreTrainedTokenizerFast, corpus: Corpus, field: str) -> tuple[Counter[int], list[str]]:
    """Return how often each token occurs in a corpus, and some of its texts, short enough to prove something on."""
    counts, sample = Counter[int](), list[str]()
    sources = find_sources(corpus_entries(corpus), field, asked=_ASKED)
    texts = (document.text for one in sources for document in read_documents(one, text_field=field))
    while batch := list(islice(texts, _BATCH)):
        for encoding in tokenizer.backend_tokenizer.encode_batch_fast(batch, add_special_tokens=False):
            counts.update(encoding.ids)
        sample += [text[: 4 * _PROVED_TOKENS] for text in batch[: _PROVED_TEXTS - len(sample)]]
    if not counts:
        raise UserError("the corpus has no text: give --corpus FILES with the texts whose tokens are to stay")
    return counts, sample


def _kept(
    tokenizer: PreTrainedTokenizerFast,
    settings: Mapping[str, Any],
    counts: Counter[int],
    keep: int | None,
    min_count: int,
) -> list[int]:
    """Return the ids that stay, in their order."""
    prefix = settings["model"]["continuing_subword_prefix"]
    vocabulary: Mapping[str, int] = settings["model"]["vocab"]
    always = {one["id"] for one in settings["added_tokens"]} | set(tokenizer.all_special_ids)
    always |= {
        index for token, index in vocabulary.items()
        if len(token.removeprefix(prefix)) == 1 and (len(token) == 1 or not _is_word(tokenizer, token[-1]))
    }  # fmt: skip
    always |= {vocabulary[settings["model"]["unk_token"]]}
    frequent = [index for index, count in counts.most_common() if count >= min_count and index not in always]
    if keep is not None and keep < len(always):
        raise UserError(
            f"keep {keep:,}: special tokens and single characters stay always, and they are {len(always):,}: give more"
        )
    return sorted({*always, *frequent[: None if keep is None else keep - len(always)]})


def _is_word(tokenizer: PreTrainedTokenizerFast, character: str) -> bool:
    """Tell whether a character is always a word of its own, as signs and Chinese ones: no text continues by it."""
    return len({*tokenizer.backend_tokenizer.encode(f"a{character}", add_special_tokens=False).word_ids}) > 1


def _trimmed_tokenizer(
    tokenizer: PreTrainedTokenizerFast, settings: Mapping[str, Any], ids: list[int]
) -> PreTrainedTokenizerFast:
    """Return a tokenizer of those tokens, whose ids are their places in the list."""
    new = {old: place for place, old in enumerate(ids)}
    settings = copy.deepcopy(dict(settings))
    vocabulary = settings["model"]["vocab"]
    settings["model"]["vocab"] = {token: new[old] for token, old in vocabulary.items() if old in new}
    for one in settings["added_tokens"]:
        one["id"] = new[one["id"]]
    if settings.get("padding"):
        settings["padding"]["pad_id"] = new[settings["padding"]["pad_id"]]
    post = settings.get("post_processor") or {}
    for part in (post, *post.get("processors", ())):
        for side in ("sep", "cls"):
            if isinstance(part.get(side), list):
                part[side][1] = new[part[side][1]]
        for special in part.get("special_tokens", {}).values():
            special["ids"] = [new[one] for one in special["ids"]]
    smaller = copy.deepcopy(tokenizer)
    smaller._tokenizer = Tokenizer.from_str(json.dumps(settings))
    return smaller


def _trimmed_model(model: PreTrainedModel, ids: list[int]) -> PreTrainedModel:
    """Return a copy of a model whose tables over the vocabulary have the rows of those ids alone."""
    size, rows = model.config.vocab_size, torch.tensor(ids)
    head = model.get_output_embeddings()
    tables = {model.get_input_embeddings().weight.data_ptr()}
    tables |= {one.data_ptr() for one in head.parameters()} if head is not None else set()
    state = {
        name: value[rows] if value.data_ptr() in tables and len(value) == size else value
        for name, value in model.state_dict().items()
    }
    config = copy.deepcopy(model.config)
    config.vocab_size = len(ids)
    places = {old: place for place, old in enumerate(ids)}
    for name, old in config.to_dict().items():
        if name.endswith("_token_id") and isinstance(old, int) and old in places:
            setattr(config, name, places[old])
    smaller = type(model)(config)
    if other := [name for name, value in smaller.state_dict().items() if value.shape != state[name].shape]:
        raise UserError(
            f"a {config.model_type} model with this head cannot be trimmed: {other[0]} is not cut by tokens"
        )
    smaller.load_state_dict(state)
    return smaller.to(model.dtype).eval()


@torch.no_grad()
def _prove(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    smaller: PreTrainedModel,
    cut: PreTrainedTokenizerFast,
    texts: list[str],
) -> int:
    """Return how many texts have the same tokens; those must have the same hidden states, to the bit."""
    proved, limit = 0, min(_PROVED_TOKENS, max_input_length(model))
    for text in texts:
        before, after = (
            one(text, truncation=True, max_length=limit, return_tensors="pt") for one in (tokenizer, cut)
        )
        if before.tokens() != after.tokens():
            continue
        proved += 1
        pairs = ((model, before), (smaller, after))
        states = [one.base_model(**forward_inputs(one, batch)).last_hidden_state for one, batch in pairs]
        if not torch.equal(*states):
            raise UserError(
                f"the trimmed model gives other hidden states for {text[:60]!r}: nothing is written"
            )
    return proved
