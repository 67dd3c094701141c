"""Whether what a checkpoint holds fits the trainer that would go on from it; its manifest only says it is unchanged.

Fused optimisers write into moments without looking at their size, so names, shapes, types and finite numbers are
checked before anything is loaded.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    ValidationError,
)
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers.trainer import OPTIMIZER_NAME, SCALER_NAME, SCHEDULER_NAME, TRAINER_STATE_NAME
from transformers.trainer_callback import TrainerState

from minialbert.errors import one_line, quoted, shown
from minialbert.runs.muon import MuonAdamW

if TYPE_CHECKING:
    from minialbert.runs.trainer import ResumableTrainer

PROGRESS_FILE = "progress.json"
_MISBUILT = (ValueError, LookupError, TypeError, AttributeError)


class _Plain(BaseModel):
    model_config = ConfigDict(strict=True, allow_inf_nan=False)


class _Meter(_Plain):
    sums: dict[str, float]
    steps: NonNegativeInt
    tokens: NonNegativeFloat


class Progress(_Plain):
    """What `progress.json` holds for any trainer."""

    meters: list[_Meter] = Field(min_length=1)
    skipped_steps: NonNegativeInt
    skipped_in_a_row: NonNegativeInt
    evaluation_is_due: bool
    evaluated_at: int
    session_seconds: list[NonNegativeFloat] = []
    seconds: NonNegativeFloat = 0.0  # one sum, in checkpoints of before


class _State(_Plain):
    """What Transformers' Trainer goes by in its state; it sets the rest anew."""

    global_step: NonNegativeInt
    logging_steps: PositiveInt
    eval_steps: PositiveInt
    save_steps: PositiveInt
    num_input_tokens_seen: NonNegativeInt
    total_flos: NonNegativeFloat
    best_model_checkpoint: str | None


class Misfit(Exception):  # noqa: N818 - a finding, which `find_misfit` returns
    """What does not fit, in a few words."""


def find_misfit(checkpoint: Path, step: int, trainer: ResumableTrainer) -> str | None:
    """Return what in a checkpoint of a step does not fit a trainer that is to go on from it, in a few words.

    None if all does. The files are those of the checkpoint's manifest.
    """
    name = PROGRESS_FILE
    try:
        progress = trainer.progress_form.model_validate_json((checkpoint / name).read_bytes())
        if len({frozenset(meter.sums) for meter in progress.meters}) > 1:
            raise Misfit("its meters differ in their terms")
        for name, expected in trainer.saved_tensors(progress).items():
            _check_tensors(checkpoint / name, expected)
        name = TRAINER_STATE_NAME
        state = _State.model_validate_json((checkpoint / name).read_bytes())
        TrainerState.load_from_json(str(checkpoint / name))
        if state.global_step != step:
            raise Misfit(f"it is of step {quoted(state.global_step)}")
        probe = copy.copy(trainer)
        probe.optimizer, probe.lr_scheduler = None, None
        probe.create_optimizer_and_scheduler(trainer.args.max_steps)
        name = OPTIMIZER_NAME
        _check_optimizer(probe.optimizer, _read(checkpoint / name), moved=step > progress.skipped_steps)
        name = SCHEDULER_NAME
        _check_scheduler(probe.lr_scheduler, _read(checkpoint / name), step)
        name = SCALER_NAME
        if (scaler := trainer.accelerator.scaler) is not None and (checkpoint / name).exists():
            _check_plain(scaler.state_dict(), _read(checkpoint / name), free=("scale", "_growth_tracker"))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(shown(part, 20) for part in first["loc"])
        return f"{name}: {place}: {first['msg'].lower()}" if place else f"{name}: {first['msg'].lower()}"
    except FileNotFoundError:
        return f"{name} is missing"
    except Misfit as misfit:
        return f"{name}: {misfit}"
    except (OSError, RuntimeError, EOFError, SafetensorError, *_MISBUILT) as error:
        return f"{name} does not fit: {one_line(error, 120)}"
    return None


def _read(file: Path) -> dict[str, Any]:
    try:
        values = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise Misfit("it is damaged or holds code, which is never run") from error
    if not isinstance(values, dict):
        raise Misfit(f"it holds a {type(values).__name__}")
    return values


