"""What a training will cost, before it starts: arithmetic, time and memory."""

from __future__ import annotations

import itertools
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import torch
from transformers import PreTrainedConfig

from minialbert.errors import UserError
from minialbert.method.modeling_minialbert import build_adapters
from minialbert.runs.device import bf16_speed, resolve_precision
from minialbert.runs.directory import RunDirectory
from minialbert.runs.progress import duration, size
from minialbert.runs.stopping import world_size

if TYPE_CHECKING:
    from minialbert.method.plan import DistillationPlan
    from minialbert.runs.trainer import ResumableTrainer

logger = logging.getLogger(__name__)

# Share of the measured matrix-multiplication rate that a whole step reaches; the rest is element-wise work.
_EFFICIENCY = 0.6
# How many times as fast bf16 has to multiply for a whole step, a third of which is not products, to gain clearly.
_WORTH_A_CHANGE = 1.5
_MEASURED_TOKENS = 1024
# How many times as long as later batches the first one may take, if it only warms up, and if layers are compiled.
_WARM_UP, _COMPILING = 3.0, 1000.0
# Operations of a run of seconds: to measure the rate first would take as long.
_FEW_OPERATIONS = 3e11
# Seconds: a run of more is measured first, over so many, unless a batch alone takes so long.
_WORTH_MEASURING, _REHEARSAL, _LONG_BATCH = 60.0, 3.0, 20.0
_STEP_SECONDS = 0.03  # of a step of one short row on two cores, which has next to no operations


@dataclass(frozen=True)
class Price:
    """What a training costs: steps of `batch` windows or rows each, operations per token, bytes of memory.

    `evaluations` are the operations of all of them for one of the training's.
    """

    steps: int
    batch: int
    units: str
    passes: float
    tokens: int
    flops: float
    precision: str
    memory: float
    evaluations: float
    measured: float | None = None  # seconds of the steps, where they are known better

    @cached_property
    def rate(self) -> float:
        """Rate of a matrix multiplication on this machine, measured when first asked for."""
        return measured_matmul_rate(self.precision)

    @property
    def seconds(self) -> float:
        """Time with evaluations: as measured, or on all processes; of few operations that of the steps alone."""
        if self.measured is not None:
            return self.measured * (1 + self.evaluations)
        few = self.tokens * self.flops * (1 + self.evaluations) / world_size() <= _FEW_OPERATIONS
        return self.steps * _STEP_SECONDS if few else self.computed(world_size())

    def computed(self, devices: int = 1) -> float:
        """Return the time of the operations at 60 % of that rate, and of the steps, evaluations included."""
        operations = self.tokens * self.flops * (1 + self.evaluations) / devices
        return operations / (self.rate * _EFFICIENCY) + self.steps * _STEP_SECONDS

    def line(self, first_step: int = 0) -> str:
        """Return the price of what is left after some steps."""
        left = 1 - first_step / self.steps
        time_left = "under a minute"
        if self.seconds * left > 60:
            speed = self.tokens / self.seconds * (1 + self.evaluations)
            time_left = f"about {duration(self.seconds * left)} with evaluations, at {speed:,.0f} tokens/s"
        return (
            f"training: {self.steps - first_step:,} of {self.steps:,} steps, {self.batch:,} {self.units} each; "
            f"{self.tokens * left:,.0f} tokens, {self.passes * left:,.1f} passes over the data; {time_left} on this "
            f"machine, and {size(self.memory)} beside the libraries"
        )

    def check(self, max_hours: float | None) -> None:
        """Raise UserError for a training that takes more hours than that."""
        if max_hours is not None and self.seconds > 3600 * max_hours:
            raise UserError(
                f"{self.line()}: more than {max_hours:g} hours. Give --yes to start anyway, fewer steps or "
                "data, or a smaller recipe, as --recipe small for distill"
            )


