"""Whatever a recipe file or an override says, it is a recipe that survives being written, or refused in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hostile import NAMES, hunt, mutated, mutated_values, tiers
from hypothesis import strategies as st

from minialbert.recipes.load import (
    apply_overrides,
    copy_recipe,
    dump_recipe,
    find_recipe,
    list_recipes,
    load_recipe,
)
from minialbert.recipes.schema import FinetuneRecipe, Recipe, RecipeBase

KINDS: tuple[type[RecipeBase], ...] = (Recipe, FinetuneRecipe)
SHORT: dict[type[RecipeBase], bytes] = {
    Recipe: b"description: short\nteacher: {model: x}\ndistill:\n  layer_map: [2, 4]\n  mlm_weight: 5e-1\n"
    b"student:\n  num_hidden_layers: 2\n  init: teacher\ntraining:\n  max_steps: 10\n  epochs: null\n",
    FinetuneRecipe: b"model:\n  name: x\ntask: {name: rte, data: here}\ntuning:\n  epochs: 3\n  learning_rate: 5e-5\n"
    b"grid:\n  seed: [1, 2]\n  batch_size: []\n",
}
# What YAML can do that a recipe never needs.
TRICKS = (
    b"a: &a [x, x, x, x, x, x, x, x]\nb: &b [*a, *a, *a, *a, *a, *a, *a, *a]\nc: &c [*b, *b, *b, *b, *b, *b, *b]\n"
    b"d: &d [*c, *c, *c, *c, *c, *c, *c, *c]\ne: &e [*d, *d, *d, *d, *d, *d, *d]\nname: [*e, *e, *e, *e, *e, *e, *e]\n",
    b"a: &a {x: 1}\nb: &b {<<: [*a, *a, *a]}\nc: &c {<<: [*b, *b, *b]}\n",
    b"&a [*a]\n", b"name: &a [*a]\n", b"? [x]\n: 1\n", b"? {x: 1}\n: 2\n", b"<<: {name: x}\n", b"name: x\nname: y\n",
    b"name: !!python/object/apply:os.system [echo]\n", b"!!python/name:os.system\n", b"name: !!binary '***'\n",
    b"name: !!timestamp x\n", b"name: !!int x\n", b"name: !!int ''\n", b"name: !!bool x\n", b"name: !!float x\n",
    b"name: !!null x\n", b"name: !!set {x}\n", b"name: !!omap [x: 1]\n", b"name: !!map x\n", b"name: !!seq {}\n",
    b"name: 2024-99-99\n", b"name: 2024-01-01\n", b"name: 12:59:60:59\n", b"name: 0x" + b"f" * 5_000 + b"\n",
    b"name: " + b"1:" * 4_000 + b"1\n", b"name: " + b"7" * 5_000 + b"\n", b"name: 0b" + b"1" * 9_000 + b"\n",
    b'name: "\\ud800"\n', b'name: "\\U00110000"\n', b'"\\e[31m": 1\n', b'name: "\\0"\n', b"\xef\xbb\xbfname: x\n",
    b"[" * 2_000, b"{a: " * 2_000, b"- " * 2_000, b"? " * 2_000, b"a:\n" * 2_000, b"- - - - x\n", b"---\n---\n",
    b"%YAML 9.9\n---\nname: x\n", b"%TAG ! tag:x,2000:\n---\nname: !y z\n", b"1: 2\n", b"null: 1\n", b"1.5: x\n",
    b"2024-01-01: x\n", b"true: x\n", b"0x" + b"f" * 5_000 + b": 1\n", b"training: []\n", b"training: x\n",
    b"name: |\n  x\n  y\n", b"name: >-\n x\n", b"@\n", b"`\n", b"\t\n", b"name: .inf\n", b"training: {epochs: .nan}\n",
    b"training: {max_steps: 1e3}\n", b"distill: {layer_map: [" + b"0, " * 5_000 + b"0]}\n", b"name: " + b"x" * 5_000,
    b"training: {max_steps: 10, learning_rate: 1" + b"0" * 400 + b"}\n", b"? x\n" * 500, b"x" * 1_100_000,
)  # fmt: skip


def check(recipe: RecipeBase, folder: Path) -> None:
    text = dump_recipe(recipe)
    again = folder / "again.yaml"
    again.write_text(text, encoding="utf-8")
    assert load_recipe(str(again), type(recipe)) == recipe


@tiers
@pytest.mark.parametrize("kind", KINDS, ids=["distil", "finetune"])
def test_files(examples: int, kind: type[RecipeBase], tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"

    def attack(content: bytes) -> None:
        path.write_bytes(content)
        check(load_recipe(str(path), kind), tmp_path)

    trick = st.sampled_from(TRICKS)
    contents = st.one_of(
        mutated([SHORT[kind], *TRICKS[:12]]),
        mutated([SHORT[kind]], most_steps=2),
        st.tuples(trick, st.just(SHORT[kind])).map(b"".join),
        st.tuples(st.just(SHORT[kind]), trick).map(b"".join),
        trick,
    )
    hunt(f"recipe files ({kind.__name__})", examples, contents, attack, folder=tmp_path)


@pytest.mark.parametrize("kind", KINDS, ids=["distil", "finetune"])
@pytest.mark.parametrize("trick", TRICKS, ids=range(len(TRICKS)))
def test_every_trick(kind: type[RecipeBase], trick: bytes, tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"

    def attack(content: bytes) -> None:
        path.write_bytes(content)
        check(load_recipe(str(path), kind), tmp_path)

    hunt("a trick", 1, st.just(trick), attack, folder=tmp_path)


@tiers
@pytest.mark.parametrize("kind", KINDS, ids=["distil", "finetune"])
def test_values(examples: int, kind: type[RecipeBase], tmp_path: Path) -> None:
    """Any value under any key, spelled by PyYAML itself."""
    path = tmp_path / "mine.yaml"
    sample = load_recipe("default", kind).model_dump()

    def attack(values: Any) -> None:
        path.write_bytes(yaml.safe_dump(values, allow_unicode=False).encode())
        check(load_recipe(str(path), kind), tmp_path)

    inputs = mutated_values(sample, most_changes=2)
    hunt(f"recipe values ({kind.__name__})", examples, inputs, attack, folder=tmp_path)


@tiers
@pytest.mark.parametrize("kind", KINDS, ids=["distil", "finetune"])
def test_overrides(examples: int, kind: type[RecipeBase], tmp_path: Path) -> None:
    recipe = load_recipe("default", kind)
    sections = [*kind.sections(), *Recipe.sections(), "x", ""]
    fields = [name for section in kind.sections().values() for name in section.model_fields]

    def attack(overrides: list[str]) -> None:
        check(apply_overrides(recipe, overrides), tmp_path)

    plain = st.sampled_from(
        ["1", "0", "null", "true", "5e-4", "x", "[1, 2]", "[]", "adapters", "{a: 1}", "[[1]]", "."]
    )
    tricks = st.sampled_from(TRICKS).map(lambda content: content.decode("utf-8", "surrogateescape"))
    value = st.one_of(plain, plain, NAMES, tricks)
    known = [f"{name}.{field}" for name, section in kind.sections().items() for field in section.model_fields]
    key = st.one_of(
        st.sampled_from(known),
        st.sampled_from(known),
        st.tuples(st.sampled_from(sections), st.one_of(st.sampled_from(fields), NAMES)).map(".".join),
        st.sampled_from(["training.max_steps", "training.epochs", "name", "paper", *sections]),
        NAMES,
    )
    override = st.tuples(key, value).map("=".join)
    same = [
        f"{name}.{key}={yaml.safe_dump(value, default_flow_style=True).splitlines()[0]}"
        for name, section in recipe.model_dump().items()
        if isinstance(section, dict)
        for key, value in section.items()
    ]
    well = st.sampled_from(same)
    overrides = st.lists(st.one_of(override, override, well, well, well, NAMES), min_size=1, max_size=2)
    hunt(f"recipe overrides ({kind.__name__})", examples, overrides, attack, folder=tmp_path)


@tiers
def test_names(examples: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names of recipes, and where a copy goes: what is refused leaves nothing behind."""
    monkeypatch.chdir(tmp_path)
    shipped = [summary.name for summary in list_recipes()]

    def attack(hostile: tuple[str, str, Any]) -> None:
        name, destination, kind = hostile
        before = set(tmp_path.rglob("*"))
        try:
            copied = copy_recipe(name, destination)
        except ValueError:
            assert set(tmp_path.rglob("*")) == before
            load_recipe(name, kind)
            raise
        assert copied.read_bytes() == find_recipe(name).path.read_bytes()
        copied.unlink()

    # Only into this folder: a hunt writes nothing elsewhere.
    destination = NAMES.filter(lambda text: not text.startswith(("/", "..", "~/")) and text != "~")
    names = st.one_of(st.sampled_from(shipped), NAMES)
    hunt(
        "recipe names",
        examples,
        st.tuples(names, destination, st.sampled_from(KINDS)),
        attack,
        folder=tmp_path,
    )
