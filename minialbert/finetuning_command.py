"""The command line that does a tuning again."""

from __future__ import annotations

import json
import shlex

from .recipe import load_recipe
from .runs import display_name
from .tuning_schema import FinetuneRecipe

# What the command line has options for.
_OPTIONS = {("model", "name"), ("task", "name"), ("task", "data"), ("tuning", "mode"), ("teacher", "model")}


def finetune_command(recipe: FinetuneRecipe) -> str:
    """Return the command line that runs a recipe again, with placeholders for directories.

    Args:
        recipe: the resolved recipe.

    Returns:
        One line.
    """
    model, task = str(display_name(recipe.model.name)), str(recipe.task.name)
    words = ["minialbert", "finetune", "--model", model, "--task", task]
    if recipe.task.data is not None:
        words += ["--data", str(display_name(recipe.task.data))]
    if recipe.tuning.mode == "adapters":
        words.append("--adapters")
    if recipe.teacher.model is not None:
        words += ["--teacher", str(display_name(recipe.teacher.model))]
    shipped = "adapters" if recipe.tuning.mode == "adapters" else "default"
    defaults = load_recipe(shipped, FinetuneRecipe).model_dump()  # what the command line starts from
    for section, values in recipe.model_dump(include={"model", "task", "tuning", "teacher"}).items():
        for key, value in values.items():
            elsewhere = (section, key) in _OPTIONS or key == "report_to"  # where a log goes is the user's own
            if not elsewhere and value != defaults[section][key]:
                words += ["--set", f"{section}.{key}={json.dumps(value, ensure_ascii=False)}"]
    return shlex.join(words)
