"""Attention maps of a teacher and its student for a few sentences, side by side as in the paper's Figure 3."""

from __future__ import annotations

import base64
import copy
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minialbert.data.tokenizers import special_affixes
from minialbert.errors import UserError, display_name
from minialbert.method.attention_files import FORMAT_VERSION, MAX_TOKENS, MOST_LETTERS, MOST_SENTENCES
from minialbert.method.encoders import Teacher, load_teacher, max_input_length
from minialbert.method.losses import layer_map
from minialbert.method.objective import Request

# The first is the one of Figure 3.
SENTENCES = (
    "This is the first book I've ever done",
    "Anna thanked Maria because she had helped her.",
    "The film was not funny, and nobody laughed.",
    "Metformin lowers blood sugar in patients with diabetes.",
    "The keys that he had lost were under the chair.",
)

_LEVELS = 255


def attention_maps(
    teacher: Teacher,
    student: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    layers: Sequence[int],
    teacher_name: str,
    student_name: str,
    sentences: Sequence[str] = SENTENCES,
) -> dict[str, Any]:
    """Return where each iteration of a student attends, and where its teacher's layer does.

    Both read one sentence at a time, without padding, in eval mode and fp32. They do so as copies of their
    encoders: the models stay as they are, and no random number is drawn. `layers` is the teacher layer of
    each iteration, from 1; one without (0) is shown beside that of the "uniform" map, and so are all when
    there are no layers. A sentence that is longer than `MAX_TOKENS` tokens, or than either model takes, is
    cut; its text is kept whole.

    A map is base64 of H x T x T bytes (a row per query), each a probability times 255. Raises UserError if a
    sentence is empty or too long, the layers do not fit the models, or one of them has no rows of T
    probabilities to show.
    """
    _check_sentences(sentences)
    chosen = _shown_layers(int(student.config.num_hidden_layers), teacher.num_layers, layers)
    limit = min(MAX_TOKENS, max_input_length(teacher.model), max_input_length(student))
    sides = {
        "teacher": (_reading_copy(teacher.model), chosen),
        "student": (_reading_copy(student), tuple(range(1, len(chosen) + 1))),
    }
    heads: dict[str, int] = {}
    shown = []
    prefix, suffix = special_affixes(tokenizer)  # type: ignore[arg-type]  # every tokenizer here is a fast one
    for text in sentences:
        content = tokenizer(text, add_special_tokens=False, truncation=False, padding=False, verbose=False)
        ids = [*prefix, *content["input_ids"][: max(0, limit - len(prefix) - len(suffix))], *suffix]
        sentence = {"text": text, "tokens": list(map(str, tokenizer.convert_ids_to_tokens(ids)))}
        for side, (encoder, asked) in sides.items():
            rows = _probabilities(encoder, ids, {*asked})
            heads[f"{side}_heads"] = len(rows[asked[0]])
            sentence[side] = [_encoded(rows[layer]) for layer in asked]
        shown.append(sentence)
    return {
        "format_version": FORMAT_VERSION, "teacher": teacher_name, "student": student_name,
        "layer_map": list(chosen), **heads, "sentences": shown,
    }  # fmt: skip


def compare_attention(
    model: str | Path,
    teacher: str | Path,
    *,
    layers: Sequence[int] = (),
    sentences: Sequence[str] = SENTENCES,
) -> dict[str, Any]:
    """Return the attention maps of a saved student and a teacher; the student's tokenizer makes the tokens of both.

    Layers and sentences are as for `attention_maps`. Raises UserError if a model cannot be loaded, their vocabularies
    differ in size, or the maps cannot be made.
    """
    _check_sentences(sentences)
    student = load_teacher(model, role="student")
    assert student.tokenizer is not None
    other = load_teacher(teacher, with_tokenizer=False)
    sizes = [int(one.model.config.vocab_size) for one in (student, other)]
    if sizes[0] != sizes[1]:
        raise UserError(
            f"{model} has a vocabulary of {sizes[0]:,} entries and {teacher} one of {sizes[1]:,}, so they cannot read "
            "the same tokens: give a teacher with the student's tokenizer"
        )
    return attention_maps(
        other, student.model, student.tokenizer, layers=layers, sentences=sentences,
        teacher_name=str(display_name(teacher)), student_name=str(display_name(model)),
    )  # fmt: skip


def _shown_layers(iterations: int, num_layers: int, layers: Sequence[int]) -> tuple[int, ...]:
    spread = layer_map(iterations, num_layers, "uniform")
    if not layers:
        return spread
    try:
        given = layer_map(iterations, num_layers, tuple(layers))
    except ValueError as error:
        raise UserError(str(error)) from error
    return tuple(layer or even for layer, even in zip(given, spread, strict=True))


def _check_sentences(sentences: Sequence[str]) -> None:
    if not 1 <= len(sentences) <= MOST_SENTENCES:
        raise UserError(f"expected between 1 and {MOST_SENTENCES} sentences, found {len(sentences)}")
    for number, text in enumerate(sentences, 1):
        if not text.strip():
            raise UserError(f"sentence {number} is empty: expected text")
        if len(text) > MOST_LETTERS:
            raise UserError(
                f"sentence {number} has {len(text):,} letters, and at most {MOST_LETTERS:,} are taken: give a shorter "
                f"one, of which {MAX_TOKENS} tokens are shown"
            )
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:  # what a command line gives may hold halves of characters
            raise UserError(f"sentence {number} is not valid UTF-8: expected text") from None


def _reading_copy(model: PreTrainedModel) -> Teacher:
    """Return a model's encoder, in fp32 and eval mode on the CPU, as one that shows its rows.

    A copy, because a teacher may be in half precision, layers may be compiled for training, and some encoders
    change with the lengths that they read.
    """
    encoder: PreTrainedModel = copy.deepcopy(model.base_model)
    reading = Teacher(encoder.cpu().float(), has_mlm_head=False, length=MAX_TOKENS)
    if reading.attention_fault:
        raise UserError(
            f"an encoder of the kind {model.config.model_type} does not show a row of attention over all tokens for "
            f"each token ({reading.attention_fault}): its maps cannot be shown"
        )
    return reading


def _probabilities(encoder: Teacher, ids: Sequence[int], layers: Collection[int]) -> dict[int, Tensor]:
    """Return the rows of some layers for one sentence, (H, T, T)."""
    input_ids = torch.tensor([list(ids)])
    batch = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids)}
    with torch.autocast("cpu", enabled=False):
        view = encoder.view(batch, Request(attention_layers=layers))
    return {layer: row[0].exp() if view.log_rows else row[0] for layer, row in view.attention_rows.items()}


def _encoded(rows: Tensor) -> str:
    levels = (rows.float() * _LEVELS).round().clamp(0, _LEVELS).to(torch.uint8)
    return base64.b64encode(levels.cpu().contiguous().numpy().tobytes()).decode("ascii")