def weighed(
    price: Price,
    max_hours: float | None,
    make_trainer: Callable[[RunDirectory], ResumableTrainer],
    step: float,
    *,
    compiles: bool = False,
) -> Price:
    """Return a price within the hours; one of more than a minute goes by the speed of a few batches.

    Nothing is learnt from these. `step` are the tokens of one step. Layers that are compiled, for which the first batch
    takes minutes, and several processes, which have to agree, go by the arithmetic. More hours are a UserError.
    """
    price.check(max_hours)
    if price.measured is not None or price.seconds < _WORTH_MEASURING or compiles or world_size() > 1:
        return price
    with TemporaryDirectory() as folder:
        begun = time.monotonic()
        for number, (seconds, _) in enumerate(make_trainer(RunDirectory(folder)).rehearse()):
            price = replace(price, measured=seconds * step * price.steps)
            if time.monotonic() - begun > (_REHEARSAL if number else _LONG_BATCH):
                break
    price.check(max_hours)
    return price


def fitted_length(
    make_trainer: Callable[[RunDirectory], ResumableTrainer],
    begun: float,
    allowed: float,
    *,
    step: float,
    evaluation: float,
    every: float,
    fewest: int,
    apart: float,
    compiles: bool = False,
) -> tuple[int, float]:
    """Return the steps that fit into `allowed` seconds since `begun`, and their seconds, as a rehearsal measures them.

    `step`, `evaluation` and `apart` are the tokens of one step, of one evaluation and of all evaluations outside the
    training, in which there is one `every` so many steps, and `fewest` in any case. A time into which no step fits is a
    UserError, after the first batch where that shows it.
    """
    logger.info("time: some batches are measured first, from which nothing is learnt")
    with TemporaryDirectory() as folder:
        trainer, warm = make_trainer(RunDirectory(folder)), 0.0
        for training, forward in trainer.rehearse():
            spent = trainer.sum_over_processes([time.monotonic() - begun])[0] / world_size()
            one, each, last = training * step, forward * evaluation, forward * apart
            faster = 1.0 if warm else _COMPILING if compiles else _WARM_UP
            left = (allowed - spent) * faster - last
            steps = int(min(left / (one + each / every), (left - fewest * each) / one))
            if steps < 1:
                raise UserError(
                    f"time: too short, as a step takes {one:.1f} s, each of {fewest} evaluations {each:.1f} s, and "
                    f"those before and after the training {last:.1f} s: give "
                    f"{math.ceil((spent + one + fewest * each + last) / 54)}m or more, a smaller batch, or less to "
                    "evaluate"
                )
            if warm and spent - warm > min(left / 50, 60):
                break
            warm = warm or spent
    return steps, steps * one


def faster_precision(
    asked: str, config: PreTrainedConfig, tokens: int, price: Price
) -> tuple[str, list[str]]:
    """Return the precision of a training with micro-batches of some tokens, and why, where "auto" was measured.

    A GPU decides by what it has; short runs, and those of several processes, which have to agree, are not measured.
    """
    short = price.tokens * price.flops < _FEW_OPERATIONS
    if asked != "auto" or torch.cuda.is_available() or world_size() > 1 or short:
        return resolve_precision(asked), []
    times = bf16_speed(config.hidden_size, _inner_width(config), min(tokens, _MEASURED_TOKENS))
    chosen = "bf16" if times >= _WORTH_A_CHANGE else "fp32"
    told = f"bf16 is {times:.1f} times as fast as fp32 in products of this size on this machine"
    if chosen == "fp32" and times > 1:  # else it reads as if the slower one were taken
        told += f", and is taken from {_WORTH_A_CHANGE:g} times on"
    return chosen, [f"precision: {chosen}; {told}"]


def forward_flops_per_token(config: PreTrainedConfig, length: int) -> float:
    """Return the operations of one encoder forward pass, per token of windows of a length, without any head.

    One multiply-add counts as two. The linear layers of adapters count, what they do by dimension does not.
    """
    width = config.hidden_size
    layer = 2 * (4 * width * width + 2 * width * _inner_width(config)) + 4 * length * width
    if getattr(config, "adapter_reduction_factor", None) is not None:
        with torch.device("meta"):  # shapes alone
            adapters = itertools.chain(*build_adapters(config, 1))
            linear = (part for one in adapters for part in one.modules() if isinstance(part, torch.nn.Linear))
            layer += 2 * sum(part.weight.numel() for part in linear)
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
    teacher_share: float = 1.0,
) -> float:
    """Return the operations of one optimiser step per token: teacher forward, student forward and backward.

    A backward pass counts as two forward passes. `length` are tokens per window, `masked` is the share that
    the student predicts, `teacher_predicts` that which the teacher's masked-LM head is asked for.
    """
    width, vocabulary = student.hidden_size, student.vocab_size
    head = 2 * width * (width + vocabulary)
    if getattr(student, "tie_word_embeddings", True) and hasattr(student, "embedding_size"):
        head = 2 * width**2 + 2 * student.embedding_size * (width + vocabulary)
    flops = 3 * (forward_flops_per_token(student, length) + masked * head)
    if teacher is not None:
        width, vocabulary = teacher.hidden_size, teacher.vocab_size
        flops += teacher_share * forward_flops_per_token(teacher, length)
        flops += teacher_predicts * 2 * width * (width + vocabulary)
    return flops


