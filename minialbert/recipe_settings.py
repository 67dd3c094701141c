"""The settings of a recipe by dotted name, and which of them are places on a machine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Hub ids, or paths.
PLACES = frozenset(
    {
        "data.corpus",
        "data.tokenizer",
        "model.name",
        "student.init_from",
        "task.data",
        "teacher.model",
    }
)
# Of these, where a hub id begins with "hub:".
_MARKED = frozenset({"data.corpus", "task.data"})
# Schemas have one level; what is nested more deeply comes from a file that no run wrote.
_MOST_LEVELS = 10


def flat_settings(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return nested settings by dotted names.

    Args:
        values: sections, or settings without one; a recipe's dump.

    Returns:
        Values by names such as "training.seed", in the order of the recipe.
    """
    return _flat(values, "", _MOST_LEVELS)


def _flat(values: Mapping[str, Any], prefix: str, levels: int) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict) and levels:
            flat |= _flat(value, f"{name}.", levels - 1)
        else:
            flat[name] = value
    return flat


def without_places(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a recipe's dump without the folders of a machine, to be shown or sent.

    Args:
        values: sections.

    Returns:
        The same settings, `PLACES` as `without_folders` has them.
    """
    shown = {key: dict(value) if isinstance(value, dict) else value for key, value in values.items()}
    for place in PLACES:
        section, _, key = place.partition(".")
        if isinstance(shown.get(section), dict) and key in shown[section]:
            shown[section][key] = without_folders(shown[section][key], place)
    return shown


def without_folders(value: Any, place: str) -> Any:
    """Return the value of one of `PLACES` without the folders of a machine.

    Args:
        value: a path, a hub id, a list of them, or None.
        place: the setting.

    Returns:
        The last part of a path, and for the folder `model` of a run also the run's name; anything else as it is.
    """
    if isinstance(value, list):
        return [without_folders(entry, place) for entry in value]
    if not isinstance(value, str) or re.match(r"hub:[^/]", value):
        return value
    is_path = value.startswith((".", "~", "/")) or re.match(r"[A-Za-z]:|hub:/", value) or "\\" in value
    # Where hub ids are not marked, OWNER/NAME may be one.
    if not (is_path or value.count("/") > (0 if place in _MARKED else 1)):
        return value
    parts = Path(value.replace("\\", "/")).parts
    return "/".join(parts[-2:] if parts[-1:] == ("model",) else parts[-1:])


__all__ = ["PLACES", "flat_settings", "without_folders", "without_places"]