def _check_tensors(file: Path, expected: Mapping[str, Tensor]) -> None:
    """Refuse a file that lacks a tensor, has a strange one, or one of another shape or type, or not finite."""
    with safe_open(file, "pt") as found:
        names = set(found.keys())
        if strange := sorted(names - expected.keys()):
            raise Misfit(f"{shown(strange[0])} is none of the model's")
        # Of several names for one memory, a file holds one.
        there = {expected[name].data_ptr() for name in names}
        if missing := sorted(key for key in expected.keys() - names if expected[key].data_ptr() not in there):
            raise Misfit(f"{missing[0]} is missing")
        for name in names:
            _check_like(name, found.get_tensor(name), expected[name])


def _check_like(name: str, found: object, expected: Tensor) -> None:
    if not isinstance(found, Tensor) or found.layout != torch.strided or found.device.type == "meta":
        raise Misfit(f"{name} is not a plain tensor")
    if found.shape != expected.shape or found.dtype != expected.dtype:
        kinds = [f"{str(one.dtype).removeprefix('torch.')} {list(one.shape)}" for one in (found, expected)]
        raise Misfit(f"{name} is {shown(kinds[0])}, expected {kinds[1]}")
    if not torch.isfinite(found).all():
        raise Misfit(f"{name} holds numbers that are not finite")


def _check_optimizer(fresh: torch.optim.Optimizer, found: dict[str, Any], *, moved: bool) -> None:
    """Refuse a state that is not that of a fresh optimiser after some steps; `moved` says that one changed weights."""
    own = copy.deepcopy(fresh.state_dict()["param_groups"])
    fresh.load_state_dict(found)
    for before, group in zip(own, fresh.state_dict()["param_groups"], strict=True):
        _check_plain(before, group, free=("lr",))
    if moved and not fresh.state:
        raise Misfit("it holds no moments")
    for parameter, moments in fresh.state.items():
        if not isinstance(parameter, Tensor):
            raise Misfit(f"it is of {quoted(parameter)}, which is none of the model's")
        if not isinstance(fresh, (torch.optim.Adam, torch.optim.AdamW, MuonAdamW)):
            continue
        muons = isinstance(fresh, MuonAdamW) and fresh.is_matrix(parameter)
        if moments.keys() != ({"momentum_buffer"} if muons else {"step", "exp_avg", "exp_avg_sq"}):
            raise Misfit(f"it holds {shown(sorted(map(str, moments)))} of a weight")
        for name, moment in moments.items():
            _check_like(name, moment, torch.zeros((), dtype=torch.float32) if name == "step" else parameter)
            # Kernels go by the size alone: an expanded tensor has less memory than its shape says.
            if moment.stride() != torch.empty_like(moment, device="meta").stride():
                raise Misfit(f"{name} is not a plain tensor")
            if name in ("step", "exp_avg_sq") and bool((moment < 0).any()):
                raise Misfit(f"{name} holds negative numbers")


def _check_scheduler(fresh: Any, found: dict[str, Any], step: int) -> None:
    own = fresh.state_dict()
    _check_plain(own, found, free=("last_epoch", "_step_count", "_last_lr"))
    if strange := sorted(str(key) for key in found.keys() - own.keys() if hasattr(fresh, str(key))):
        raise Misfit(f"it sets {shown(strange[0])}")
    if not 0 <= found["last_epoch"] <= step:
        raise Misfit(f"it is of step {quoted(found['last_epoch'])}")


def _check_plain(own: Mapping[str, Any], found: Mapping[str, Any], *, free: tuple[str, ...]) -> None:
    """Refuse other settings than one's own, but for those of `free`, which have to be finite numbers."""
    for key, expected in own.items():
        if key not in free:
            if found.get(key, expected) != expected:
                raise Misfit(f"{key} is {quoted(found[key])}, expected {quoted(expected)}")
            continue
        value = found[key]
        for number in value if isinstance(expected, list) and isinstance(value, list) else [value]:
            if not isinstance(number, int | float) or isinstance(number, bool) or not 0 <= number < 1e18:
                raise Misfit(f"{key} is {quoted(value)}")
