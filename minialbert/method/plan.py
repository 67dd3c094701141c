"""What a distillation needs: models, data and objective, checked to fit together before anything is written."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from minialbert.data.masking import MaskedLanguageModelCollator
from minialbert.data.pairs import PairedCollator, compared
from minialbert.data.tokenizers import load_tokenizer, tokenizer_fingerprint
from minialbert.data.window_store import WindowDataset, check_tokenizer
from minialbert.errors import UserError, quoted
from minialbert.method.costs import distillation_price, faster_precision
from minialbert.method.elastic import mark_depths, plan_elastic
from minialbert.method.encoders import Teacher, find_pooling, load_teacher, supports_packing, word_rows
from minialbert.method.fast.recording import checkpoint_activations, records_attention
from minialbert.method.objective import DistillationObjective
from minialbert.method.sentence_vectors import Pooling, VectorObjective
from minialbert.method.start import build_student, check_described
from minialbert.recipes.load import apply_overrides
from minialbert.recipes.schema import VECTOR_KEYS, Recipe, TrainingRecipe
from minialbert.runs.muon import trained_matrices
from minialbert.runs.stopping import share_of

# Real text for `init: teacher`; more changes the fit of the projection little.
_SAMPLE_WINDOWS = 256
_SAMPLE_BATCH = 16
# Of a length in passes: what part of its steps may be warm-up, or pass between two evaluations, checkpoints and logs.
_SHARES = {"warmup_steps": 10, "eval_steps": 10, "save_steps": 4, "logging_steps": 50}
_MANY_PASSES = 10
# How a student's tokenizer changes a text.
_PROBE = "Éva's dose: 1.5 mg"
_ELASTIC_KEYS = ("elastic", "elastic_depths", "elastic_mlm_weight", "elastic_output_weight")

Folders = str | Path | Sequence[str | Path]


@dataclass(frozen=True)
class DistillationPlan:
    """Everything a run needs, checked, before anything is written.

    The objective is without what this teacher cannot give; `layers` is the teacher layer of each iteration
    (0: none), empty without a teacher. `packs` says whether short windows share rows in training. A
    micro-batch is of one process, and `accumulation` of them make its optimiser step. `notes` tell what was
    decided, one line each. The teacher reads `teacher_share` tokens for one of the student's.
    """

    recipe: Recipe
    teacher: Teacher | None
    student: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    objective: DistillationObjective
    layers: tuple[int, ...]
    windows: WindowDataset
    held_out: WindowDataset
    collator: MaskedLanguageModelCollator
    packs: bool
    max_steps: int
    micro_batch_size: int
    accumulation: int
    notes: tuple[str, ...]
    teacher_share: float = 1.0


def plan_distillation(
    recipe: Recipe,
    data: Folders | WindowDataset,
    *,
    teacher: Teacher | None = None,
    student: PreTrainedModel | None = None,
    objective: DistillationObjective | None = None,
) -> DistillationPlan:
    """Return a checked plan: models loaded, student initialised, objective resolved.

    `data` is a folder made by `prepare`, or several of one tokenizer, whose windows are mixed. Teacher,
    student and objective are in place of the recipe's. Raises UserError if models, data and recipe do not fit
    together.
    """
    folders = data.directories if isinstance(data, WindowDataset) else data
    windows, held_out = WindowDataset(folders, "train"), WindowDataset(folders, "held_out")
    tokenizer = load_tokenizer(windows.directories[0] / "tokenizer")
    check_tokenizer(windows.tokenizer, tokenizer)
    # Texts whose vectors are learnt are read whole.
    whole = recipe.distill.preset == "embeddings" if objective is None else objective.vectors is not None
    training = recipe.training
    notes: list[str] = []
    if teacher is None and recipe.teacher.model is not None:
        length = windows.window_length
        teacher = load_teacher(recipe.teacher.model, revision=recipe.teacher.revision, length=length)
    collator, share = _collator(
        recipe, windows, tokenizer, teacher, notes,
        mask_probability=0.0 if whole else recipe.data.mask_probability,
        whole_word=recipe.data.whole_word_masking, seed=training.seed,
    )  # fmt: skip
    if student is None:
        samples = _sample_batches(windows, collator)
        student, started = build_student(recipe.student, teacher, tokenizer, samples, seed=training.seed)
        notes += started
    else:
        check_described(student.config, recipe.student, "the student")
    if not whole and student.get_output_embeddings() is None:
        raise UserError(f"the student, a {type(student).__name__}, has no masked-LM head: give one that has")
    if not any(weight.requires_grad for weight in student.parameters()):
        told = "it is the teacher itself, or was one before"
        raise UserError(
            f"no weight of the student is trained, since {told}: give a copy with requires_grad_(True)"
        )
    if training.gradient_checkpointing:
        checkpoint_activations(student)
    if training.optimizer == "muon":
        trained_matrices(student)  # refused before anything is written
    if objective is None:
        objective = _recipe_objective(recipe, student, notes)
    if objective.vectors is not None:
        notes = [note for note in notes if not note.startswith("masked-LM head")]  # no part of the result
        objective = _with_pooling(objective, objective.vectors, recipe, teacher, student, notes)
    if teacher is not None and teacher.translation is not None:
        objective = objective.for_two_vocabularies()
    objective = resolve_objective(objective, teacher, student, notes, cached=training.cache_teacher)
    mark_depths(student.config, objective.elastic.depths if objective.elastic is not None else None)
    layers = objective.resolve_layers(student.config.num_hidden_layers, teacher.num_layers) if teacher else ()
    _check_size(windows, "student", student, int(student.config.max_position_embeddings))
    per_process, micro = _batch_sizes(training, windows, notes, whole=whole)
    recipe, max_steps = _with_one_length(recipe, len(windows), notes)
    plan = DistillationPlan(
        recipe=recipe,
        teacher=teacher,
        student=student,
        tokenizer=tokenizer,
        objective=objective,
        layers=layers,
        windows=windows,
        held_out=held_out,
        collator=collator,
        packs=_can_pack(training, objective, student, teacher),
        max_steps=max_steps,
        micro_batch_size=micro,
        accumulation=per_process // micro,
        notes=tuple(notes),
        teacher_share=share,
    )
    tokens, price = micro * windows.window_length, distillation_price(plan)
    precision, why = faster_precision(training.precision, student.config, tokens, price)
    recipe = apply_overrides(recipe, {"training.precision": precision})
    return replace(plan, recipe=recipe, notes=(*notes, *why))


# What a length in passes decides.
LENGTHS = ("max_steps", *_SHARES)


def with_passes(plan: DistillationPlan, passes: float) -> DistillationPlan:
    """Return a plan with another length, in passes over its windows."""
    recipe = apply_overrides(plan.recipe, {"training.max_steps": 10**9, "training.epochs": passes})
    notes = [note for note in plan.notes if note.partition(":")[0] not in ("length", "warm-up", "passes")]
    recipe, steps = _with_one_length(recipe, len(plan.windows), notes)
    return replace(plan, recipe=recipe, max_steps=steps, notes=tuple(notes))


def _with_one_length(recipe: Recipe, windows: int, notes: list[str]) -> tuple[Recipe, int]:
    """Return a recipe and its number of steps, which are in it where both lengths are given: the shorter counts.

    Of passes, what else is counted in steps gets a share at most. What is decided or odd is added to `notes`.
    """
    training = recipe.training
    of_passes = max(1, round((training.epochs or 0) * windows / training.batch_size))
    steps = of_passes if training.max_steps is None else training.max_steps
    if training.max_steps and training.epochs:
        steps = min(steps, of_passes)
        chosen = {"max_steps": steps}
        if steps < training.max_steps:
            shares = {key: max(1, steps // share) for key, share in _SHARES.items()}
            chosen |= {key: most for key, most in shares.items() if most < getattr(training, key)}
            told = ", ".join(f"{key} {value}" for key, value in chosen.items())
            notes.append(f"length: {training.epochs:g} passes over {windows:,} windows, so {told}")
        recipe = apply_overrides(recipe, {f"training.{key}": value for key, value in chosen.items()})
        training = recipe.training
    if training.warmup_steps >= steps:
        notes.append(
            f"warm-up: {training.warmup_steps} steps are not fewer than the {steps} of the run, so the learning "
            f"rate never reaches its highest value; set training.warmup_steps={max(1, steps // 10)}"
        )
    passes = steps * training.batch_size / max(windows, 1)
    if (steps - 1) * training.batch_size > _MANY_PASSES * windows:  # the last step may go beyond
        notes.append(
            f"passes: each window is read {passes:,.0f} times, and more than {_MANY_PASSES} teach little: give more "
            f"text, --recipe small, or --set training.epochs={_MANY_PASSES}"
        )
    return recipe, steps


def _recipe_objective(recipe: Recipe, student: PreTrainedModel, notes: list[str]) -> DistillationObjective:
    """Return the objective that a recipe names; a line on elastic depths is added to `notes`."""
    settings = recipe.distill.model_dump(exclude={*_ELASTIC_KEYS, *VECTOR_KEYS})
    if recipe.distill.preset == "embeddings":
        of_vectors = recipe.distill.model_dump(include=set(VECTOR_KEYS), exclude_none=True)
        dims = tuple(of_vectors.pop("vector_dims", ()))
        settings["vectors"] = VectorObjective(**of_vectors, dims=dims)
    if recipe.distill.elastic:
        settings["elastic"] = plan_elastic(
            student,
            recipe.distill.elastic_depths,
            label_weight=recipe.distill.elastic_mlm_weight,
            last_weight=recipe.distill.elastic_output_weight,
            notes=notes,
        )
    return DistillationObjective.preset(settings.pop("preset"), **settings)


def _with_pooling(
    objective: DistillationObjective,
    vectors: VectorObjective,
    recipe: Recipe,
    teacher: Teacher | None,
    student: PreTrainedModel,
    notes: list[str],
) -> DistillationObjective:
    """Return an objective of vectors that are pooled as the teacher's folder says; `notes` says how."""
    if teacher is None:
        raise UserError("the vectors of texts are learnt from a teacher: give one")
    pooling, name = vectors.pooling, recipe.teacher.model
    if pooling is None and name is not None:
        pooling = find_pooling(name, recipe.teacher.revision)
    pooling = pooling or Pooling(normalize=False)
    if pooling.mode == "max" and student.config.hidden_size != teacher.hidden_size:
        raise UserError(
            "the teacher takes the largest value of each dimension, which no narrower student can follow: set "
            f"student.hidden_size={teacher.hidden_size}"
        )
    width = pooling.width(teacher.hidden_size, str(name or "the teacher"))
    if wide := [size for size in vectors.dims if size > width]:
        raise UserError(
            f"distill.vector_dims {wide} are more than the {width} dimensions of the teacher's vectors"
        )
    maps = f", then {len(pooling.dense)} linear maps" if pooling.dense else ""
    notes.append(
        f"vectors: {pooling.mode} over tokens{maps}, {width} wide, as the teacher's; texts without masks"
    )
    return replace(objective, vectors=replace(vectors, pooling=pooling))


