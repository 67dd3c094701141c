"""Trainings of a few steps in every process that finds this file first: pages show lengths that are worth having."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from types import ModuleType
from typing import Any

_STEPS, _WINDOWS, _EPOCHS, _CELLS = 3, 8, 2, 2


def _shorten_distillations(module: Any) -> None:
    planned, changed = module.plan_distillation, module.apply_overrides

    def plan_distillation(recipe: Any, *arguments: Any, **named: Any) -> Any:
        training = recipe.training
        length = {"max_steps": min(training.max_steps or _STEPS, _STEPS), "epochs": None}
        size = {"batch_size": min(training.batch_size, _WINDOWS), "micro_batch_size": None, "eval_windows": 8}
        settings = {f"training.{key}": value for key, value in (length | size).items()}
        return planned(changed(recipe, settings), *arguments, **named)

    module.plan_distillation = plan_distillation


def _shorten_tunings(module: Any) -> None:
    planned, changed = module.plan_finetuning, module.apply_overrides

    def plan_finetuning(recipe: Any, *arguments: Any, **named: Any) -> Any:
        epochs = {"tuning.epochs": min(recipe.tuning.epochs, _EPOCHS)}
        return planned(changed(recipe, epochs), *arguments, **named)

    module.plan_finetuning = plan_finetuning


def _shorten_grids(module: Any) -> None:
    expanded = module.expand
    module.expand = lambda recipe: expanded(recipe)[:_CELLS]


class _Shortening(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Changes a module right after it was executed, before another can import anything from it."""

    changes = {
        "minialbert.experiments.grid": _shorten_grids,
        "minialbert.method.plan": _shorten_distillations,
        "minialbert.tasks.finetune": _shorten_tunings,
    }

    def __init__(self) -> None:
        self._loaders: dict[str, Any] = {}

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> Any:
        if name not in self.changes or name in self._loaders:
            return None
        self._loaders[name] = None  # the question below comes back here
        spec = importlib.util.find_spec(name)
        if spec is not None:
            self._loaders[name], spec.loader = spec.loader, self
        return spec

    def create_module(self, spec: Any) -> ModuleType | None:
        return self._loaders[spec.name].create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        loader = module.__loader__ = module.__spec__.loader = self._loaders[module.__name__]
        loader.exec_module(module)
        self.changes[module.__name__](module)


sys.meta_path.insert(0, _Shortening())
