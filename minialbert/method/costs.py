"""What a training will cost, before it starts: arithmetic, time and memory."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedConfig

from minialbert.errors import UserError
from minialbert.runs.machine import resolve_precision
from minialbert.runs.progress import duration, size
from minialbert.runs.stopping import world_size

if TYPE_CHECKING:
    from minialbert.method.plan import DistillationPlan

# Share of the measured matrix-multiplication rate that a whole step reaches; the rest is element-wise work.
_EFFICIENCY = 0.6
# How many times as fast another precision has to multiply to be worth a word.
_WORTH_A_CHANGE = 1.3
# Operations of a run of seconds: to measure the rate first would take as long.
_FEW_OPERATIONS = 3e11


@dataclass(frozen=True)
class Price:
    """What a training costs: steps of `batch` windows or rows each, operations per token, bytes of memory."""

    steps: int
    batch: int
    units: str
    passes: float
    tokens: int
    flops: float
    precision: str
    memory: float

    @cached_property
    def rate(self) -> float:
        """Rate of a matrix multiplication on this machine, measured when first asked for."""
        return measured_matmul_rate(self.precision)

    @property
    def seconds(self) -> float:
        """Time of all operations at 60 % of that rate, shared by the processes; 0 where they are few."""
        operations = self.tokens * self.flops / world_size()
        return operations / (self.rate * _EFFICIENCY) if operations > _FEW_OPERATIONS else 0.0

    def line(self, first_step: int = 0) -> str:
        """Return the price of what is left after some steps."""
        left = 1 - first_step / self.steps
        time_left = f"about {duration(self.seconds * left)}" if self.seconds * left > 60 else "under a minute"
        return (
            f"training: {self.steps - first_step:,} of {self.steps:,} steps, {self.batch:,} {self.units} each; "
            f"{self.tokens * left:,.0f} tokens, {self.passes * left:,.1f} passes over the data; {time_left} and "
            f"{size(self.memory)} here"
        )

    def check(self, max_hours: float | None) -> None:
        """Raise UserError for a training that takes more hours than that."""
        if max_hours is not None and self.seconds > 3600 * max_hours:
            raise UserError(
                f"{self.line()}: more than {max_hours:g} hours. Give --yes to start it all the same, fewer steps or "
                "data, or a smaller recipe, as --recipe small for distill"
            )


def forward_flops_per_token(
    config: PreTrainedConfig, length: int, *, adapter_size: int | None = None
) -> float:
    """Return the operations of one encoder forward pass, per token of windows of a length, without any head.

    One multiply-add counts as two. `adapter_size` is the width of the bottleneck of two adapters per layer.
    """
    width = config.hidden_size
    layer = 2 * (4 * width * width + 2 * width * _inner_width(config)) + 4 * length * width
    if adapter_size is not None:
        layer += 2 * 2 * 2 * width * adapter_size
    return float(config.num_hidden_layers * layer)


def _inner_width(config: PreTrainedConfig) -> int:
    return getattr(config, "intermediate_size", None) or getattr(config, "hidden_dim", 4 * config.hidden_size)


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


def distillation_price(plan: DistillationPlan) -> Price:
    """Return what a plan costs; memory is that of weights, gradients, optimiser states and one micro-batch."""
    student, teacher = plan.student.config, plan.teacher
    length, steps, batch = plan.windows.window_length, plan.max_steps, plan.recipe.training.batch_size
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
    passes = steps * batch / max(len(plan.windows), 1)
    precision = resolve_precision(plan.recipe.training.precision)
    memory = _memory_bytes(plan, length)
    # A packed step computes no padding.
    tokens = round(passes * plan.windows.num_tokens) if plan.packs else steps * batch * length
    return Price(steps, batch, "windows", passes, tokens, flops, precision, memory)


def estimate(plan: DistillationPlan) -> dict[str, int | str]:
    """Return named figures on a plan's size, time and memory on this machine: counts, or text with its unit."""
    price, teacher = distillation_price(plan), plan.teacher
    seconds = price.tokens * price.flops / (price.rate * _EFFICIENCY)
    return {
        "student_parameters": plan.student.num_parameters(),
        "student_encoder_parameters": plan.student.base_model.num_parameters(),
        "teacher_parameters": teacher.model.num_parameters() if teacher is not None else 0,
        "steps": price.steps,
        "windows_per_step": price.batch,
        "passes": f"{price.passes:,.1f} over {len(plan.windows):,} windows",
        "micro_batch": plan.micro_batch_size,
        "tokens_in_all": price.tokens,
        "mflops_per_token": round(price.flops / 1e6),
        "precision": price.precision
        if torch.cuda.is_available()
        else _cpu_precision(price.precision, price.rate),
        "matmul_rate": f"{price.rate / 1e9:,.0f} GFLOP/s measured here",
        "time": f"{duration(seconds)} at {_EFFICIENCY:.0%} of that rate, on one device",
        "memory": size(price.memory),
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
    tokens = plan.micro_batch_size * length
    frozen = teacher.model.num_parameters() if teacher is not None else 0
    kept = training_bytes(student, plan.student.num_parameters(), frozen, tokens)
    matched = len(plan.objective.compared_layers(plan.layers))
    rows = 4.0 * tokens * length * student.num_attention_heads * matched * 4
    logits = 4.0 * plan.recipe.data.mask_probability * tokens * student.vocab_size * 6
    return kept + rows + logits


def training_bytes(config: PreTrainedConfig, trained: int, frozen: int, tokens: int) -> float:
    """Return the memory of weights that are trained (gradients and two moments, too) or not, and of a micro-batch."""
    # Kept for backward, per token and iteration: about 16 vectors of the width and 3 of the inner width.
    activations = config.num_hidden_layers * (16 * config.hidden_size + 3 * _inner_width(config))
    return 16.0 * trained + 4.0 * frozen + 4.0 * tokens * activations