def resolve_objective(
    objective: DistillationObjective,
    teacher: Teacher | None,
    student: PreTrainedModel,
    notes: list[str],
    *,
    cached: bool = False,
) -> DistillationObjective:
    """Return an objective without what this teacher cannot give; each term switched off is a line in `notes`.

    `cached` says that the teacher's answers are kept on disk. Raises UserError for a comparison that cannot be made.
    """
    if teacher is None:
        notes.append("no teacher: masked-LM alone")
        if not objective.mlm_weight:
            raise UserError("without a teacher only the MLM term is left, and distill.mlm_weight is 0")
        return objective.without("attention", "hidden", "output", "embedding", "relation", *objective.extra)
    if cached and objective.vectors is not None:
        raise UserError("training.cache_teacher keeps no vectors of texts: set it to false")
    if cached and objective.extra:
        raise UserError(
            f"training.cache_teacher keeps nothing for registered terms ({', '.join(objective.extra)}): set it to false"
        )
    if teacher.attention_fault:
        objective = objective.without("attention")
        if objective.needs_attention:
            raise UserError(
                f"a registered term reads attention rows, but the teacher's {teacher.attention_fault}"
            )
        notes.append(
            f"attention rows: neither learnt from nor measured (the teacher's {teacher.attention_fault})"
        )
    if not teacher.has_mlm_head and objective.output_weight:
        notes.append("output term: off (the teacher has no masked-LM head)")
        objective = objective.without("output")
    try:
        objective.resolve_layers(student.config.num_hidden_layers, teacher.num_layers)
    except ValueError as error:
        raise UserError(f"distill.{error}") from error
    heads, teacher_heads = student.config.num_attention_heads, teacher.num_heads
    if objective.attention_weight and objective.attention_heads == "match" and heads != teacher_heads:
        raise UserError(
            f"the student has {heads} attention heads and the teacher {teacher_heads}, so their maps cannot be "
            f"compared head by head: set student.num_attention_heads={teacher_heads}, distill.attention_heads=average "
            "to compare the mean over heads, or distill.attention_weight=0 for hidden states only"
        )
    if objective.relation_weight:
        _check_relations(objective, teacher, student, cached=cached)
    if student.config.hidden_size != teacher.hidden_size:
        notes.append(
            f"hidden states: a projection {student.config.hidden_size} -> {teacher.hidden_size}, in training only"
        )
    return objective


