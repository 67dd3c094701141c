"""What a tuned model takes from labelled rows: the confidence for early exit, or how its answers are chosen."""

from __future__ import annotations

import json
import logging
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from minialbert_runtime.answers import Decision, Logits
from minialbert_runtime.folder import EXPORT_FILE, version_of
from minialbert_runtime.questions import QUESTIONS
from numpy.typing import NDArray
from transformers import PreTrainedModel

from minialbert.data.examples import Example, Task, label_of
from minialbert.data.hub import split_name
from minialbert.data.metrics import check_package
from minialbert.data.rows import LabelledData
from minialbert.data.task_inputs import Encoded, PaddingCollator
from minialbert.errors import UserError, display_name, failing_as, listed
from minialbert.method.encoders import evaluating
from minialbert.method.live import AnyModel, on_disk
from minialbert.recipes.load import Settings
from minialbert.recipes.schema import TaskRecipe
from minialbert.runs.device import autocast, resolve_precision
from minialbert.runs.files import write_json, writing
from minialbert.runs.progress import speaking
from minialbert.runs.records import RESULT_FILE, check_output, write_result
from minialbert.runs.results import Result
from minialbert.tasks.decisions import (
    Held,
    HeldQuestions,
    Wishes,
    choose_thresholds,
    fit_temperature,
    read_wishes,
)
from minialbert.tasks.evaluate import (
    decision_for,
    input_reading,
    label_ids,
    load_any,
    model_entry,
    task_of_model,
    task_recipe,
)
from minialbert.tasks.models import TASK_FILE, TaskInputs
from minialbert.tasks.predictions import (
    depth_arguments,
    input_batches,
    logits_of_each,
    make_collator,
    read_predictions,
    run_model,
)

logger = logging.getLogger(__name__)

KIND, ANSWERS_KIND = "exit-calibration", "answer-calibration"
SPLITS = ("train", "validation")
_CANDIDATES = 100
_NARROW = 1e-6  # confidences closer than this may swap places in another batch


@dataclass(frozen=True)
class DepthOutputs:
    """What a model says of each input at every depth where inputs may leave, ascending to its own.

    Logits are (depths, labels) per input, or (depths, tokens, labels) for token labels; confidences (inputs,
    depths).
    """

    depths: tuple[int, ...]
    logits: list[Logits]
    confidences: NDArray[np.float32]

    def at_depth(self, depth: int) -> list[Logits]:
        """Return the logits of each input after a number of iterations, one of `depths`."""
        index = self.depths.index(depth)
        return [values[index] for values in self.logits]

    def leaving_at(self, threshold: float) -> tuple[list[Logits], list[int]]:
        """Return the logits with which each input leaves at a threshold, and its number of iterations."""
        leaves = self.confidences >= threshold
        leaves[:, -1] = True
        first = leaves.argmax(axis=1).tolist()
        chosen = [values[index] for values, index in zip(self.logits, first, strict=True)]
        return chosen, [self.depths[index] for index in first]


@torch.inference_mode()
def measure_depths(
    model: PreTrainedModel,
    encoded: Encoded,
    collator: PaddingCollator,
    *,
    batch_size: int = 64,
    precision: str = "fp32",
    progress: str | None = None,
) -> DepthOutputs:
    """Return what a classifier says after every number of iterations where inputs may leave, in one pass."""
    head = cast("Any", model)
    own = model.config.num_hidden_layers
    marked = model.config.elastic_depths or range(1, own)
    depths = tuple(sorted({own, *(depth for depth in marked if depth < own)}))
    lengths = encoded.lengths
    logits: list[Logits] = [np.empty(0, np.float32)] * len(encoded)
    confidences = np.empty((len(encoded), len(depths)), np.float32)
    with evaluating(model):
        for rows, inputs in input_batches(model, encoded, collator, batch_size=batch_size, progress=progress):
            with autocast(model.device.type, precision):
                states = model(**inputs, output_hidden_states=True).hidden_states
                read = torch.stack([head.read_out(states[depth]) for depth in depths], dim=1)
                mask = inputs["attention_mask"]
                sure = torch.stack([head.confidence(part, mask) for part in read.unbind(1)], dim=1)
            confidences[rows] = sure.cpu().numpy()
            for row, values in zip(rows, read.float().cpu().numpy(), strict=True):
                logits[row] = values[:, : lengths[row]].copy() if values.ndim == 3 else values
    return DepthOutputs(depths, logits, confidences)


