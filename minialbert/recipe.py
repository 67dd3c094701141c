"""Recipes: one YAML per experiment, read into typed and frozen values.

A recipe names every hyper-parameter of one distillation and nothing else. Classes elsewhere in the package
take plain arguments; only the command line reads recipes.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from minialbert.errors import UserError
from minialbert.recipe_schema import (
    SECTIONS,
    DataRecipe,
    DistillRecipe,
    Recipe,
    StudentRecipe,
    TeacherRecipe,
    TrainingRecipe,
)
from minialbert.recipe_yaml import line_of, read_yaml, read_yaml_value

__all__ = [
    "DataRecipe",
    "DistillRecipe",
    "Recipe",
    "RecipeSummary",
    "StudentRecipe",
    "TeacherRecipe",
    "TrainingRecipe",
    "apply_overrides",
    "copy_recipe",
    "dump_recipe",
    "list_recipes",
    "load_recipe",
    "with_reference",
]

SHIPPED = Path(__file__).with_name("recipes")
REFERENCE_BEGIN, REFERENCE_END = "<!-- reference:begin -->\n", "<!-- reference:end -->\n"


@dataclass(frozen=True)
class RecipeSummary:
    """One line of the list of shipped recipes.

    Attributes:
        name: the name to give to `--recipe`.
        description: one sentence.
        paper: table and row of the paper, or None.
        path: the YAML file.
    """

    name: str
    description: str
    paper: str | None
    path: Path


def load_recipe(name_or_path: str) -> Recipe:
    """Returns a shipped recipe, or one read from a YAML file.

    Args:
        name_or_path: a name from `list_recipes`, or the path of a YAML file. A shipped name comes first;
            write `./default` for a file of that name.

    Returns:
        The recipe, with every default filled in.

    Raises:
        UserError: if there is no such recipe, or if the file cannot be read or does not fit the schema. All
            faults of the file are told in one line.
    """
    text = str(name_or_path)
    shipped = SHIPPED / f"{text}.yaml"
    if text in _shipped_names():
        return _read_recipe(shipped)
    path = Path(text).expanduser()
    if path.suffix in (".yaml", ".yml") or len(path.parts) > 1 or path.exists():
        return _read_recipe(path)
    names = _shipped_names()
    raise UserError(
        f"no recipe is called {text!r}{_did_you_mean(text, names)}; there are: {', '.join(names)}"
    )


def apply_overrides(recipe: Recipe, overrides: Sequence[str]) -> Recipe:
    """Returns the recipe with some values replaced, checked again as a whole.

    Args:
        recipe: the recipe to start from; it is not changed.
        overrides: entries like `distill.output_weight=4`. Values are YAML scalars or lists; `null` clears a
            value. Overriding only one of `training.max_steps` and `training.epochs` clears the other.

    Returns:
        A new recipe.

    Raises:
        UserError: if an entry is no `key=value`, names an unknown key or holds a value that does not fit.
    """
    values: dict[str, Any] = recipe.model_dump()
    changed: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        key = key.strip()
        if not equals or not key:
            raise UserError(f"--set takes key=value, as in distill.output_weight=4; got {override!r}")
        changed[key] = read_yaml_value(text, f"--set {key}")
    for one, other in (("max_steps", "epochs"), ("epochs", "max_steps")):
        if changed.get(f"training.{one}") is not None and f"training.{other}" not in changed:
            values["training"][other] = None
    for key, value in changed.items():
        section, dot, field = key.partition(".")
        if section in SECTIONS and not dot:
            raise UserError(
                f"--set {key}: is a section; name one of its keys, as in {key}.{_an_example(section)}"
            )
        if dot and section not in SECTIONS:
            raise UserError(f"--set {key}: unknown section{_did_you_mean(section, list(SECTIONS))}")
        (values[section] if dot else values)[field or section] = value
    return _validate(values, "--set")


def list_recipes() -> list[RecipeSummary]:
    """Returns the shipped recipes in the order of their names.

    Returns:
        One summary per recipe.
    """
    recipes = [(load_recipe(name), SHIPPED / f"{name}.yaml") for name in _shipped_names()]
    return [RecipeSummary(recipe.name, recipe.description, recipe.paper, path) for recipe, path in recipes]


def copy_recipe(name: str, destination: str | Path, overwrite: bool = False) -> Path:
    """Returns the path of a copy of a shipped recipe, comments included, for editing.

    Args:
        name: a name from `list_recipes`.
        destination: the file to write, or a directory to put `NAME.yaml` into.
        overwrite: replace the file if it is there.

    Returns:
        The file written.

    Raises:
        UserError: if there is no such recipe, or if the file exists or cannot be written.
    """
    names = _shipped_names()
    if name not in names:
        raise UserError(
            f"no recipe is called {name!r}{_did_you_mean(name, names)}; there are: {', '.join(names)}"
        )
    target = Path(destination).expanduser()
    target = target / f"{name}.yaml" if target.is_dir() else target
    if not target.parent.is_dir():
        raise UserError(f"{target}: there is no directory {target.parent}; create it first")
    try:
        with target.open("wb" if overwrite else "xb") as file:
            file.write((SHIPPED / f"{name}.yaml").read_bytes())
    except FileExistsError:
        raise UserError(f"{target} exists; choose another destination or allow overwriting") from None
    except OSError as error:
        raise UserError(f"{target}: cannot be written ({error.strerror})") from None
    return target


def dump_recipe(recipe: Recipe) -> str:
    """Returns the recipe as YAML with every value explicit, in the schema's order.

    Args:
        recipe: the recipe.

    Returns:
        Text that `load_recipe` reads back to an equal recipe.
    """
    return yaml.safe_dump(recipe.model_dump(), sort_keys=False, allow_unicode=True, width=1000)


def with_reference(markdown: str) -> str:
    """Returns a page with its tables of recipes and keys made anew from the schema.

    Args:
        markdown: the page, `docs/recipes.md`, with the markers `reference:begin` and `reference:end`.

    Returns:
        The page with everything between the markers replaced.
    """
    lines = ["", "## The shipped recipes", "", "| name | what | paper |", "|---|---|---|"]
    lines += [f"| `{row.name}` | {row.description} | {row.paper or '-'} |" for row in list_recipes()]
    lines += ["", "## Every key"]
    for name, section in SECTIONS.items():
        lines += [
            "",
            f"### `{name}`",
            "",
            section.__doc__ or "",
            "",
            "| key | default | what |",
            "|---|---|---|",
        ]
        for key, field in section.model_fields.items():
            default = yaml.safe_dump(field.default).splitlines()[0]
            lines.append(f"| `{key}` | `{default}` | {(field.description or '').replace('|', '&#124;')} |")
    before, _, rest = markdown.partition(REFERENCE_BEGIN)
    _, _, after = rest.partition(REFERENCE_END)
    return before + REFERENCE_BEGIN + "\n".join(lines) + "\n\n" + REFERENCE_END + after


def _shipped_names() -> list[str]:
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def _read_recipe(path: Path) -> Recipe:
    values, node = read_yaml(path)
    return _validate({"name": path.stem, **values}, str(path), node)


def _validate(values: Mapping[Any, Any], source: str, node: yaml.Node | None = None) -> Recipe:
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        faults = "; ".join(_faults(error, node))
        raise UserError(f"{source}: {faults}") from None


def _faults(error: ValidationError, node: yaml.Node | None) -> Iterator[str]:
    """Yields one message per faulty key: its path, its line where known, what was expected, what came."""
    grouped: dict[tuple[int | str, ...], list[Any]] = {}
    for detail in error.errors(include_url=False):
        grouped.setdefault(_key_path(detail["loc"], detail["type"]), []).append(detail)
    for path, details in grouped.items():
        first = details[0]
        if first["type"] == "extra_forbidden":
            expected = "unknown key" + _suggest_key(path)
        elif first["type"] == "missing":
            expected = "required, but missing"
        elif first["type"] == "value_error":
            expected = str(first["ctx"]["error"])
        else:
            wishes = dict.fromkeys(str(detail["msg"]).removeprefix("Input ") for detail in details)
            expected = f"{' or '.join(wishes)}, got {_shorten(first['input'])}"
        line = line_of(node, path)
        where = ".".join(map(str, path)) + (f" (line {line})" if line else "")
        yield f"{where}: {expected}" if where else expected


def _key_path(location: Iterable[int | str], kind: str) -> tuple[int | str, ...]:
    """Returns pydantic's location without the names it gives to the members of a union."""
    path = tuple(location)
    if kind == "extra_forbidden":
        return path
    return path[:2] + tuple(part for part in path[2:] if isinstance(part, int))


def _suggest_key(path: tuple[int | str, ...]) -> str:
    key = str(path[-1])
    section = SECTIONS.get(str(path[0])) if len(path) > 1 else None
    near = _did_you_mean(key, list((section or Recipe).model_fields))
    if near:
        return near
    elsewhere = [f"{name}.{field}" for name, model in SECTIONS.items() for field in model.model_fields]
    return "".join(f"; did you mean {full}?" for full in elsewhere if full.endswith(f".{key}"))


def _did_you_mean(word: str, choices: list[str]) -> str:
    near = difflib.get_close_matches(word, choices, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _an_example(section: str) -> str:
    return next(iter(SECTIONS[section].model_fields))


def _shorten(value: object, limit: int = 60) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 3] + "..."