def _collator(
    recipe: Recipe,
    windows: WindowDataset,
    tokenizer: PreTrainedTokenizerBase,
    teacher: Teacher | None,
    notes: list[str],
    **masking: Any,
) -> tuple[MaskedLanguageModelCollator, float]:
    """Return what makes batches that the teacher can read, and how many tokens it reads for one of the student's.

    A teacher with another tokenizer gets a `translation`, and a line is added to `notes`.
    """
    if teacher is None:
        return MaskedLanguageModelCollator(tokenizer, **masking), 1.0
    teacher.translation, own = None, teacher.tokenizer
    if recipe.student.own_vocabulary:
        if own is None:
            raise UserError("student.own_vocabulary needs the teacher's tokenizer: give the teacher by name")
        if tokenizer_fingerprint(own := load_tokenizer(own)) != windows.tokenizer.fingerprint:
            paired = PairedCollator(tokenizer, own, longest=teacher.max_length, **masking)
            teacher.translation = paired.translation
            return paired, _two_vocabularies(recipe, windows, paired, notes)
        notes.append("one vocabulary: the windows are of the teacher's tokenizer, as without own_vocabulary")
    if own is not None:
        check_tokenizer(windows.tokenizer, own)
    _check_size(windows, "teacher", teacher.model, teacher.max_length)
    return MaskedLanguageModelCollator(tokenizer, **masking), 1.0


