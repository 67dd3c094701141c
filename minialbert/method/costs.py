"""What a distillation will cost, before it starts: arithmetic, time and memory."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedConfig

from minialbert.runs.machine import resolve_precision
from minialbert.runs.progress import duration, size

if TYPE_CHECKING:
    from minialbert.method.plan import DistillationPlan

# Share of the measured matrix-multiplication rate that a whole step reaches; the rest is element-wise work.
_EFFICIENCY = 0.6
# How many times as fast another precision has to multiply to be worth a word.
_WORTH_A_CHANGE = 1.3


def forward_flops_per_token(
    config: PreTrainedConfig, length: int, *, adapter_size: int | None = None
) -> float:
    """Return the operations of one encoder forward pass, per token of windows of a length, without any head.

    One multiply-add counts as two. `adapter_size` is the width of the bottleneck of two adapters per layer.
    """
    width = config.hidden_size
    inner = getattr(config, "intermediate_size", None) or getattr(config, "hidden_dim", 4 * width)
    layer = 2 * (4 * width * width + 2 * width * inner) + 4 * length * width
    if adapter_size is not None:
        layer += 2 * 2 * 2 * width * adapter_size
    return float(config.num_hidden_layers * layer)


def step_flops_per_token(
    student: PreTrainedConfig,
    teacher: PreTrainedConfig | None,
    length: int,
    *,
    masked: float,
    teacher_predicts: float,
) -> float:
    """Return the operations of one optimiser step per token: teacher forward, student forward and backward.

    A backward pass counts as two forward passes. `length` are tokens per window, `masked` is the share that
    the student predicts, `teacher_predicts` that which the teacher's masked-LM head is asked for.
    """
    width, vocabulary = student.hidden_size, student.vocab_size
    head = 2 * width * (width + vocabulary)
    if getattr(student, "tie_word_embeddings", True) and hasattr(student, "embedding_size"):
        head = 2 * width**2 + 2 * student.embedding_size * (width + vocabulary)
    adapter_size = getattr(student, "adapter_size", None)
    flops = 3 * (forward_flops_per_token(student, length, adapter_size=adapter_size) + masked * head)
    if teacher is not None:
        width, vocabulary = teacher.hidden_size, teacher.vocab_size
        flops += forward_flops_per_token(teacher, length)
        flops += teacher_predicts * 2 * width * (width + vocabulary)
    return flops


def estimate(plan: DistillationPlan) -> dict[str, int | str]:
    """Return named figures on a plan's size, time and memory on this machine: counts, or text with its unit.

    Time is the arithmetic of all steps at 60 % of the rate that a matrix multiplication reaches here, measured now;
    memory is weights, gradients, optimiser states and the activations of one micro-batch.
    """
    student, teacher = plan.student.config, plan.teacher
    length = plan.windows.window_length
    masked = plan.recipe.data.mask_probability
    asked = teacher if plan.objective.needs_teacher else None
    predicts = (masked if plan.objective.output_positions == "masked" else 1.0) * bool(
        plan.objective.output_weight
    )
    flops = step_flops_per_token(
        student,
        asked.model.config if asked is not None else None,
        length,
        masked=masked,
        teacher_predicts=predicts,
    )
    tokens = plan.max_steps * plan.recipe.training.batch_size * length
    precision = resolve_precision(plan.recipe.training.precision)
    rate = measured_matmul_rate(precision)
    seconds = tokens * flops / (rate * _EFFICIENCY)
    return {
        "student_parameters": plan.student.num_parameters(),
        "student_encoder_parameters": plan.student.base_model.num_parameters(),
        "teacher_parameters": teacher.model.num_parameters() if teacher is not None else 0,
        "steps": plan.max_steps,
        "windows_per_step": plan.recipe.training.batch_size,
        "micro_batch": plan.micro_batch_size,
        "tokens_in_all": tokens,
        "mflops_per_token": round(flops / 1e6),
        "precision": precision if torch.cuda.is_available() else _cpu_precision(precision, rate),
        "matmul_rate": f"{rate / 1e9:,.0f} GFLOP/s measured here",
        "time": f"{duration(seconds)} at {_EFFICIENCY:.0%} of that rate, on one device",
        "memory": size(_memory_bytes(plan, length)),
    }


def measured_matmul_rate(precision: str) -> float:
    """Return the rate of a square matrix multiplication on this machine in FLOP/s, the median of five."""
    on_gpu = torch.cuda.is_available()
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)
    size = 8192 if on_gpu else 1024
    left = torch.randn(size, size, device="cuda" if on_gpu else "cpu").to(dtype)
    times = []
    for _ in range(6):
        started = time.perf_counter()
        left @ left
        if on_gpu:
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return 2 * size**3 / sorted(times[1:])[2]


def _cpu_precision(precision: str, rate: float) -> str:
    """Return a CPU's precision, and whether the other one would multiply faster."""
    other = {"fp32": "bf16", "bf16": "fp32"}.get(precision)
    times = measured_matmul_rate(other) / rate if other is not None else 0.0
    if times < _WORTH_A_CHANGE:
        return precision
    return (
        f"{precision}; {other} products are {times:.1f} times as fast here: --set training.precision={other}"
    )


def _memory_bytes(plan: DistillationPlan, length: int) -> float:
    student, teacher = plan.student.config, plan.teacher
    trained = plan.student.num_parameters()
    weights = 16.0 * trained  # weights, gradients and two moments, fp32
    if teacher is not None:
        weights += 4.0 * teacher.model.num_parameters()
    tokens = plan.micro_batch_size * length
    # Kept for backward, per token and iteration: about 16 vectors of the width and 3 of the inner width.
    activations = (
        4.0 * tokens * student.num_hidden_layers * (16 * student.hidden_size + 3 * student.intermediate_size)
    )
    matched = len(plan.objective.compared_layers(plan.layers))
    rows = 4.0 * tokens * length * student.num_attention_heads * matched * 4
    logits = 4.0 * plan.recipe.data.mask_probability * tokens * student.vocab_size * 6
    return weights + activations + rows + logits