def candidate_thresholds(confidences: NDArray[np.float32], count: int = _CANDIDATES) -> list[float]:
    """Return thresholds to try, ascending: `count` quantiles of confidences before the last depth, and 1.

    Each lies between two confidences rather than on one, so that a rounding error in another batch does not
    decide whether an input leaves.
    """
    values = np.unique(confidences[:, :-1].astype(np.float64))
    lower = np.concatenate([np.zeros(1), values[:-1]])
    wide = np.flatnonzero(values - lower > _NARROW)
    if len(wide) > count:
        wide = wide[np.unique(np.linspace(0, len(wide) - 1, count).round().astype(int))]
    found = {_between(float(lower[index]), float(values[index])) for index in wide}
    return [*sorted(found - {1.0}), 1.0]


def _between(low: float, high: float) -> float:
    """Return the number of fewest decimals in the middle half between two numbers."""
    middle, margin = (low + high) / 2, (high - low) / 4
    for decimals in range(1, 9):
        rounded = round(middle, decimals)
        if low + margin <= rounded <= high - margin:
            return rounded
    return middle


def calibrate(
    model: AnyModel,
    data: LabelledData | None = None,
    *,
    task: str | TaskRecipe | None = None,
    max_drop: float | None = None,
    min_recall: Mapping[str, float] | None = None,
    min_precision: Mapping[str, float] | None = None,
    confidences: bool = False,
    split: str | None = None,
    fraction: float = 0.1,
    rows: int | None = None,
    seed: int = 0,
    output: str | Path | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    batch_size: int = 64,
    settings: Settings = (),
    progress: bool = True,
) -> Result:
    """Calibrate a tuned model's answers, or find the confidence at which inputs may leave it early.

    With `confidences`, `min_recall` or `min_precision` the answers are calibrated. A temperature makes confidences as
    high as the share of right answers. Each label with a wish gets the threshold that fulfils it with the highest F1.
    Both are written into the model's `task.json`, and hold wherever the model is used from then on.

    Otherwise the confidence for early exit is written into the model's config. This is the smallest threshold whose
    score falls by at most `max_drop`. One pass reads all depths; early exit at every threshold is simulated from it.

    The split that results are reported on is not used if the task has another. A model is surer of the rows that it was
    tuned on than of new ones, so a threshold from them is optimistic: rows that were kept out of the tuning, or
    `split="validation"`, are the safer choice.

    The record has each threshold with its score and mean number of iterations. `exit_threshold` is None if no threshold
    saves an iteration within `max_drop`.

    Examples:
        >>> rows = [("A large house.", "large"), ("A small house.", "small")] * 20
        >>> minialbert.calibrate("tuned/model", {"train": rows}, fraction=0.5)
        <Result: exit-calibration...>

    Args:
        model: the directory of a tuned MiniALBERT, or the result of `finetune`; for a dry run also a hub id.
        data: labelled rows, as for `evaluate`.
        task: as for `evaluate`.
        max_drop: how far the metric may fall by early exit, in points (hundredths). Default: 0.5.
        min_recall: by class or type of entity, the recall that is wanted, as in `{"Disease": 0.95}`. Of questions the
            name is "answer": the share of those with an answer that get the right one.
        min_precision: the same of precision.
        confidences: calibrate answers, also without a wish.
        split: "train" or "validation": where the rows come from. Default: train for early exit, else validation.
        fraction: share of the training rows to draw.
        rows: number of rows to draw, instead of a share.
        seed: random seed of the draw.
        output: directory for the record.
        overwrite: replace the files of an earlier calibration.
        dry_run: do not write into the model's config.
        batch_size: inputs per forward pass.
        settings: keys of a recipe, as for `evaluate`.
        progress: show a bar.

    Returns:
        The record of kind "exit-calibration" or "answer-calibration", and the directory if one was written.

    Raises:
        UserError: if model, task and split do not fit together, or an option is out of range.
    """
    if not isinstance(model, str | Path | Result):
        raise UserError(
            "calibrate writes into a model's config.json: give its directory, or what finetune gave back"
        )
    with speaking(progress), on_disk(model) as source:
        recipe, precision, in_memory = task_recipe(task, data, settings)
        of_answers = confidences or bool(min_recall or min_precision)
        if of_answers and max_drop is not None:
            raise UserError("max_drop is for early exit: leave it out, or the wishes for answers")
        max_drop = 0.5 if max_drop is None else max_drop
        split = split_name(split) or ("validation" if of_answers else "train")
        _check_options(max_drop, split, fraction, rows)
        kind, file_of = (ANSWERS_KIND, _task_file) if of_answers else (KIND, _config_file)
        if output is not None:
            check_output(Path(output), kind=kind, overwrite=overwrite)
        file = None if dry_run else file_of(source)
        tuned, tokenizer, inputs = load_any(source)
        if not of_answers:
            depth_arguments(tuned, None, 1.0)  # refuses a model that cannot leave early
        tuned.to("cuda" if torch.cuda.is_available() else "cpu")
        name = str(display_name(source))
        # Without a split named, rows for validation are set apart from train wherever these would be reported.
        found = task_of_model(
            recipe, inputs, tuned, name, split if split == "validation" else None, in_memory
        )
        check_package(*found.type.package)
        if of_answers and found.problem not in ("single-label", "multi-label", "token", QUESTIONS):
            raise UserError(f"a {found.problem} task has no confidences to calibrate")
        examples = _drawn(found, split, fraction, rows, seed)
        earlier = decision_for(recipe, inputs)
        started = time.perf_counter()
        reading, reading_notes = input_reading(recipe, inputs, tuned, found, name)
        encoded = found.type.encode(examples, tokenizer, found, **reading)
        run: dict[str, Any] = {
            "batch_size": batch_size, "precision": resolve_precision(precision),
            "progress": split if progress else None,
        }  # fmt: skip
        order, collator = label_ids(tuned, found, name), make_collator(found, tokenizer)
        if of_answers:
            logits = run_model(tuned, encoded, collator, **run)
            known: Held
            if found.problem == QUESTIONS:
                known = HeldQuestions(found, examples, logits, encoded)
            else:
                by_example = logits_of_each(examples, encoded, found, logits, order)
                known = Held(found, examples, by_example, decoding=earlier.decoding)
            wishes = read_wishes(min_recall or {}, min_precision or {}, known)
            decision, more = _decide(known, wishes, split, earlier)
        else:
            outputs = measure_depths(tuned, encoded, collator, **run)

            def score(logits: list[Logits]) -> float:
                how: dict[str, Any] = {"order": order, "name": name, "decision": earlier}
                return float(read_predictions(examples, encoded, found, logits, **how).metrics[found.metric])

            more = _leave_early(outputs, score, max_drop) | {"max_drop": max_drop}
            more["metrics"] = {split: {found.metric: more["score"]}}
            more["notes"] = _notes(tuned, found, split, more["exit_threshold"], max_drop)
        if file is not None and of_answers:
            _write_decision(file, inputs, decision)
        elif file is not None:
            _write_threshold(file, more["exit_threshold"])
        record: dict[str, Any] = {
            "kind": kind, "name": name, "task": found.name, "problem": found.problem, "metric": found.metric,
            "split": split, "rows": len(examples), "seed": seed, "written": file is not None, **more,
            "model": model_entry(tuned, name), "notes": [*found.notes, *reading_notes, *more["notes"]],
            "wall_seconds": round(time.perf_counter() - started, 2),
        }  # fmt: skip
        if output is not None:
            with writing(output, advice=None):
                record = write_result(Path(output) / RESULT_FILE, record)
    return Result(record, None if output is None else Path(output))


