"""One distillation step: the plain path beside ours, on the same weights and batch, modes taking turns.

    python benchmarks/speed/distillation_step.py --geometry paper --output results/distillation-step

Modes. plain: as the paper's release computes it (eager attention maps at every layer, logits at every position and
boolean selection, losses in the open, fp32). fp32, bf16: `minialbert distill` at that precision. compiled,
compiled-bf16: the same with compiled layers. The rest are fp32 without one thing each, and tell what it buys: open-rows
(attention maps kept and compared afterwards), open-vocabulary (cross-entropy and KL as separate formulas),
default-allocator (freed memory goes back to the system). A step is forward passes, losses, backward pass, clipping and
AdamW.

First every loss term and the gradient norm are checked against the plain path's; a benchmark of another loss would
say nothing. Peak memory is that of a process of its own per mode, above what it held before the models were built.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BertConfig, BertForMaskedLM, TrainingArguments

from minialbert import MiniAlbertConfig, MiniAlbertForMaskedLM
from minialbert.method import objective as objective_module
from minialbert.method.encoders import Teacher
from minialbert.method.fast.compilation import compile_layers
from minialbert.method.fast.vocabulary import vocabulary_losses
from minialbert.method.losses import attention_loss, hidden_loss, masked_lm_loss, output_loss
from minialbert.method.objective import DistillationObjective, TokenCounts
from minialbert.method.trainer import DistillationTrainer
from minialbert.runs.device import peak_memory_mb
from minialbert.runs.files import write_atomically
from minialbert.runs.machine import _libc_function, keep_freed_memory
from minialbert.runs.records import write_result

MODES = ("plain", "fp32", "bf16", "compiled", "compiled-bf16")
ABLATIONS = ("open-rows", "open-vocabulary", "default-allocator")
TOLERANCE = {"bf16": 2e-2, "compiled-bf16": 2e-2}
VOCABULARY, MASKED = 30522, 0.15
GEOMETRIES = {
    "paper": {"layers": 12, "iterations": 6, "width": 768, "heads": 12, "rank": 128},
    "small": {"layers": 6, "iterations": 3, "width": 384, "heads": 12, "rank": 128},
}
PARTS = {
    "products with weights": ("aten::addmm", "aten::mm"),
    "products of attention where rows are compared": ("aten::bmm",),
    "attention elsewhere, fused": ("aten::_scaled_dot_product_flash_attention_for_cpu",),
    "softmax": ("aten::_softmax", "aten::amax", "aten::exp_", "aten::exp", "aten::log"),
    "GELU and LayerNorm, both ways": (
        "aten::gelu",
        "aten::gelu_backward",
        "aten::native_layer_norm",
        "aten::native_layer_norm_backward",
    ),
    "element by element: sums, products, differences": (
        "aten::add", "aten::add_", "aten::sub", "aten::sub_", "aten::mul", "aten::mul_", "aten::div",
        "aten::addcmul_", "aten::sum",
    ),
    "copies": ("aten::copy_",),
    "AdamW": ("aten::_fused_adamw_",),
}  # fmt: skip
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
Terms = dict[str, float]


def make_batch(batch: int, length: int) -> dict[str, Tensor]:
    """Return masked windows without padding."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(1000, VOCABULARY, (batch, length), generator=generator)
    chosen = torch.rand(batch, length, generator=generator) < MASKED
    tensors = {
        "input_ids": ids.masked_fill(chosen, 103),
        "attention_mask": torch.ones_like(ids),
        "labels": ids.masked_fill(~chosen, -100),
        "window_ids": torch.arange(batch),
    }
    return {name: tensor.to(DEVICE) for name, tensor in tensors.items()}


def make_models(geometry: str, length: int) -> tuple[BertForMaskedLM, MiniAlbertForMaskedLM]:
    """Return a BERT-shaped teacher and a recursive student, with the same random weights each time."""
    shape = GEOMETRIES[geometry]
    torch.manual_seed(0)
    common = {
        "vocab_size": VOCABULARY,
        "hidden_size": shape["width"],
        "num_attention_heads": shape["heads"],
        "intermediate_size": 4 * shape["width"],
        "max_position_embeddings": max(512, length),
    }
    teacher = BertForMaskedLM(BertConfig(num_hidden_layers=shape["layers"], **common))
    student = MiniAlbertForMaskedLM(
        MiniAlbertConfig(
            num_hidden_layers=shape["iterations"],
            embedding_size=shape["rank"],
            adapter_reduction_factor=16,
            hidden_dropout_prob=0.0,
            attention_probs_dropout_prob=0.0,
            **common,
        )
    )
    return teacher.to(DEVICE), student.to(DEVICE)


