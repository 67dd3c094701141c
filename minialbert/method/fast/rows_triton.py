"""Triton kernels for attention and the divergence of its rows from a reference: the twin, for CUDA tensors,
of the blocks in `rows`, without which no row ever leaves the chip.

Triton comes with torch's CUDA builds and is imported with this module, which is therefore imported where a
CUDA tensor is met. Each program holds a block of queries (or of keys) and walks over the keys (or queries);
the softmax of student and reference go along together, as in FlashAttention. Everything between two products
is fp32.

Symbols: s scores of the student, t of the reference, p and r their softmax.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-decorators=False
# The kernels' arguments are pointers, strides and numbers, of which only Triton knows the types.
# ruff: noqa: ANN001, ANN202

from __future__ import annotations

import contextlib
import importlib
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from minialbert.method.fast.rows import AttentionInputs
    from minialbert.method.losses import KLDirection

triton: Any
tl: Any
try:
    triton, tl = importlib.import_module("triton"), importlib.import_module("triton.language")
except ImportError:
    triton = tl = None

_LARGEST_HEAD = 128
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_LOWEST = torch.finfo(torch.float32).min  # scores of hidden keys, as the blocks of plain torch have them
if triton is not None:
    _LOWEST = tl.constexpr(_LOWEST)  # the only kind of global number that a kernel may read


def supports(inputs: AttentionInputs, reference: AttentionInputs, dropout: float) -> bool:
    """Return whether `forward` and `backward` can take these tensors.

    They take heads of up to 128 in fp32, bf16 and fp16 (the reference's may have another size and dtype), bool
    masks that broadcast to (B, H, T, T), and any dropout; no additive masks, no biases, and no GPU before
    compute capability 8.0.
    """
    if triton is None or not 0 <= dropout <= 1:
        return False
    device = inputs.query.device
    if device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0):
        return False
    return (
        _fits(inputs, device)
        and _fits(reference, device)
        and reference.query.shape[:-1] == inputs.query.shape[:-1]
        and inputs.query.numel() > 0
    )


def forward(
    inputs: AttentionInputs, reference: AttentionInputs, direction: KLDirection, dropout: float, seed: int
) -> tuple[Tensor | None, Tensor, Tensor, Tensor]:
    """Return what attention attends to, and how far its rows are from the reference's, as `attend_and_compare`.

    Attended values (B, H, T, d) lie in memory as (B, T, H, d), or are None without values; the divergence,
    and log sum exp of the student's and of the reference's scores, which `backward` needs, are (B, H, T) in
    fp32. The seed of the dropout is below 2**62.
    """
    batch, heads, length, _ = inputs.query.shape
    query, key, value, mask = _packed(inputs)
    reference_query, reference_key, _, reference_mask = _packed(reference)
    attended = None if value is None else _like_projection(value)
    divergence, normaliser, other = torch.empty(3, batch, heads, length, device=query.device).unbind()
    kept = 1 / (1 - dropout) if dropout < 1 else 0.0
    block, options = _plan(inputs, reference, direction, dropout)
    with _on(query.device):
        _forward_kernel[(triton.cdiv(length, block) * batch * heads,)](
            query, key, value, mask, reference_query, reference_key, reference_mask,
            attended, divergence, normaliser, other,
            *_strides(query, key, value, reference_query, reference_key, attended),
            *_mask_strides(mask, reference_mask),
            heads, length, inputs.factor, reference.factor, float(dropout), kept, seed,
            **options,
        )  # fmt: skip
    return attended, divergence, normaliser, other


def backward(
    inputs: AttentionInputs,
    reference: AttentionInputs,
    attended: Tensor | None,
    divergence: Tensor,
    normaliser: Tensor,
    other: Tensor,
    d_attended: Tensor | None,
    d_divergence: Tensor,
    direction: KLDirection,
    dropout: float,
    seed: int,
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the gradients of query, key and value, from rows that are computed again.

    They are (B, H, T, d) and lie in memory as (B, T, H, d); of value None without values. Scores of hidden
    keys have no gradient. Arguments are those and the results of `forward`, and the gradients of attended
    values and divergence.
    """
    batch, heads, length, _ = inputs.query.shape
    query, key, value, mask = _packed(inputs)
    reference_query, reference_key, _, reference_mask = _packed(reference)
    d_attended = None if d_attended is None else _rows_packed(d_attended)
    d_query, d_key = _like_projection(query), _like_projection(key)
    d_value = None if value is None else _like_projection(value)
    d_divergence = d_divergence.float().contiguous()
    product = torch.empty_like(divergence)  # <d_attended, attended>: the first kernel's for the second
    kept = 1 / (1 - dropout) if dropout < 1 else 0.0
    block, options = _plan(inputs, reference, direction, dropout)
    grid = (triton.cdiv(length, block) * batch * heads,)
    shared = (heads, length, inputs.factor, reference.factor, float(dropout), kept, seed)
    with _on(query.device):
        _query_kernel[grid](
            query, key, value, mask, reference_query, reference_key, reference_mask,
            attended, d_attended, divergence, normaliser, other, d_divergence, product, d_query,
            *_strides(query, key, value, reference_query, reference_key, attended, d_attended, d_query),
            *_mask_strides(mask, reference_mask),
            *shared,
            **options,
        )  # fmt: skip
        _key_kernel[grid](
            query, key, value, mask, reference_query, reference_key, reference_mask,
            d_attended, divergence, normaliser, other, d_divergence, product, d_key, d_value,
            *_strides(query, key, value, reference_query, reference_key, d_attended, d_key, d_value),
            *_mask_strides(mask, reference_mask),
            *shared,
            **options,
        )  # fmt: skip
    return d_query, d_key, d_value


def _fits(inputs: AttentionInputs, device: torch.device) -> bool:
    query, mask = inputs.query, inputs.mask
    alike = (query.shape, query.dtype, device)
    others = [inputs.key] if inputs.value is None else [inputs.key, inputs.value]
    if mask is not None and (mask.dtype != torch.bool or mask.device != device or mask.dim() > 4):
        return False
    return (
        query.dim() == 4
        and query.shape[-1] <= _LARGEST_HEAD
        and query.dtype in _DTYPES
        and inputs.bias is None
        and all((each.shape, each.dtype, each.device) == alike for each in [query, *others])
    )


def _packed(inputs: AttentionInputs) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Return query, key, value and mask as the kernels read them."""
    query, key, value = _rows_packed(inputs.query), _rows_packed(inputs.key), inputs.value
    # What a mask repeats has stride 0 and no memory.
    mask = None if inputs.mask is None else inputs.mask.expand(*query.shape[:3], query.shape[2])
    return query, key, None if value is None else _rows_packed(value), mask


def _rows_packed(values: Tensor) -> Tensor:
    return values if values.stride(-1) == 1 else values.contiguous()


def _like_projection(values: Tensor) -> Tensor:
    batch, heads, length, size = values.shape
    return values.new_empty(batch, length, heads, size).transpose(1, 2)


def _strides(*tensors: Tensor | None) -> list[int]:
    return [stride for each in tensors for stride in ((0, 0, 0) if each is None else each.stride()[:3])]


def _mask_strides(*masks: Tensor | None) -> list[int | None]:
    # None, which a kernel is compiled for, where all queries are alike.
    strides = [(0, 0, 0, 0) if each is None else each.stride() for each in masks]
    return [stride for b, h, q, k in strides for stride in (b, h, q or None, k)]


def _plan(
    inputs: AttentionInputs, reference: AttentionInputs, direction: KLDirection, dropout: float
) -> tuple[int, dict[str, Any]]:
    """Return the size of a block, of queries as of keys, and what a kernel is compiled for."""
    size, other_size = (max(16, triton.next_power_of_2(each.query.shape[-1])) for each in (inputs, reference))
    layouts = [
        None if each.mask is None else (each.mask.data_ptr(), each.mask.shape, each.mask.stride())
        for each in (inputs, reference)
    ]
    row_bytes = max(size * inputs.query.element_size(), other_size * reference.query.element_size())
    # Of a small card's 99 KB of shared memory: 54 for d = 64 and 51 for d = 128 in bf16, 96 for d = 128 in fp32.
    block = 64 if row_bytes <= 128 else 32
    return block, {
        "SIZE": inputs.query.shape[-1],
        "PADDED": size,
        "OTHER_SIZE": reference.query.shape[-1],
        "OTHER_PADDED": other_size,
        "BLOCK": block,
        "SAME_MASK": layouts[0] == layouts[1],
        "PRECISION": _precision(),
        "DROPS": dropout > 0,
        "TEACHER_FIRST": direction == "teacher-student",
        "num_warps": 4,
        "num_stages": 2 if row_bytes <= 256 else 1,
    }


def _precision() -> str:
    """Return how fp32 matrices are multiplied: as torch was told to multiply them."""
    matmul = torch.backends.cuda.matmul
    told = getattr(matmul, "fp32_precision", None)  # from torch 2.9 on
    return "tf32" if (matmul.allow_tf32 if told is None else told == "tf32") else "ieee"


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def _compiled(function):
    """Compile what runs on the GPU, once for all seeds and lengths."""
    return function if triton is None else triton.jit(function, do_not_specialize=["seed", "length", "heads"])


@_compiled
def _load(values, b, h, by_b, by_h, by_t, rows, length, SIZE: tl.constexpr, PADDED: tl.constexpr):
    """Return rows of one head of (B, H, T, d), with zeros past both ends."""
    columns = tl.arange(0, PADDED)
    inside = (rows[:, None] < length) & (columns[None, :] < SIZE)
    at = values + b * by_b + h * by_h + rows[:, None] * by_t + columns[None, :]
    return tl.load(at, mask=inside, other=0.0)


@_compiled
def _store(to, b, h, by_b, by_h, by_t, rows, length, values, SIZE: tl.constexpr, PADDED: tl.constexpr):
    """Write rows of one head of (B, H, T, d)."""
    columns = tl.arange(0, PADDED)
    inside = (rows[:, None] < length) & (columns[None, :] < SIZE)
    at = to + b * by_b + h * by_h + rows[:, None] * by_t + columns[None, :]
    tl.store(at, values.to(to.dtype.element_ty), mask=inside)


@_compiled
def _seen(mask, b, h, queries, keys, by_b, by_h, by_q, by_k, length):
    """Return which keys are neither hidden nor past the last; for all queries at once where they are alike."""
    seen = keys < length
    if mask is not None:
        at = mask + b * by_b + h * by_h + keys * by_k
        if by_q is None:
            seen = tl.load(at, mask=seen, other=0) != 0
        else:
            seen = tl.load(at + queries * by_q, mask=(queries < length) & seen, other=0) != 0
    return seen


@_compiled
def _scores(left, right, scaling, seen, PRECISION: tl.constexpr):
    return tl.where(seen, tl.dot(left, tl.trans(right), input_precision=PRECISION) * scaling, _LOWEST)


@_compiled
def _keep(seed, queries, keys, length, dropout, kept):
    """Return what dropout multiplies weights with; the same at each place, whichever block it is in."""
    return tl.where(tl.rand(seed, queries * length + keys) >= dropout, kept, 0.0)


@_compiled
def _gradient(s, t, normaliser, other, divergence, d_divergence, TEACHER_FIRST: tl.constexpr):
    """Return the student's rows, and the divergence's gradient with respect to its scores."""
    student = tl.exp(s - normaliser)
    if TEACHER_FIRST:
        gradient = d_divergence * (student - tl.exp(t - other))
    else:
        gradient = d_divergence * student * ((s - normaliser) - (t - other) - divergence)
    return student, gradient


@_compiled
def _place(length, heads, BLOCK: tl.constexpr):
    """Return the positions of a program's block, its number among (B, H), and its sequence and head."""
    blocks = tl.cdiv(length, BLOCK)
    program = tl.program_id(0)
    number = program // blocks
    positions = (program % blocks) * BLOCK + tl.arange(0, BLOCK)
    return positions, number, (number // heads).to(tl.int64), (number % heads).to(tl.int64)


@_compiled
def _forward_kernel(
    query, key, value, mask, rquery, rkey, rmask,
    attended, divergence, normaliser, other,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t,
    rq_b, rq_h, rq_t, rk_b, rk_h, rk_t, o_b, o_h, o_t,
    m_b, m_h, m_q, m_k, rm_b, rm_h, rm_q, rm_k,
    heads, length, scaling, rscaling, dropout, kept, seed,
    SIZE: tl.constexpr, PADDED: tl.constexpr, OTHER_SIZE: tl.constexpr, OTHER_PADDED: tl.constexpr,
    BLOCK: tl.constexpr, SAME_MASK: tl.constexpr, PRECISION: tl.constexpr,
    DROPS: tl.constexpr, TEACHER_FIRST: tl.constexpr,
):  # fmt: skip
    """Attend and compare: a block of queries per program, which walks over the keys."""
    queries, number, b, h = _place(length, heads, BLOCK)
    q = _load(query, b, h, q_b, q_h, q_t, queries, length, SIZE, PADDED)
    rq = _load(rquery, b, h, rq_b, rq_h, rq_t, queries, length, OTHER_SIZE, OTHER_PADDED)
    rows = queries[:, None]
    # Largest score so far, and sums of exp(score - largest): they are scaled down when a larger one comes.
    s_top = tl.full([BLOCK], _LOWEST, tl.float32)
    t_top = tl.full([BLOCK], _LOWEST, tl.float32)
    s_sum = tl.zeros([BLOCK], tl.float32)
    t_sum = tl.zeros([BLOCK], tl.float32)
    difference = tl.zeros([BLOCK], tl.float32)
    total = tl.zeros([BLOCK, PADDED], tl.float32)
    for start in range(0, length, BLOCK):
        keys = start + tl.arange(0, BLOCK)
        columns = keys[None, :]
        k = _load(key, b, h, k_b, k_h, k_t, keys, length, SIZE, PADDED)
        rk = _load(rkey, b, h, rk_b, rk_h, rk_t, keys, length, OTHER_SIZE, OTHER_PADDED)
        seen = _seen(mask, b, h, rows, columns, m_b, m_h, m_q, m_k, length)
        s = _scores(q, k, scaling, seen, PRECISION)
        rseen = seen
        if not SAME_MASK:
            rseen = _seen(rmask, b, h, rows, columns, rm_b, rm_h, rm_q, rm_k, length)
        t = _scores(rq, rk, rscaling, rseen, PRECISION)
        s_larger = tl.maximum(s_top, tl.max(s, 1))
        t_larger = tl.maximum(t_top, tl.max(t, 1))
        # Where all that was seen is hidden the exponent is 0: what lies past the last key needs a mask.
        p = tl.where(columns < length, tl.exp(s - s_larger[:, None]), 0.0)
        r = tl.where(columns < length, tl.exp(t - t_larger[:, None]), 0.0)
        s_shrink = tl.exp(s_top - s_larger)
        t_shrink = tl.exp(t_top - t_larger)
        s_sum = s_sum * s_shrink + tl.sum(p, 1)
        t_sum = t_sum * t_shrink + tl.sum(r, 1)
        if TEACHER_FIRST:
            difference = difference * t_shrink + tl.sum(r * (t - s), 1)
        else:
            difference = difference * s_shrink + tl.sum(p * (s - t), 1)
        if value is not None:
            if DROPS:
                p *= _keep(seed + number, rows, columns, length, dropout, kept)
            v = _load(value, b, h, v_b, v_h, v_t, keys, length, SIZE, PADDED)
            total = total * s_shrink[:, None] + tl.dot(p.to(v.dtype), v, input_precision=PRECISION)
        s_top, t_top = s_larger, t_larger
    s_norm = s_top + tl.log(s_sum)
    t_norm = t_top + tl.log(t_sum)
    gap = s_norm - t_norm
    difference = difference / t_sum + gap if TEACHER_FIRST else difference / s_sum - gap
    at = number.to(tl.int64) * length + queries
    tl.store(divergence + at, difference, mask=queries < length)
    tl.store(normaliser + at, s_norm, mask=queries < length)
    tl.store(other + at, t_norm, mask=queries < length)
    if attended is not None:
        total /= s_sum[:, None]
        _store(attended, b, h, o_b, o_h, o_t, queries, length, total, SIZE, PADDED)


@_compiled
def _query_kernel(
    query, key, value, mask, rquery, rkey, rmask,
    attended, d_attended, divergence, normaliser, other, d_divergence, product, d_query,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t,
    rq_b, rq_h, rq_t, rk_b, rk_h, rk_t, o_b, o_h, o_t,
    do_b, do_h, do_t, dq_b, dq_h, dq_t,
    m_b, m_h, m_q, m_k, rm_b, rm_h, rm_q, rm_k,
    heads, length, scaling, rscaling, dropout, kept, seed,
    SIZE: tl.constexpr, PADDED: tl.constexpr, OTHER_SIZE: tl.constexpr, OTHER_PADDED: tl.constexpr,
    BLOCK: tl.constexpr, SAME_MASK: tl.constexpr, PRECISION: tl.constexpr,
    DROPS: tl.constexpr, TEACHER_FIRST: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of queries per program, which walks over the keys."""
    queries, number, b, h = _place(length, heads, BLOCK)
    q = _load(query, b, h, q_b, q_h, q_t, queries, length, SIZE, PADDED)
    rq = _load(rquery, b, h, rq_b, rq_h, rq_t, queries, length, OTHER_SIZE, OTHER_PADDED)
    rows = queries[:, None]
    at = number.to(tl.int64) * length + queries
    row_divergence = tl.load(divergence + at, mask=queries < length, other=0.0)[:, None]
    row_normaliser = tl.load(normaliser + at, mask=queries < length, other=0.0)[:, None]
    row_other = tl.load(other + at, mask=queries < length, other=0.0)[:, None]
    row_weight = tl.load(d_divergence + at, mask=queries < length, other=0.0)[:, None]
    if d_attended is not None:
        out = _load(attended, b, h, o_b, o_h, o_t, queries, length, SIZE, PADDED)
        d_out = _load(d_attended, b, h, do_b, do_h, do_t, queries, length, SIZE, PADDED)
        row_product = tl.sum(out.to(tl.float32) * d_out.to(tl.float32), 1)
        tl.store(product + at, row_product, mask=queries < length)
    total = tl.zeros([BLOCK, PADDED], tl.float32)
    for start in range(0, length, BLOCK):
        keys = start + tl.arange(0, BLOCK)
        columns = keys[None, :]
        k = _load(key, b, h, k_b, k_h, k_t, keys, length, SIZE, PADDED)
        rk = _load(rkey, b, h, rk_b, rk_h, rk_t, keys, length, OTHER_SIZE, OTHER_PADDED)
        seen = _seen(mask, b, h, rows, columns, m_b, m_h, m_q, m_k, length)
        s = _scores(q, k, scaling, seen, PRECISION)
        rseen = seen
        if not SAME_MASK:
            rseen = _seen(rmask, b, h, rows, columns, rm_b, rm_h, rm_q, rm_k, length)
        t = _scores(rq, rk, rscaling, rseen, PRECISION)
        p, d_s = _gradient(s, t, row_normaliser, row_other, row_divergence, row_weight, TEACHER_FIRST)
        if d_attended is not None:
            v = _load(value, b, h, v_b, v_h, v_t, keys, length, SIZE, PADDED)
            d_p = tl.dot(d_out, tl.trans(v), input_precision=PRECISION)
            if DROPS:
                d_p *= _keep(seed + number, rows, columns, length, dropout, kept)
            d_s += p * (d_p - row_product[:, None])
        d_s = tl.where(seen, d_s, 0.0)
        total += tl.dot(d_s.to(k.dtype), k, input_precision=PRECISION)
    _store(d_query, b, h, dq_b, dq_h, dq_t, queries, length, total * scaling, SIZE, PADDED)


@_compiled
def _key_kernel(
    query, key, value, mask, rquery, rkey, rmask,
    d_attended, divergence, normaliser, other, d_divergence, product, d_key, d_value,
    q_b, q_h, q_t, k_b, k_h, k_t, v_b, v_h, v_t,
    rq_b, rq_h, rq_t, rk_b, rk_h, rk_t, do_b, do_h, do_t,
    dk_b, dk_h, dk_t, dv_b, dv_h, dv_t,
    m_b, m_h, m_q, m_k, rm_b, rm_h, rm_q, rm_k,
    heads, length, scaling, rscaling, dropout, kept, seed,
    SIZE: tl.constexpr, PADDED: tl.constexpr, OTHER_SIZE: tl.constexpr, OTHER_PADDED: tl.constexpr,
    BLOCK: tl.constexpr, SAME_MASK: tl.constexpr, PRECISION: tl.constexpr,
    DROPS: tl.constexpr, TEACHER_FIRST: tl.constexpr,
):  # fmt: skip
    """Gradients of a block of keys and values per program, which walks over the queries; blocks are (k, q)."""
    keys, number, b, h = _place(length, heads, BLOCK)
    k = _load(key, b, h, k_b, k_h, k_t, keys, length, SIZE, PADDED)
    rk = _load(rkey, b, h, rk_b, rk_h, rk_t, keys, length, OTHER_SIZE, OTHER_PADDED)
    if d_attended is not None:
        v = _load(value, b, h, v_b, v_h, v_t, keys, length, SIZE, PADDED)
    rows = keys[:, None]
    k_total = tl.zeros([BLOCK, PADDED], tl.float32)
    v_total = tl.zeros([BLOCK, PADDED], tl.float32)
    for start in range(0, length, BLOCK):
        queries = start + tl.arange(0, BLOCK)
        columns = queries[None, :]
        at = number.to(tl.int64) * length + queries
        row_divergence = tl.load(divergence + at, mask=queries < length, other=0.0)[None, :]
        row_normaliser = tl.load(normaliser + at, mask=queries < length, other=0.0)[None, :]
        row_other = tl.load(other + at, mask=queries < length, other=0.0)[None, :]
        row_weight = tl.load(d_divergence + at, mask=queries < length, other=0.0)[None, :]
        q = _load(query, b, h, q_b, q_h, q_t, queries, length, SIZE, PADDED)
        rq = _load(rquery, b, h, rq_b, rq_h, rq_t, queries, length, OTHER_SIZE, OTHER_PADDED)
        seen = _seen(mask, b, h, columns, rows, m_b, m_h, m_q, m_k, length)
        s = _scores(k, q, scaling, seen, PRECISION)
        rseen = seen
        if not SAME_MASK:
            rseen = _seen(rmask, b, h, columns, rows, rm_b, rm_h, rm_q, rm_k, length)
        t = _scores(rk, rq, rscaling, rseen, PRECISION)
        p, d_s = _gradient(s, t, row_normaliser, row_other, row_divergence, row_weight, TEACHER_FIRST)
        if d_attended is not None:
            row_product = tl.load(product + at, mask=queries < length, other=0.0)[None, :]
            d_out = _load(d_attended, b, h, do_b, do_h, do_t, queries, length, SIZE, PADDED)
            d_p = tl.dot(v, tl.trans(d_out), input_precision=PRECISION)
            weights = p
            if mask is not None:
                # A query from which all is hidden attends evenly: log T was lost beside the lowest score.
                weights = tl.where(row_normaliser > _LOWEST / 2, p, 1.0 / length)
            if DROPS:
                keep = _keep(seed + number, columns, rows, length, dropout, kept)
                weights *= keep
                d_p *= keep
            v_total += tl.dot(weights.to(v.dtype), d_out, input_precision=PRECISION)
            d_s += p * (d_p - row_product)
        d_s = tl.where(seen, d_s, 0.0)
        k_total += tl.dot(d_s.to(q.dtype), q, input_precision=PRECISION)
    _store(d_key, b, h, dk_b, dk_h, dk_t, keys, length, k_total * scaling, SIZE, PADDED)
    if d_value is not None:
        _store(d_value, b, h, dv_b, dv_h, dv_t, keys, length, v_total, SIZE, PADDED)