def _two_vocabularies(
    recipe: Recipe, windows: WindowDataset, collator: PairedCollator, notes: list[str]
) -> float:
    if weight := recipe.distill.output_weight:
        raise UserError(
            f"distill.output_weight is {weight:g}, but predictions of two vocabularies cannot be compared: set it to 0"
        )
    if recipe.training.cache_teacher:
        raise UserError("training.cache_teacher keeps nothing for a student.own_vocabulary: set it to false")
    aligned = read = tokens = 0
    for batch in _sample_batches(windows, collator):
        aligned += int(compared(batch).sum())
        read += int(batch["teacher_attention_mask"].sum())
        tokens += int(batch["attention_mask"].sum())
    text, _ = collator.spelt(collator.tokenizer(_PROBE, add_special_tokens=False)["input_ids"])
    notes.append(
        f"two vocabularies: the teacher reads what the student's tokens spell, {quoted(text.strip())} for "
        f"{quoted(_PROBE)}; hidden states are compared for {aligned / tokens:.1%} of the tokens; attention rows, "
        "relations and predictions are not compared"
    )
    return read / tokens


def _sample_batches(
    windows: WindowDataset, collator: MaskedLanguageModelCollator
) -> Iterator[dict[str, Tensor]]:
    """Yield a few unmasked batches, evenly spread over the training windows."""
    collator = copy.copy(collator)
    collator.mask_probability = 0.0
    count = min(_SAMPLE_WINDOWS, len(windows))
    chosen = [windows[index * len(windows) // count] for index in range(count)]
    for begin in range(0, count, _SAMPLE_BATCH):
        yield collator(chosen[begin : begin + _SAMPLE_BATCH])


def _check_size(windows: WindowDataset, whose: str, model: PreTrainedModel, longest: int) -> None:
    if windows.window_length > longest:
        raise UserError(
            f"the windows are {windows.window_length} tokens long, but the {whose} takes at most {longest}: prepare "
            f"them with --window-length {longest}"
        )
    if word_rows(model) < windows.tokenizer.vocab_size:
        raise UserError(
            f"the {whose} has {word_rows(model)} word embeddings, and the windows' tokenizer "
            f"{windows.tokenizer.vocab_size} entries: prepare the corpus with this model's"
        )


def _can_pack(
    training: TrainingRecipe,
    objective: DistillationObjective,
    student: PreTrainedModel,
    teacher: Teacher | None,
) -> bool:
    """Return whether packed windows give these models the same losses as padded ones."""
    return (
        training.pack_windows
        and not training.cache_teacher  # a cache keeps one row per window
        and not objective.depends_on_length
        and supports_packing(student)
        and (teacher is None or (teacher.translation is None and supports_packing(teacher.model)))
    )


def _check_relations(
    objective: DistillationObjective, teacher: Teacher, student: PreTrainedModel, *, cached: bool
) -> None:
    heads = objective.relation_heads or teacher.num_heads
    for whose, width in (("student", int(student.config.hidden_size)), ("teacher", teacher.hidden_size)):
        if width % heads:
            raise UserError(
                f"the {whose}'s width {width} cannot be split into {heads} relation heads: set "
                "distill.relation_heads to a divisor of both widths"
            )
    if not records_attention(teacher.model):
        raise UserError(
            f"distill.relation_weight: a teacher of the kind {teacher.model.config.model_type} does not show its "
            "queries and keys; set it to 0"
        )
    if cached:
        raise UserError("training.cache_teacher keeps no relations: set it, or distill.relation_weight, to 0")


def _batch_sizes(
    training: TrainingRecipe, windows: WindowDataset, notes: list[str], *, whole: bool
) -> tuple[int, int]:
    """Return the windows of a process and step, and of its micro-batch: what fits a usual memory, where none is given.

    Where texts are read `whole`, no micro-batch parts those of a pair.
    """
    per_process = share_of(training.batch_size, "training.batch_size")
    together = windows.texts_per_row if whole else 1
    budget = 32768 if torch.cuda.is_available() else 4096  # tokens
    most = min(per_process, max(together, budget // windows.window_length))
    divisors = (size for size in range(together, most + 1, together) if per_process % size == 0)
    micro = training.micro_batch_size or max(divisors, default=1)
    if per_process % micro:
        raise UserError(
            f"training.micro_batch_size {micro} does not divide the {per_process} windows of each process and step"
        )
    if micro % together:
        raise UserError(
            f"micro-batches of {micro} of {per_process} windows part the texts of a pair: set training.batch_size and "
            "training.micro_batch_size to even numbers for each process"
        )
    if windows.texts_per_row > 1:
        notes.append(f"pairs: {'both texts in one pass' if whole else 'single texts to this objective'}")
    return per_process, micro
