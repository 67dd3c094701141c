"""What a teacher's layers can read from the embeddings that a factorised student starts with.

    python benchmarks/quality/low_rank_start.py --teacher TEACHER --data windows/ --output results/low-rank-start

The teacher predicts masked tokens with its own embeddings, then with those of students of several ranks before their
first step: as `init: teacher` starts them, and as it did before ("svd"): the word table's leading singular vectors, its
rows weighted by frequency. The student's decoder is tried in the same way, on the teacher's last hidden states.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from minialbert.errors import display_name
from minialbert.method.plan import DistillationPlan, plan_distillation
from minialbert.method.start import embedding_tables
from minialbert.recipes.load import apply_overrides, load_recipe
from minialbert.runs.files import write_atomically
from minialbert.runs.records import write_result


def batches(plan: DistillationPlan, held_out: bool, count: int) -> list[dict[str, Tensor]]:
    """Return masked batches of 16 windows, evenly spread."""
    windows = plan.held_out if held_out else plan.windows
    chosen = [windows[index * len(windows) // count] for index in range(count)]
    return [plan.collator(chosen[begin : begin + 16]) for begin in range(0, count, 16)]


@torch.no_grad()
def read(
    plan: DistillationPlan, samples: list[dict[str, Tensor]], *, body: bool, head: bool
) -> dict[str, float]:
    """Return masked-token accuracy and loss of the teacher with the student's embeddings or decoder in place."""
    teacher, student = plan.teacher.model, plan.student.eval()
    decode = student.mlm_head if head else teacher.cls
    with embeddings_of(student, teacher) if body else nullcontext():
        logits, labels = [], []
        for batch in samples:
            states = teacher.base_model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"])
            masked = batch["labels"] != -100
            logits.append(decode(states.last_hidden_state[masked]))
            labels.append(batch["labels"][masked])
    scores, truth = torch.cat(logits), torch.cat(labels)
    return {
        "mlm_accuracy": (scores.argmax(-1) == truth).double().mean().item(),
        "mlm_loss": nn.functional.cross_entropy(scores, truth).item(),
    }


@contextmanager
def embeddings_of(student: Any, teacher: Any) -> Iterator[None]:
    """Let the teacher's layers read the student's embeddings."""
    ours = student.minialbert.embeddings
    handle = teacher.base_model.embeddings.register_forward_hook(
        lambda _, args, kwargs, output: ours(kwargs.get("input_ids", *args), None, None, None),
        with_kwargs=True,
    )
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def start_by_svd(plan: DistillationPlan, samples: list[dict[str, Tensor]]) -> None:
    """Give the student the start that it had before: singular vectors of the word table, weighted by frequency."""
    teacher, student = plan.teacher, plan.student.eval()
    ours, tables = student.minialbert.embeddings, embedding_tables(teacher.model)
    word = tables["word_embeddings"].double()
    frequency = torch.ones(len(word), dtype=torch.float64)
    for batch in samples:
        frequency += torch.bincount(batch["input_ids"][batch["attention_mask"].bool()], minlength=len(word))
    basis = torch.linalg.svd(frequency.sqrt()[:, None] * word, full_matrices=False)[2]
    basis = basis[: student.config.embedding_size].T.float()
    for name, table in tables.items():
        getattr(ours, name).weight[: len(table)] = table @ basis
    inputs, targets = [], []
    handle = ours.projection.register_forward_pre_hook(lambda _, args: inputs.append(args[0].double()))
    for batch in samples:
        ours(batch["input_ids"], None, None, None)
        valid = batch["attention_mask"].bool()
        inputs[-1] = inputs[-1][valid]
        plain = {key: value for key, value in batch.items() if key != "labels"}
        targets.append(teacher.view(plain).hidden_states[0][valid].double())
    handle.remove()
    x = torch.cat(inputs)
    fit = torch.linalg.lstsq(torch.cat([x, torch.ones_like(x[:, :1])], 1), torch.cat(targets)).solution
    ours.projection.weight.copy_(fit[:-1].T)
    ours.projection.bias.copy_(fit[-1])
    student.mlm_head.projection.weight.copy_(basis.T)


def measure(teacher: str, data: Path, rank: int, windows: int) -> dict[str, Any]:
    """Return what the teacher reads from both starts at one rank, and from its own embeddings."""
    overrides = [f"teacher.model={teacher}", f"student.embedding_size={rank}"]
    plan = plan_distillation(apply_overrides(load_recipe("miniature/student-64"), overrides), data)
    held_out, text = batches(plan, True, windows), batches(plan, False, 256)
    parts = {"embeddings": (True, False), "decoder": (False, True), "both": (True, True)}
    found: dict[str, Any] = {"teacher": read(plan, held_out, body=False, head=False)}
    for start in ("principal directions", "svd"):
        if start == "svd":
            start_by_svd(plan, text)
        found[start] = {
            name: read(plan, held_out, body=body, head=head) for name, (body, head) in parts.items()
        }
    return found


def table(ranks: dict[str, Any]) -> str:
    """Return masked-token accuracies in per cent, as docs/method.md shows them."""
    parts = ("embeddings", "decoder", "both")
    lines = ["| rank | start | embeddings | decoder | both |", "| ---: | --- | ---: | ---: | ---: |"]
    for rank, found in ranks.items():
        for start in ("svd", "principal directions"):
            cells = (f"{100 * found[start][part]['mlm_accuracy']:.1f}" for part in parts)
            lines.append(f"| {rank} | {start} | {' | '.join(cells)} |")
    own = 100 * next(iter(ranks.values()))["teacher"]["mlm_accuracy"]
    return "\n".join([*lines, "", f"The teacher with its own: {own:.1f} %."]) + "\n"


def main() -> None:
    """Measure, and write result.json and table.md."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--teacher", required=True)
    parser.add_argument("--data", required=True, type=Path, help="a folder made by minialbert prepare")
    parser.add_argument("--output", required=True, type=Path)
    parser.add_argument("--ranks", default="64,128,156")
    parser.add_argument("--windows", type=int, default=256, help="held-out windows")
    given = parser.parse_args()
    ranks = {
        rank: measure(given.teacher, given.data, int(rank), given.windows) for rank in given.ranks.split(",")
    }
    write_result(
        given.output / "result.json",
        {
            "kind": "low-rank-start",
            "teacher": display_name(given.teacher),
            "windows": given.windows,
            "ranks": ranks,
        },
    )
    text = table(ranks)
    write_atomically(given.output / "table.md", text)
    print(text, end="")


if __name__ == "__main__":
    main()