def _leave_early(
    outputs: DepthOutputs, score: Callable[[list[Logits]], float], max_drop: float
) -> dict[str, Any]:
    """Return what a record says of the thresholds of early exit, and the one that is chosen."""
    depth = outputs.depths[-1]
    by_depth = {number: score(outputs.at_depth(number)) for number in outputs.depths}
    table: list[dict[str, Any]] = []
    for threshold in candidate_thresholds(outputs.confidences):
        logits, exits = outputs.leaving_at(threshold)
        mean = float(np.mean(exits))
        row = {"threshold": threshold, "score": score(logits), "mean_iterations": mean}
        table.append({**row, "compute_share": mean / depth})
    chosen = choose_threshold(table, by_depth[depth], max_drop)
    if chosen is None or chosen["mean_iterations"] == depth:
        full = {"score": by_depth[depth], "mean_iterations": float(depth), "compute_share": 1.0}
        chosen = {"threshold": None, **full}
    return {
        "exit_threshold": chosen["threshold"],
        **{key: chosen[key] for key in ("score", "mean_iterations", "compute_share")},
        "full_depth_score": by_depth[depth],
        "score_by_depth": {str(number): value for number, value in by_depth.items()},
        "thresholds": table,
    }


def _decide(known: Held, wishes: Wishes, split: str, earlier: Decision) -> tuple[Decision, dict[str, Any]]:
    """Return temperature and thresholds in place of earlier ones, and what a record says of them."""
    temperature, error = fit_temperature(known)
    before, decision = Decision(temperature), choose_thresholds(known, temperature, wishes)
    notes = [f"confidences stay as they are: {error['wrong']:,} of {error['answers']:,} answers are wrong"]
    if split == "train":
        notes.append(
            "train: of rows that the model was tuned on it is surer, and less often wrong, than of others"
        )
    elif known.task.reported_split == "validation":
        notes.append("validation: results of this task are quoted on these rows too; quote them on others")
    if gone := sorted({*earlier.thresholds} - {*decision.thresholds}):
        notes.append(f"earlier thresholds are gone, those of {listed(gone)}: give all wishes at once")
    decision = replace(decision, decoding=earlier.decoding)
    return decision, {
        "score": None, "decision": asdict(decision), "calibration_error": error, "wishes": wishes, "metrics": {},
        "labels": {
            name: {"before": known.figures(name, before), "after": known.figures(name, decision)} for name in wishes
        },
        "notes": notes[temperature != 1 :],
    }  # fmt: skip