def flops_per_token(geometry: str, length: int) -> float:
    """Return the floating-point operations that the step needs: teacher forward, student forward and backward."""
    shape = GEOMETRIES[geometry]
    width, rank = shape["width"], shape["rank"]
    block = 12 * width**2 + 2 * length * width  # weights of a layer, and scores and sums of its attention
    adapters = 4 * width * (width // 16)
    teacher = shape["layers"] * block + MASKED * (width**2 + width * VOCABULARY)
    student = shape["iterations"] * (block + adapters) + rank * width
    student += MASKED * (width**2 + width * rank + rank * VOCABULARY)
    return 2.0 * teacher + 6.0 * student


class PlainStep:
    """The release's way to the same loss."""

    def __init__(self, geometry: str, batch: dict[str, Tensor], objective: DistillationObjective) -> None:
        self.teacher, self.student = make_models(geometry, batch["input_ids"].shape[1])
        for model in (self.teacher, self.student):
            model.set_attn_implementation("eager")
        self.teacher.eval().requires_grad_(False)
        self.student.train()
        self.batch, self.objective = batch, objective
        self.parameters = list(self.student.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4)
        self.use_allocator = use_default_memory

    def backward(self) -> Terms:
        """Return the terms of one pass, and leave gradients behind."""
        labels, mask = self.batch["labels"], self.batch["attention_mask"]
        inputs = {"input_ids": self.batch["input_ids"], "attention_mask": mask}
        wanted = {"output_attentions": True, "output_hidden_states": True}
        with torch.no_grad():
            theirs = self.teacher(**inputs, **wanted)
        ours = self.student(**inputs, **wanted)
        chosen = labels != -100
        terms = {
            "mlm": masked_lm_loss(ours.logits, labels),
            "output": output_loss(ours.logits, theirs.logits, chosen),
        }
        layers = self.objective.resolve_layers(len(ours.attentions), len(theirs.attentions))
        pairs = list(enumerate(layers, 1))
        terms["attention"] = sum(
            (attention_loss(ours.attentions[i - 1], theirs.attentions[j - 1], mask) for i, j in pairs),
            torch.zeros((), device=labels.device),
        )
        terms["hidden"] = sum(
            (hidden_loss(ours.hidden_states[i], theirs.hidden_states[j], mask) for i, j in pairs),
            torch.zeros((), device=labels.device),
        )
        total = sum(
            (getattr(self.objective, f"{name}_weight") * value for name, value in terms.items()),
            torch.zeros((), device=labels.device),
        )
        total.backward()
        return {
            **{name: float(value.detach()) for name, value in terms.items()},
            "total": float(total.detach()),
        }


class OurStep:
    """`minialbert distill`'s own trainer, one step at a time."""

    def __init__(
        self,
        mode: str,
        geometry: str,
        batch: dict[str, Tensor],
        objective: DistillationObjective,
        folder: str,
    ) -> None:
        teacher, student = make_models(geometry, batch["input_ids"].shape[1])
        if mode.startswith("compiled"):
            compile_layers(teacher)
            compile_layers(student)
        args = TrainingArguments(
            output_dir=folder, use_cpu=DEVICE == "cpu", bf16=mode.endswith("bf16"), report_to="none"
        )
        self.trainer = DistillationTrainer(student, Teacher(teacher, True), objective, args=args)
        self.model: nn.Module = self.trainer.accelerator.prepare_model(self.trainer.model).train()
        self.batch = batch
        self.counts = TokenCounts.of(batch["labels"], batch["attention_mask"])
        self.parameters = list(self.trainer.model.parameters())
        self.optimizer = torch.optim.AdamW(self.parameters, lr=1e-4, fused=True)
        self.use_allocator = use_default_memory if mode == "default-allocator" else keep_freed_memory
        if mode == "open-rows":
            self.trainer._compares_as_it_attends = False
        self.vocabulary_losses = open_vocabulary if mode == "open-vocabulary" else vocabulary_losses

    def backward(self) -> Terms:
        """Return the terms of one pass, and leave gradients behind."""
        self.trainer.meter.drop_step()
        objective_module.vocabulary_losses = self.vocabulary_losses
        self.trainer.compute_loss(self.model, self.batch, num_items_in_batch=self.counts).backward()
        return self.trainer.meter.step_terms()


def open_vocabulary(
    student_logits: Tensor, labels: Tensor, teacher_logits: Tensor, **_options: object
) -> tuple[Tensor, Tensor]:
    """Return what `vocabulary` does, by the formulas of `losses`; sums in the place of rows."""
    mlm = masked_lm_loss(student_logits, labels, count=1)
    return mlm, output_loss(student_logits, teacher_logits, count=1)


Step = PlainStep | OurStep


def make_step(mode: str, geometry: str, batch: dict[str, Tensor], folder: str) -> Step:
    """Return a mode's step."""
    objective = DistillationObjective()
    if mode == "plain":
        return PlainStep(geometry, batch, objective)
    return OurStep(mode, geometry, batch, objective, folder)


def run(step: Step) -> tuple[Terms, Tensor]:
    """Take one optimiser step; returns its terms and gradient norm."""
    terms = step.backward()
    norm = torch.nn.utils.clip_grad_norm_(step.parameters, 1.0)
    step.optimizer.step()
    step.optimizer.zero_grad()
    return terms, norm


def timed(function: Callable[[], Any]) -> float:
    """Return the seconds of one call."""
    synchronise()
    started = time.perf_counter()
    function()
    synchronise()
    return time.perf_counter() - started


def synchronise() -> None:
    """Wait for the GPU where there is one."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()


def use_default_memory() -> None:
    """Let glibc hand freed blocks back as it does by default in a process that has run for a while."""
    mallopt = _libc_function("mallopt")
    if mallopt is not None:
        for setting, value in ((-4, 65536), (-3, 32 << 20), (-1, 64 << 20)):
            mallopt(setting, value)


def matmul_rate(dtype: torch.dtype) -> float:
    """Return the highest rate, in FLOP/s, of the products that a paper-sized layer consists of."""
    rates = []
    rows = 2048 if DEVICE == "cpu" else 49152  # a GPU is not filled by so few
    for inner, columns in ((768, 3072), (3072, 768), (768, 768)):
        left = torch.randn(rows, inner, dtype=dtype, device=DEVICE)
        weight = torch.randn(columns, inner, dtype=dtype, device=DEVICE)
        repeats = 3 if DEVICE == "cpu" else 100

        def products(left: Tensor = left, weight: Tensor = weight, repeats: int = repeats) -> None:
            for _ in range(repeats):
                nn.functional.linear(left, weight)

        products()
        rates.append(repeats * 2 * rows * inner * columns / timed(products))
    return max(rates)


def check_agreement(steps: dict[str, Step]) -> dict[str, dict[str, float]]:
    """Return how far each mode's terms and gradient norm lie from the plain path's; stop if that is too far."""
    wanted, norm = run(steps["plain"])
    wanted = {**wanted, "gradient norm": norm}
    differences: dict[str, dict[str, float]] = {}
    for mode, step in steps.items():
        if mode == "plain":
            continue
        terms, norm = run(step)
        found = {**terms, "gradient norm": norm}
        differences[mode] = {
            name: abs(float(found[name]) / float(value) - 1) for name, value in wanted.items()
        }
        name, worst = max(differences[mode].items(), key=lambda item: item[1])
        if worst > TOLERANCE.get(mode, 1e-4):
            raise SystemExit(f"{mode}: {name} differs by {worst:.1e} from the plain path's")
    return differences


def measure(geometry: str, modes: list[str], batch: dict[str, Tensor], repeats: int) -> dict[str, Any]:
    """Return seconds of every step and rates of matrix products, modes taking turns."""
    with tempfile.TemporaryDirectory() as folder:
        steps = {mode: make_step(mode, geometry, batch, folder) for mode in modes}
        differences = check_agreement(steps)
        seconds: dict[str, list[float]] = {mode: [] for mode in modes}
        rates: dict[str, list[float]] = {"fp32": [], "bf16": []}
        for turn in range(repeats):
            rates["fp32"].append(matmul_rate(torch.float32))
            rates["bf16"].append(matmul_rate(torch.bfloat16))
            for mode in modes[turn % len(modes) :] + modes[: turn % len(modes)]:
                step = steps[mode]
                step.use_allocator()
                run(step)  # whatever the last mode left in caches and allocator
                seconds[mode].append(timed(lambda step=step: run(step)))
                sys.stderr.write(f"turn {turn + 1}/{repeats} {mode}: {seconds[mode][-1]:.2f} s\n")
    return {"differences": differences, "seconds": seconds, "matmul_rates": rates}


def peak_bytes(mode: str, geometry: str, batch: int, length: int) -> int:
    """Return the memory that two steps need (the second has AdamW's state too), measured in this process."""
    before = peak_memory_mb()
    with tempfile.TemporaryDirectory() as folder:
        step = make_step(mode, geometry, make_batch(batch, length), folder)
        step.use_allocator()
        for _ in range(2):
            run(step)
    return round((peak_memory_mb() - before) * 1e6)


def peak_in_process(mode: str, options: argparse.Namespace) -> int:
    """Return `peak_bytes` of a process of its own."""
    command = [sys.executable, __file__, "--geometry", options.geometry, "--batch", str(options.batch)]
    command += ["--length", str(options.length), "--threads", str(options.threads), "--peak-of", mode]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(answer.stdout.split()[-1])


def profile(mode: str, options: argparse.Namespace) -> str:
    """Return where the time of one step goes, by operation."""
    with tempfile.TemporaryDirectory() as folder:
        step = make_step(mode, options.geometry, make_batch(options.batch, options.length), folder)
        step.use_allocator()
        run(step)
        run(step)
        with torch.profiler.profile() as profiler:
            run(step)
    times: dict[str, float] = {}
    for event in profiler.key_averages():
        part = next((part for part, names in PARTS.items() if event.key in names), "the rest")
        spent = event.self_device_time_total if DEVICE == "cuda" else event.self_cpu_time_total
        times[part] = times.get(part, 0.0) + spent
    total = sum(times.values())
    lines = ["| part | share |", "|---|---|"]
    lines += [f"| {part} | {times.get(part, 0.0) / total:.0%} |" for part in (*PARTS, "the rest")]
    return "\n".join(lines)


def machine() -> dict[str, Any]:
    """Return what the figures depend on."""
    name = torch.cuda.get_device_name() if DEVICE == "cuda" else platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if DEVICE == "cpu" and info.is_file():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        name = names[0] if names else name
    flags = info.read_text() if info.is_file() else ""
    return {
        "device": name,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "avx512_bf16": "avx512_bf16" in flags,
        "amx": "amx_bf16" in flags,
    }


def table(record: dict[str, Any]) -> str:
    """Return the record as Markdown."""
    metrics, tokens = record["metrics"], record["batch"] * record["length"]
    seconds, rates = metrics["seconds"], metrics["matmul_rates"]
    lines = [
        "| mode | ms per step | tokens/s | times plain | peak memory | of plain | share of matmul rate |",
        "|---|---|---|---|---|---|---|",
    ]
    plain = seconds["plain"]
    for mode, values in seconds.items():
        median = statistics.median(values)
        ratio = statistics.median(p / m for p, m in zip(plain, values, strict=True))
        peak = metrics["peak_bytes"][mode]
        ceiling = statistics.median(rates["bf16" if mode.endswith("bf16") else "fp32"])
        share = metrics["flops_per_token"] * tokens / median / ceiling
        lines.append(
            f"| {mode} | {1000 * median:,.0f} | {tokens / median:,.0f} | {ratio:.2f} | {peak / 1e6:,.0f} MB | "
            f"{peak / metrics['peak_bytes']['plain']:.2f} | {share:.0%} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure, print a table, and write the record."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--geometry", choices=GEOMETRIES, default="paper")
    parser.add_argument("--modes", nargs="+", choices=(*MODES, *ABLATIONS), default=list(MODES[:4]))
    parser.add_argument("--name", help="of the record's folder (default: geometry and batch)")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--output", type=Path, help="folder of the record (default: print alone)")
    parser.add_argument("--json", type=Path, help="file for the record alone")
    parser.add_argument("--profile", choices=MODES, help="print where the time of one step goes, and stop")
    parser.add_argument("--memory-only", action="store_true", help="print peak memory alone")
    parser.add_argument("--peak-of", choices=(*MODES, *ABLATIONS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.backends.cuda.matmul.allow_tf32 = False
    if options.peak_of:
        sys.stdout.write(str(peak_bytes(options.peak_of, options.geometry, options.batch, options.length)))
        return
    if options.profile:
        shares = profile(options.profile, options)
        if options.output is not None:
            folder = options.output / (options.name or f"profile-{options.profile}")
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / "table.md", shares + "\n")
        sys.stdout.write(shares + "\n")
        return
    modes = list(dict.fromkeys(["plain", *options.modes]))
    peaks = {mode: peak_in_process(mode, options) for mode in modes}
    if options.memory_only:
        sys.stdout.write(json.dumps(peaks) + "\n")
        return
    measured = measure(options.geometry, modes, make_batch(options.batch, options.length), options.repeats)
    record = {
        "kind": "distillation-step",
        "task": None,
        "seed": 0,
        "model": GEOMETRIES[options.geometry],
        "geometry": options.geometry,
        "batch": options.batch,
        "length": options.length,
        "machine": machine(),
        "metrics": {
            **measured,
            "peak_bytes": peaks,
            "flops_per_token": flops_per_token(options.geometry, options.length),
        },
    }
    page = table(record)
    if options.json is not None:
        write_result(options.json, record)
    if options.output is not None:
        name = options.name or f"{options.geometry}-{options.batch}x{options.length}"
        folder = options.output / name
        folder.mkdir(parents=True, exist_ok=True)
        write_result(folder / "result.json", record)
        write_atomically(folder / "table.md", page + "\n")
    sys.stdout.write(page + "\n")


if __name__ == "__main__":
    main()
