"""Whether what an interrupted command has left is what it would have left undisturbed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

# Depend on the clock or on what else the machine does.
_CLOCK = {
    "tokens_per_second", "wall_seconds", "session_seconds", "seconds_per_step", "peak_memory_mb", "seconds",
    "step_seconds",
    "total_flos",  # an estimate of the Trainer's that it brings up to date when it logs
}  # fmt: skip
_ENVIRONMENT = {"versions", "commit", "machine"}


def differences(kind: str, reference: Path, other: Path) -> list[str]:
    """Return in what two folders differ that must not; an empty list when all is well.

    Args:
        kind: "distill", "finetune", "grid" or "prepare".
        reference: of the undisturbed command.
        other: of the other one.

    Returns:
        One line for each difference.
    """
    if kind == "prepare":
        return _bytes(reference, other)
    if kind == "grid":
        found = _run(reference, other, models=("model", "adapters"))
        cells = sorted(path.name for path in (reference / "cells").iterdir())
        if cells != sorted(path.name for path in (other / "cells").iterdir()):
            found.append("other cells")
        for cell in cells:
            found += _run(reference / "cells" / cell, other / "cells" / cell, models=("model", "adapters"))
        return found
    found = _run(reference, other, models=("model", "adapters"))
    return found + _last_checkpoint(kind, reference, other)


def _run(reference: Path, other: Path, models: tuple[str, ...]) -> list[str]:
    found = []
    names = [{path.name for path in folder.iterdir()} for folder in (reference, other)]
    found += [f"{name} is only in one of them" for name in sorted(names[0] ^ names[1])]
    for name in ("recipe.yaml", "data.json"):
        if (reference / name).is_file() and (reference / name).read_bytes() != (other / name).read_bytes():
            found.append(name)
    if _log(reference) != _log(other):
        found.append("log.jsonl")
    results = [json.loads((folder / "result.json").read_text()) for folder in (reference, other)]
    if _without(results[0], _CLOCK | _ENVIRONMENT) != _without(results[1], _CLOCK | _ENVIRONMENT):
        found.append("result.json")
    for name in models:
        if (reference / name).is_dir() and (other / name).is_dir():
            found += [f"{name}/{line}" for line in _bytes(reference / name, other / name)]
    return found


def _bytes(reference: Path, other: Path) -> list[str]:
    """Compare two trees file by file; of tensors, say which."""
    files = [
        {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()}
        for folder in (reference, other)
    ]
    found = [f"{name} is only in one of them" for name in sorted(files[0] ^ files[1])]
    for name in sorted(files[0] & files[1]):
        if (reference / name).read_bytes() == (other / name).read_bytes():
            continue
        found.append(str(name))
        if name.suffix == ".safetensors":
            one, two = (safetensors.torch.load_file(folder / name) for folder in (reference, other))
            found[-1] += f" ({', '.join(sorted(_unequal(one, two))[:3]) or 'not its tensors'})"
    return found


def _last_checkpoint(kind: str, reference: Path, other: Path) -> list[str]:
    """Compare the newest checkpoints: weights, optimiser, schedule, and what else a run goes on from."""
    steps = [
        max(
            (int(path.name.partition("-")[2]) for path in (folder / "checkpoints").glob("checkpoint-*")),
            default=None,
        )
        for folder in (reference, other)
    ]
    if (
        kind == "finetune" and steps[0] != steps[1]
    ):  # one that was asked to stop at its very end writes one more
        return []
    if steps[0] != steps[1]:
        return [f"last checkpoints are of steps {steps[0]} and {steps[1]}"]
    if steps[0] is None:
        return []
    folders = [folder / "checkpoints" / f"checkpoint-{steps[0]}" for folder in (reference, other)]
    found = []
    for file in sorted(folders[0].glob("*.safetensors")):
        if file.read_bytes() != (folders[1] / file.name).read_bytes():
            found.append(f"checkpoint: {file.name}")
    for name in ("optimizer.pt", "scheduler.pt"):
        states = [torch.load(folder / name, weights_only=True) for folder in folders]
        if _unequal(*states):
            found.append(f"checkpoint: {name} ({', '.join(sorted(_unequal(*states))[:3])})")
    for name in ("progress.json", "trainer_state.json"):
        values = [_without(json.loads((folder / name).read_text()), _CLOCK) for folder in folders]
        if values[0] != values[1]:
            keys = [key for key in values[0] if values[0][key] != values[1].get(key)]
            found.append(f"checkpoint: {name} ({', '.join(keys)})")
    return found


def _log(folder: Path) -> list[Any]:
    path = folder / "log.jsonl"
    if not path.is_file():
        return []
    return [_without(json.loads(line), _CLOCK) for line in path.read_text().splitlines()]


def _without(value: Any, keys: set[str]) -> Any:
    if isinstance(value, dict):
        return {key: _without(entry, keys) for key, entry in value.items() if key not in keys}
    return [_without(entry, keys) for entry in value] if isinstance(value, list) else value


def _unequal(one: Any, two: Any, name: str = "") -> list[str]:
    """Return the places where two nested values of tensors and numbers differ."""
    if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
        return [] if one.dtype == two.dtype and torch.equal(one, two) else [name]
    if isinstance(one, dict) and isinstance(two, dict) and one.keys() == two.keys():
        return [place for key in one for place in _unequal(one[key], two[key], f"{name}.{key}".strip("."))]
    if isinstance(one, list) and isinstance(two, list) and len(one) == len(two):
        pairs = enumerate(zip(one, two, strict=True))
        return [place for index, pair in pairs for place in _unequal(*pair, f"{name}[{index}]")]
    return [] if type(one) is type(two) and one == two else [name or "all"]
