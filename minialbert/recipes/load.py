"""Recipes: one YAML per experiment, read into typed and frozen values.

A recipe names every hyper-parameter of one distillation (`Recipe`) or one fine-tuning (`FinetuneRecipe`) and
nothing else; a file may name another recipe as its `base`, and then holds what differs. Shipped recipes of the second
kind lie in a folder, and are listed as `finetune/NAME`; those of the paper in miniature as `miniature/NAME`.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, overload

import yaml
from pydantic import ValidationError

from minialbert.errors import UserError, listed, local_path, quoted, shown
from minialbert.recipes.schema import FinetuneRecipe, Mark, Recipe, RecipeBase, flat_settings, marked
from minialbert.recipes.yaml import line_of, read_yaml, read_yaml_value

SHIPPED = Path(__file__).parent
# Where the shipped recipes of each kind lie under that folder, and what their names begin with.
_FOLDERS: dict[type[RecipeBase], dict[str, str]] = {
    Recipe: {"distil": "", "miniature": "miniature/"},
    FinetuneRecipe: {"finetune": "finetune/"},
}
# What a caller changes of a recipe: values by key, or entries as `--set` takes them.
Settings = Mapping[str, Any] | Sequence[str]
_LONGEST_CHAIN = 8
# Faults of one file that are told at once.
_MAX_FAULTS = 8

AnyRecipe = TypeVar("AnyRecipe", bound=RecipeBase)


class RecipeSummary(NamedTuple):
    """One line of the list of shipped recipes."""

    name: str  # to give to `--recipe`
    description: str
    paper: str | None  # table and row
    path: Path
    kind: type[RecipeBase]


@overload
def load_recipe(name_or_path: str) -> Recipe: ...
@overload
def load_recipe(name_or_path: str, kind: type[AnyRecipe]) -> AnyRecipe: ...
def load_recipe(name_or_path: str, kind: type[RecipeBase] = Recipe) -> RecipeBase:
    """Returns a shipped recipe, or one read from a YAML file.

    The name is one from `list_recipes` (of a fine-tuning recipe, with or without its folder) and comes first: write
    `./default` for a file of that name. Every default is filled in; all faults of a file are told in one line.
    """
    return _read_recipe(_path_of(str(name_or_path), kind), kind)


def with_settings(recipe: AnyRecipe, given: Mapping[str, Any], settings: Settings) -> AnyRecipe:
    """Return a recipe with values by key, and with settings as `apply_overrides` takes them, which count more."""
    if isinstance(settings, Mapping):
        return apply_overrides(recipe, {**given, **settings})
    named = [f"{key}={json.dumps(_plain(value), ensure_ascii=False)}" for key, value in given.items()]
    return apply_overrides(recipe, [*named, *settings])


def apply_overrides(recipe: AnyRecipe, overrides: Settings) -> AnyRecipe:
    """Returns a new recipe with some values replaced, checked again as a whole.

    Overrides are values by key, as in `{"distill.output_weight": 4}`, or entries like `distill.output_weight=4`, whose
    values are YAML scalars or lists; `None` and `null` clear a value. Overriding only one of `training.max_steps` and
    `training.epochs` clears the other; another `student.init` clears `student.init_layer`.
    """
    values: dict[str, Any] = recipe.model_dump()
    sections = recipe.sections()
    label = "settings:" if isinstance(overrides, Mapping) else "--set"
    changed = dict(overrides) if isinstance(overrides, Mapping) else _parsed(overrides)
    changed = {str(key): _plain(value) for key, value in changed.items()}
    _clear_others(changed, values)
    for key, value in changed.items():
        section, dot, field = key.partition(".")
        if section in sections and not dot:
            example = next(iter(sections[section].model_fields))
            raise UserError(
                f"{label} {shown(key)}: is a section; name one of its keys, as in {key}.{example}"
            )
        if dot and section not in sections:
            raise UserError(f"{label} {shown(key)}: unknown section{_did_you_mean(section, list(sections))}")
        (values[section] if dot else values)[field or section] = value
    return _validate(values, label.removesuffix(":"), type(recipe))


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value  # numbers and arrays of a library's own


def keys_of(settings: Settings) -> set[str]:
    """Return the keys that settings name."""
    return set(settings if isinstance(settings, Mapping) else _parsed(settings))


def without_effect(recipe: RecipeBase, settings: Settings, idle: Mapping[str, bool]) -> list[str]:
    """Return a line on settings that change nothing: their names begin as a key of `idle` whose value holds."""
    prefixes = tuple(name for name, is_idle in idle.items() if is_idle)
    values = flat_settings(recipe.model_dump())
    told = sorted(key for key in keys_of(settings) if key.startswith(prefixes) and values.get(key))
    return [f"settings: without effect here: {', '.join(told)}"] if told else []


def _parsed(overrides: Sequence[str]) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UserError(f"--set takes key=value, as in distill.output_weight=4; got {quoted(override)}")
        changed[key] = read_yaml_value(text, f"--set {shown(key)}")
    return changed


def list_recipes() -> list[RecipeSummary]:
    """Returns a summary of each shipped recipe, those of distillation first, in the order of their names."""
    return [find_recipe(name) for kind in _FOLDERS for name in _shipped(kind)]


def find_recipe(name: str) -> RecipeSummary:
    """Returns the summary of a shipped recipe, by its name in `list_recipes`."""
    for kind in _FOLDERS:
        if path := _shipped(kind).get(name):
            recipe = _read_recipe(path, kind)
            return RecipeSummary(name, recipe.description, recipe.paper, path, kind)
    raise _no_recipe(name, [known for kind in _FOLDERS for known in _shipped(kind)])


def copy_recipe(name: str, destination: str | Path, overwrite: bool = False) -> Path:
    """Returns the path of a copy of a shipped recipe, comments included: a file, or `NAME.yaml` in a directory."""
    summary = find_recipe(name)
    target = local_path(destination)
    target = target / summary.path.name if target.is_dir() else target
    if not target.parent.is_dir():
        raise UserError(f"{target}: there is no directory {target.parent}; create it first")
    try:
        with target.open("wb" if overwrite else "xb") as file:
            file.write(summary.path.read_bytes())
    except FileExistsError:
        raise UserError(f"{target} exists; choose another destination or allow overwriting") from None
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror})") from None
    return target


def dump_recipe(recipe: RecipeBase) -> str:
    """Returns the recipe as YAML that `load_recipe` reads back: every value explicit, in the schema's order."""
    return yaml.safe_dump(recipe.model_dump(), sort_keys=False, allow_unicode=True, width=1000)