def distillation_price(plan: DistillationPlan) -> Price:
    """Return what a plan costs; memory is that of weights, gradients, optimiser states and one micro-batch."""
    student, teacher = plan.student.config, plan.teacher
    length, steps, batch = plan.windows.window_length, plan.max_steps, plan.recipe.training.batch_size
    masked = plan.collator.mask_probability
    asked = teacher if plan.objective.needs_teacher else None
    predicts = masked if plan.objective.output_positions == "masked" else 1.0
    flops = step_flops_per_token(
        student, asked.model.config if asked is not None else None, length, masked=masked,
        teacher_predicts=predicts if plan.objective.output_weight else 0.0, teacher_share=plan.teacher_share,
    )  # fmt: skip
    alone = step_flops_per_token(student, None, length, masked=masked, teacher_predicts=0.0)
    measured = evaluations(plan)
    evaluated = measured["evaluation"] * steps / measured["every"] + measured["apart"]
    passes = steps * batch / max(len(plan.windows), 1)
    precision = resolve_precision(plan.recipe.training.precision)
    memory = _memory_bytes(plan, length)
    # A packed step computes no padding.
    tokens = round(passes * plan.windows.num_tokens) if plan.packs else steps * batch * length
    more = evaluated * (flops - alone * 2 / 3) / (tokens * flops)  # without the backward pass
    return Price(steps, batch, "windows", passes, tokens, flops, precision, memory, more)


def evaluations(plan: DistillationPlan) -> dict[str, float]:
    """Return the tokens of one evaluation and of all before and after the steps, and the steps between two."""
    training, held_out = plan.recipe.training, len(plan.held_out)
    tokens = (
        plan.windows.num_tokens / max(len(plan.windows), 1) * min(training.eval_windows or held_out, held_out)
    )
    return {"evaluation": tokens, "apart": 3 * tokens, "every": training.eval_steps}


def estimate(plan: DistillationPlan) -> dict[str, int | str]:
    """Return named figures on a plan's size, time and memory on this machine: counts, or text with its unit."""
    price, teacher = distillation_price(plan), plan.teacher
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
        "precision": price.precision,
        "matmul_rate": f"{price.rate / 1e9:,.0f} GFLOP/s measured on this machine",
        "time": f"{duration(price.computed())} at {_EFFICIENCY:.0%} of that rate, on one device, with evaluations",
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


def _memory_bytes(plan: DistillationPlan, length: int) -> float:
    student, teacher = plan.student.config, plan.teacher
    tokens = plan.micro_batch_size * length
    frozen = teacher.model.num_parameters() if teacher is not None else 0
    kept = training_bytes(student, plan.student.num_parameters(), frozen, tokens)
    matched = len(plan.objective.compared_layers(plan.layers))
    rows = 4.0 * tokens * length * student.num_attention_heads * matched * 4
    logits = 4.0 * plan.collator.mask_probability * tokens * student.vocab_size * 6
    return kept + rows + logits


def training_bytes(config: PreTrainedConfig, trained: int, frozen: int, tokens: int) -> float:
    """Return the memory of weights that are trained (gradients and two moments, too) or not, and of a micro-batch."""
    # Kept for backward, per token and iteration: about 16 vectors of the width and 3 of the inner width.
    activations = config.num_hidden_layers * (16 * config.hidden_size + 3 * _inner_width(config))
    return 16.0 * trained + 4.0 * frozen + 4.0 * tokens * activations