def _task_file(model_name: str) -> Path:
    """Return the task.json to write to, of a model or of an exported folder on disk."""
    path = Path(model_name) / TASK_FILE
    if not path.is_file():
        raise UserError(
            f"{path} is missing, so that there is no place for thresholds: give a model that `minialbert finetune` "
            "wrote, or --dry-run to see them"
        )
    return path


def _write_decision(path: Path, inputs: TaskInputs, decision: Decision) -> None:
    export = path.with_name(EXPORT_FILE)
    with writing(path, advice=None):
        if export.is_file():  # a runtime that does not know of decisions has to refuse it
            contract = json.loads(export.read_text(encoding="utf-8"))
            write_json(export, contract | {"format_version": version_of(decision)})
        write_json(path, replace(inputs, decision=decision).to_json())


def choose_threshold(
    table: Sequence[dict[str, Any]], full_depth_score: float, max_drop: float
) -> dict[str, Any] | None:
    """Return the row of the smallest threshold whose score is near enough to that of the full depth, or None.

    Near enough is `max_drop` points, hundredths of the score.
    """
    allowed = full_depth_score - max_drop / 100 - 1e-9
    near = [row for row in table if row["score"] >= allowed]
    return min(near, key=lambda row: row["threshold"], default=None)


def _check_options(max_drop: float, split: str, fraction: float, rows: int | None) -> None:
    if not 0 <= max_drop <= 100:
        raise UserError(f"max_drop: expected points from 0 to 100, found {max_drop}")
    if split not in SPLITS:
        raise UserError(
            f"split: expected {' or '.join(SPLITS)}, found {split!r}; a split that results are quoted on must not "
            "choose the threshold"
        )
    if not 0 < fraction <= 1:
        raise UserError(f"fraction: expected a share above 0 and up to 1, found {fraction}")
    if rows is not None and rows < 1:
        raise UserError(f"rows: expected at least 1, found {rows}")


def _config_file(model_name: str) -> Path:
    """Return the config.json to write to, of a model that is on disk in our own format."""
    path = Path(model_name) / "config.json"
    if not path.is_file():
        raise UserError(
            f"{model_name} is not a model directory, so that the threshold cannot be written to its config.json: "
            "give --dry-run to see it"
        )
    with failing_as(f"{path} is damaged", (OSError, ValueError, AttributeError), "write the model again"):
        kind = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    if kind != "minialbert":
        raise UserError(
            f"{path} is of a model of type {kind}, which has no place for a threshold: tune a MiniALBERT, or "
            "give --dry-run to see it"
        )
    return path


def _write_threshold(path: Path, threshold: float | None) -> None:
    values = json.loads(path.read_text(encoding="utf-8"))
    values["exit_threshold"] = threshold
    with writing(path, advice=None):
        write_json(path, dict(sorted(values.items())))


def _drawn(task: Task, split: str, fraction: float, rows: int | None, seed: int) -> list[Example]:
    """Return labelled rows of a split in their order, drawn by the seed."""
    if split not in task.splits:
        raise UserError(f"{task.name} has no split {split!r}: there are {', '.join(task.splits)}")
    examples = task.splits[split]
    labelled = [example for example in examples if label_of(example) is not None]
    if not labelled:
        raise UserError(f"{task.name}: {split} has no labels to calibrate on")
    share = fraction if split == "train" else 1.0
    count = max(1, round(share * len(labelled))) if rows is None else rows
    if count > len(labelled):
        raise UserError(f"rows: {task.name} has {len(labelled):,} in {split}, fewer than {count:,}")
    kept = sorted(random.Random(seed).sample(range(len(labelled)), count))
    return [labelled[index] for index in kept]


def _notes(
    model: PreTrainedModel, task: Task, split: str, threshold: float | None, max_drop: float
) -> list[str]:
    notes = []
    if split == "train":
        notes.append(
            "train: of rows that the model was tuned on it is surer than of others, so that the threshold is "
            "optimistic unless these were kept out of the tuning; --split validation is the safer choice"
        )
    elif task.reported_split == "validation":
        notes.append(
            "validation: results of this task are quoted on these rows too; quote those with early exit on others"
        )
    if model.config.elastic_depths is None:
        notes.append(
            "the head was not trained to read the output of earlier iterations: after elastic training it would "
            "leave earlier at the same score"
        )
    if threshold is None:
        notes.append(
            f"no threshold saves an iteration within {max_drop:g} points: the model keeps its full depth"
        )
    return notes