def _shipped(kind: type[RecipeBase]) -> dict[str, Path]:
    """Return the files of a kind by the names to give to `--recipe`, the folders in their order."""
    return {
        prefix + path.stem: path
        for folder, prefix in _FOLDERS[kind].items()
        for path in sorted((SHIPPED / folder).glob("*.yaml"), key=lambda path: path.stem)
    }


def _no_recipe(name: str, known: list[str]) -> UserError:
    return UserError(
        f"no recipe is called {quoted(name)}{_did_you_mean(name, known)}; there are: {listed(known, 400)}"
    )


def _path_of(text: str, kind: type[RecipeBase]) -> Path:
    """Return the file of a shipped recipe, of fine-tuning also without its folder, or what looks like a file."""
    known, (prefix, *_) = _shipped(kind), _FOLDERS[kind].values()
    if found := known.get(text) or known.get(prefix + text):
        return found
    path = local_path(text)
    in_ours = len(path.parts) > 1 and f"{path.parts[0]}/" in _FOLDERS[kind].values()
    if path.suffix in (".yaml", ".yml") or (len(path.parts) > 1 and not in_ours) or path.exists():
        return path
    raise _no_recipe(text, [name.removeprefix(prefix) for name in known])


def _read_recipe(path: Path, kind: type[AnyRecipe], chain: tuple[Path, ...] = ()) -> AnyRecipe:
    return _read_shipped(path, kind) if SHIPPED in path.parents else _read(path, kind, chain)


@cache  # the files do not change, and many are based on one
def _read_shipped(path: Path, kind: type[AnyRecipe]) -> AnyRecipe:
    return _read(path, kind, ())


def _read(path: Path, kind: type[AnyRecipe], chain: tuple[Path, ...]) -> AnyRecipe:
    values, node = read_yaml(path)
    other = Recipe if kind is not Recipe else FinetuneRecipe
    alien = [str(key) for key in values if key in other.sections() and key not in kind.sections()]
    if alien:
        verb, right = ("distill", "finetune") if kind is Recipe else ("finetune", "distill")
        raise UserError(
            f"{path}: has the section {alien[0]!r}, so it is a recipe for `minialbert {right}`, not for {verb}"
        )
    base = values.pop("base", None)
    if base is None:
        return _validate({"name": path.stem, **values}, str(path), kind, node)
    if not isinstance(base, str):
        raise UserError(
            f"{path}: base (line {line_of(node, ['base'])}): should name a recipe, got {quoted(base)}"
        )
    if len(chain) == _LONGEST_CHAIN:
        raise UserError(
            f"{path}: the {len(chain)}th recipe of a chain of bases; does it come back to itself?"
        )
    inherited = _read_recipe(
        path.parent / _path_of(base, kind), kind, (*chain, path)
    )  # an absolute one stays
    return _validate(_merge(inherited, {"name": path.stem, **values}), str(path), kind, node)


