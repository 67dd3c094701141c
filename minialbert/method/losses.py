"""Equations 6 to 12 of the paper as pure functions of tensors and masks.

Symbols: B batch, T tokens, H heads, D hidden size, V vocabulary, M masked tokens. All losses are computed in
fp32 (fp64 inputs stay fp64), without epsilons except where the release has one, and come in nats.

Every function divides its sum by the number of items it covers (masked tokens, valid tokens, …). Where one
optimiser step is spread over several micro-batches or processes, pass `count`, the items of the whole step,
so that the sum over the parts equals the loss of the whole.

These functions are the reference: what the equations say, with every tensor held whole. Training calls
`hidden_loss` and `embedding_loss` as they are, but computes Eqs. 6 and 10 in `vocabulary` and, wherever rows
are compared as they are made, Eq. 7 in `rows`: the same numbers with less memory and time. Each
function names its fast twin and the test that compares the two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

KLDirection = Literal["teacher-student", "student-teacher"]
AttentionReduction = Literal["rows", "elements"]
TokenReduction = Literal["mean", "sum"]
LayerMapStrategy = Literal["uniform", "last", "alternate"]


def layer_map(
    num_iterations: int, num_teacher_layers: int, strategy: LayerMapStrategy | Sequence[int] = "uniform"
) -> tuple[int, ...]:
    """Return g(l) of Eq. 11: for each student iteration the teacher layer it is aligned with, counted from 1.

    Examples:
        >>> minialbert.layer_map(6, 12), minialbert.layer_map(3, 12, "last"), minialbert.layer_map(2, 12, [4, 0])
        ((2, 4, 6, 8, 10, 12), (10, 11, 12), (4, 0))

    The paper's appendix counts from zero; its layers 1 and 9 are our 2 and 10.

    Args:
        num_iterations: of the student.
        num_teacher_layers: of the teacher.
        strategy: "uniform" spreads the iterations evenly and ends at the last layer; "last" takes the teacher's last
            layers; "alternate" is the release's g(l) = 2l; or one layer per iteration, where 0 leaves an iteration
            without alignment.

    Returns:
        One layer per iteration.

    Raises:
        ValueError: if the map has the wrong length or names a layer that the teacher does not have.
    """
    steps = range(1, num_iterations + 1)
    named = {
        "uniform": [-(-step * num_teacher_layers // num_iterations) for step in steps],
        "last": [num_teacher_layers - num_iterations + step for step in steps],
        "alternate": [2 * step for step in steps],
    }
    if isinstance(strategy, str):
        if strategy not in named:
            raise ValueError(
                f"layer_map {strategy!r} is not known: give {', '.join(named)} or a list of layers"
            )
        layers = tuple(named[strategy])
        if min(layers) < 1 or max(layers) > num_teacher_layers:
            raise ValueError(
                f"layer_map {strategy!r} would match {num_iterations} iterations with teacher layers "
                f"{', '.join(map(str, layers))}, but the teacher has layers 1-{num_teacher_layers}; "
                "give uniform or a list"
            )
        return layers
    layers = tuple(strategy)
    if len(layers) != num_iterations:
        raise ValueError(
            f"layer_map has {len(layers)} entries but the student has {num_iterations} iterations; give one "
            f"teacher layer (1-{num_teacher_layers}, or 0 for none) per iteration"
        )
    for iteration, layer in enumerate(layers, 1):
        if not 0 <= layer <= num_teacher_layers:
            raise ValueError(
                f"layer_map matches iteration {iteration} with teacher layer {layer}, but the teacher has "
                f"layers 1-{num_teacher_layers} (0 leaves an iteration without alignment)"
            )
    return layers


def masked_lm_loss(logits: Tensor, labels: Tensor, *, count: Tensor | float | None = None) -> Tensor:
    """Return the cross-entropy of the masked tokens (Eq. 6), in nats per masked token; 0 when nothing is masked.

    L_MLM = (1 / M) sum_n CE(f_s(X)_n, Y_n)

    Logits are (B, T, V) or (M, V), labels int64 (B, T) or (M,), -100 where the token was not masked;
    ValueError if they do not fit. Eq. 6 is a sum over the sequence, the release a mean over masked tokens;
    `count` gives either. Training calls `vocabulary.vocabulary_losses` instead, which
    `tests/method/fast/test_vocabulary.py` compares with this
    (`test_values_and_gradients_are_those_of_the_plain_formulas`).
    """
    if logits.shape[:-1] != labels.shape:
        raise ValueError(f"labels of shape {tuple(labels.shape)} do not fit logits of {tuple(logits.shape)}")
    total = nn.functional.cross_entropy(
        _full_precision(logits).flatten(0, -2), labels.flatten(), ignore_index=-100, reduction="sum"
    )
    return total / at_least_one((labels != -100).sum() if count is None else count)


def output_loss(
    student_logits: Tensor,
    teacher_logits: Tensor,
    mask: Tensor | None = None,
    *,
    direction: KLDirection = "teacher-student",
    temperature: float = 1.0,
    count: Tensor | float | None = None,
) -> Tensor:
    """Return the KL divergence between the two distributions over the vocabulary at masked tokens (Eq. 10).

    L_out = (1 / M) sum_n W_n D_KL(…), times temperature squared, in nats; 0 when no position counts

    Logits are (B, T, V) or (M, V), and divided by the temperature; the mask is true where a position counts,
    (B, T) or (M,); ValueError if they do not fit. "teacher-student" is KL(teacher || student), the usual one
    and the release's; "student-teacher" is Eq. 10 as printed. Eq. 10 is a sum over the sequence, the release
    a mean over masked tokens; `count` gives either. Training calls `vocabulary.vocabulary_losses` instead,
    which `tests/method/fast/test_vocabulary.py` compares with this
    (`test_values_and_gradients_are_those_of_the_plain_formulas`); `held_out` calls this.
    """
    check_same_shape("logits", student_logits, teacher_logits)
    if mask is not None:
        if mask.shape != student_logits.shape[:-1]:
            raise ValueError(
                f"mask of shape {tuple(mask.shape)} does not fit logits of {tuple(student_logits.shape)}"
            )
        student_logits, teacher_logits = student_logits[mask.bool()], teacher_logits[mask.bool()]
    student, teacher = (
        nn.functional.log_softmax(_full_precision(logits) / temperature, dim=-1)
        for logits in (student_logits, teacher_logits)
    )
    divergence = _kl(student, teacher, direction).sum(-1)
    return temperature**2 * divergence.sum() / at_least_one(divergence.numel() if count is None else count)


def attention_loss(
    student_attentions: Tensor,
    teacher_attentions: Tensor,
    attention_mask: Tensor | None = None,
    *,
    direction: KLDirection = "teacher-student",
    reduction: AttentionReduction = "rows",
    epsilon: float = 0.0,
    log_rows: bool = False,
    count: Tensor | float | None = None,
) -> Tensor:
    """Return the KL divergence between attention rows, averaged over heads and valid queries (Eq. 7), in nats.

    L_att = 1 / (H N) sum_h sum_n D_KL(…)

    Rows are (B, H, T, T), each summing to one, or with `log_rows` their logarithms; ValueError if they differ
    in shape. The mask is (B, T), 1 for tokens and 0 for padding; the rows of padded queries are skipped.
    "teacher-student" is KL(teacher || student); "student-teacher" is Eq. 7 as printed. "rows" is as in Eq. 7;
    "elements" also divides by the key length T, as the release does. `epsilon` is added to both maps before
    the logarithm (1e-12 in the release).

    The release computes KL(teacher || student), reduces by elements (so its term is T times smaller than Eq.
    7's) and skips padded queries only. Training calls `rows.attend_and_compare` and averages with
    `mean_divergence`, which `tests/method/fast/test_rows.py` compares with this
    (`test_the_mean_of_the_divergences_is_the_attention_loss_of_the_rows`). It calls this where rows are kept,
    as with an epsilon, averaged heads, the teacher's dropout (the preset "as-published") or a cached teacher.
    So does `held_out`.
    """
    check_same_shape("attention maps", student_attentions, teacher_attentions)
    student, teacher = _full_precision(student_attentions), _full_precision(teacher_attentions)
    if epsilon or not log_rows:
        student = _log(student.exp() if log_rows else student, epsilon)
        teacher = _log(teacher.exp() if log_rows else teacher, epsilon)
    divergence = _kl(student, teacher, direction).sum(-1)  # (B, H, T)
    return mean_divergence(divergence, attention_mask, reduction=reduction, count=count)


def mean_divergence(
    divergence: Tensor,
    attention_mask: Tensor | None = None,
    *,
    reduction: AttentionReduction = "rows",
    count: Tensor | float | None = None,
) -> Tensor:
    """Return divergences of attention rows, (B, H, T), averaged over heads and valid queries, as Eq. 7 does.

    The rest is as for `attention_loss`.
    """
    _, heads, length = divergence.shape
    mask = None if attention_mask is None else attention_mask[:, None, :]
    return _mean(divergence, mask, count, heads=heads, keys=length if reduction == "elements" else 1)


def hidden_loss(
    student_hidden: Tensor,
    teacher_hidden: Tensor,
    attention_mask: Tensor | None = None,
    *,
    count: Tensor | float | None = None,
) -> Tensor:
    """Return one minus the cosine between student and teacher vectors, averaged over valid tokens (Eq. 8).

    L_hidden = (1 / N) sum_n 1 - cos(H_s_n, H_t_n), between 0 and 2

    Both are (B, T, D), of one iteration and the matched layer; ValueError if they differ in shape. The mask
    is (B, T), 1 for tokens and 0 for padding.
    """
    check_same_shape("hidden states", student_hidden, teacher_hidden)
    student, teacher = _full_precision(student_hidden), _full_precision(teacher_hidden)
    distance = 1 - nn.functional.cosine_similarity(student, teacher, dim=-1)  # (B, T)
    return _mean(distance, attention_mask, count)


def embedding_loss(
    student_embeddings: Tensor,
    teacher_embeddings: Tensor,
    attention_mask: Tensor | None = None,
    *,
    count: Tensor | float | None = None,
) -> Tensor:
    """Return one minus the cosine between the two embedding outputs, averaged over valid tokens (Eq. 12).

    The arithmetic is that of `hidden_loss`, on the inputs of the first iteration (after the projection) and
    the first layer. The paper found that it does not help (Table 4); it is off by default.
    """
    return hidden_loss(student_embeddings, teacher_embeddings, attention_mask, count=count)


def _kl(student_log: Tensor, teacher_log: Tensor, direction: KLDirection) -> Tensor:
    """Return the summands of the KL divergence of two tensors of log-probabilities."""
    target, other = (
        (teacher_log, student_log) if direction == "teacher-student" else (student_log, teacher_log)
    )
    return target.exp() * (target - other)


def _log(probabilities: Tensor, epsilon: float) -> Tensor:
    # Without an epsilon, a zero (a masked key) becomes the smallest normal number: finite, and multiplied by
    # a zero probability, so it adds neither value nor gradient.
    if epsilon:
        return (probabilities + epsilon).log()
    return probabilities.clamp_min(torch.finfo(probabilities.dtype).tiny).log()


def _mean(
    values: Tensor, mask: Tensor | None, count: Tensor | float | None, *, heads: int = 1, keys: int = 1
) -> Tensor:
    """Return the sum of values over valid tokens, divided by heads, keys and `count`, their number when absent."""
    if count is None:
        count = values.numel() // heads if mask is None else mask.sum()
    if mask is not None:
        values = values * mask.to(values.dtype)
    return values.sum() / (heads * keys * at_least_one(count))


def _full_precision(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def at_least_one(count: Tensor | float) -> Tensor | float:
    """Return what a sum over `count` items is divided by, which may be none."""
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)


def check_same_shape(what: str, student: Tensor, teacher: Tensor) -> None:
    """Refuse tensors of student and teacher that differ in shape."""
    if student.shape != teacher.shape:
        raise ValueError(
            f"{what} of the student have shape {tuple(student.shape)}, "
            f"those of the teacher {tuple(teacher.shape)}"
        )
