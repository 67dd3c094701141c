"""The shipped fine-tuning recipes: the paper's grids, and one per public baseline."""

from __future__ import annotations

import pytest
import yaml

from minialbert.experiments.grid import expand
from minialbert.recipes.load import SHIPPED, dump_recipe, list_recipes, load_recipe
from minialbert.recipes.schema import FinetuneRecipe

NAMES = [
    summary.name.removeprefix("finetune/") for summary in list_recipes() if summary.kind is FinetuneRecipe
]
FULL, ADAPTERS = [5e-5, 3e-5, 1e-5], [5e-5, 5e-4, 1e-3]
# Learning rates, batch sizes and epochs of Tables 7 to 10; the text caps the epochs of the large tasks.
GRIDS = {
    "grid-glue-full-large": ("Table 7", "full", FULL, [8, 16, 32], [3, 5]),
    "grid-glue-full-small": ("Table 7", "full", FULL, [8, 16, 32], [3, 5, 10]),
    "grid-glue-adapters-large": ("Table 8", "adapters", ADAPTERS, [8, 16, 32], [5, 10]),
    "grid-glue-adapters-small": ("Table 8", "adapters", ADAPTERS, [8, 16, 32], [5, 10, 15]),
    "grid-ner-full": ("Table 9", "full", FULL, [16], [5]),
    "grid-ner-adapters": ("Table 10", "adapters", ADAPTERS, [16], [5, 10]),
}
GENERAL = {
    "bert-base": "bert-base-uncased",
    "distilbert": "distilbert-base-uncased",
    "mobilebert": "google/mobilebert-uncased",
    "tinybert-4l-312": "huawei-noah/TinyBERT_General_4L_312D",
}
BIOMEDICAL = {
    "biobert": "dmis-lab/biobert-base-cased-v1.1",
    "distilbiobert": "nlpie/distil-biobert",
    "compactbiobert": "nlpie/compact-biobert",
    "tinybiobert": "nlpie/tiny-biobert",
    "biomobilebert": "nlpie/bio-mobilebert",
}


def load(name: str) -> FinetuneRecipe:
    return load_recipe(name, FinetuneRecipe)


def test_a_recipe_per_grid_and_baseline_of_the_paper():
    own = {"default", "adapters", "adapters-as-published", "demo"}
    assert set(NAMES) == {*GRIDS, *GENERAL, *BIOMEDICAL, *own}


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_survives_being_dumped(name, tmp_path):
    recipe, copy = load(name), tmp_path / "copy.yaml"
    copy.write_text(dump_recipe(recipe))
    assert recipe.name == name
    assert load(str(copy)) == recipe


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_says_how_it_is_run(name):
    path = SHIPPED / "finetune" / f"{name}.yaml"
    text, recipe = path.read_text(encoding="utf-8"), load(name)
    options = (recipe.command or "").split()
    assert options[:2] == ["minialbert", "demo" if name == "demo" else "finetune"]
    assert ("--grid" in options) == (name in GRIDS)
    values = yaml.safe_load(text)
    assert values.pop("base", None) in {None, *(f"finetune/{other}" for other in NAMES)}
    assert list(values) == [key for key in FinetuneRecipe.model_fields if f"\n{key}:" in text]
    if name not in ("default", "adapters", "demo"):
        assert recipe.paper is not None
        assert recipe.task.decoding == "alone"  # the paper's score
        assert options[options.index("--recipe") + 1] == name


@pytest.mark.parametrize("name", GRIDS)
def test_the_grids_hold_the_papers_values(name):
    recipe = load(name)
    table, mode, rates, batches, epochs = GRIDS[name]
    assert (recipe.paper, recipe.tuning.mode) == (table, mode)
    assert recipe.grid.model_dump() == {
        "learning_rate": rates, "batch_size": batches, "epochs": epochs, "seed": [42],
    }  # fmt: skip
    assert recipe.tuning.weight_decay == 0.01
    assert recipe.tuning.lr_scheduler == "linear"
    assert recipe.tuning.warmup_ratio == 0.0
    count = len(rates) * len(batches) * len(epochs)
    assert len(expand(recipe)) == count
    assert recipe.description.endswith(f", {count} cells")


@pytest.mark.parametrize("name", [*GENERAL, *BIOMEDICAL])
def test_a_baseline_is_one_cell_of_its_grid(name):
    recipe = load(name)
    assert recipe.model.name == {**GENERAL, **BIOMEDICAL}[name]
    assert recipe.task.name is None
    assert (recipe.paper or "").startswith("Table 1, " if name in GENERAL else "Table 2, ")
    grids = ["full-large", "full-small"] if name in GENERAL else ["ner-full"]
    for end in grids:
        (grid,) = [load(grid) for grid in GRIDS if grid.endswith(end)]
        cells = [cell.recipe.tuning for cell in expand(grid)]
        assert recipe.tuning in cells
    expected = (3e-5, 32, 3.0) if name in GENERAL else (3e-5, 16, 5.0)
    assert (recipe.tuning.learning_rate, recipe.tuning.batch_size, recipe.tuning.epochs) == expected


def test_adapters_as_published_are_drawn_as_in_the_release():
    recipe = load("adapters-as-published")
    assert (recipe.model.adapter_init, recipe.model.adapter_reduction_factor) == ("as-published", 16)
    for end in ("large", "small"):
        grid = load(f"grid-glue-adapters-{end}")
        assert recipe.tuning in [cell.recipe.tuning for cell in expand(grid)]