def _merge(base: RecipeBase, values: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return a base's values with those of a file in their place, section by section."""
    # What names the base says nothing of what is based on it.
    merged: dict[Any, Any] = base.model_dump(exclude=set(marked(Mark.NAME)))
    given = {
        f"{name}.{key}": value
        for name, section in values.items()
        if isinstance(section, dict)
        for key, value in section.items()
    }
    _clear_others(given, merged)
    for key, value in values.items():
        section = merged.get(key)
        if isinstance(section, dict) and isinstance(value, dict | None):
            value = section | (value or {})
        merged[key] = value
    return merged


def _clear_others(given: Mapping[str, Any], values: dict[Any, Any]) -> None:
    """Clear what a base has where something given, by dotted key, takes its place: a length, or the start's layer."""
    if "training" not in values:  # which a recipe of a tuning has not
        return
    for one, other in (("max_steps", "epochs"), ("epochs", "max_steps")):
        if given.get(f"training.{one}") is not None and f"training.{other}" not in given:
            values["training"][other] = None
    if given.get("student.init", "teacher") != "teacher" and "student.init_layer" not in given:
        values["student"]["init_layer"] = None


def _validate(
    values: Mapping[Any, Any], source: str, kind: type[AnyRecipe], node: yaml.Node | None = None
) -> AnyRecipe:
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        found = list(islice(_faults(error, kind, node), _MAX_FAULTS + 1))
        faults = "; ".join(found[:_MAX_FAULTS]) + ("; and more" if len(found) > _MAX_FAULTS else "")
        raise UserError(f"{source}: {faults}") from None


def _faults(error: ValidationError, kind: type[RecipeBase], node: yaml.Node | None) -> Iterator[str]:
    """Yields one message per faulty key: its path, its line where known, what was expected, what came."""
    grouped: dict[tuple[int | str, ...], list[Any]] = {}
    for detail in error.errors(include_url=False):
        grouped.setdefault(_key_path(detail["loc"], detail["type"]), []).append(detail)
    for path, details in grouped.items():
        first = details[0]
        if first["type"] == "extra_forbidden":
            expected = "unknown key" + _suggest_key(path, kind)
        elif first["type"] == "missing":
            expected = "required, but missing"
        elif first["type"] == "value_error":
            expected = shown(first["ctx"]["error"], 300)
        else:
            wishes = dict.fromkeys(str(detail["msg"]).removeprefix("Input ") for detail in details)
            expected = f"{' or '.join(wishes)}, got {quoted(first['input'])}"
            if first["type"] == "string_type" and isinstance(first["input"], bool | float):
                expected += '; what is in quotes (") is text'
        line = line_of(node, path)
        where = shown(".".join(map(str, path)), 80) + (f" (line {line})" if line else "")
        yield f"{where}: {expected}" if where else expected


def _key_path(location: Iterable[int | str], kind: str) -> tuple[int | str, ...]:
    """Returns pydantic's location without the names it gives to the members of a union."""
    path = tuple(location)
    members = path[2:] if kind == "extra_forbidden" else (part for part in path[2:] if isinstance(part, int))
    return path[:2] + tuple(members)


def _suggest_key(path: tuple[int | str, ...], kind: type[RecipeBase]) -> str:
    key = str(path[-1])
    sections = kind.sections()
    section = sections.get(str(path[0])) if len(path) > 1 else None
    near = _did_you_mean(key, list((section or kind).model_fields))
    if near:
        return near
    elsewhere = [f"{name}.{field}" for name, model in sections.items() for field in model.model_fields]
    return "".join(f"; did you mean {full}?" for full in elsewhere if full.endswith(f".{key}"))


def _did_you_mean(word: str, choices: list[str]) -> str:
    near = difflib.get_close_matches(word, choices, n=1)
    return f"; did you mean {near[0]}?" if near else ""
