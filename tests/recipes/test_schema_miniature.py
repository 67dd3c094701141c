"""The recipes of the paper in miniature, and recipes that name another one as their base."""

from pathlib import Path

import pytest

from minialbert.errors import UserError
from minialbert.recipes.load import SHIPPED, copy_recipe, dump_recipe, list_recipes, load_recipe
from minialbert.recipes.schema import FinetuneRecipe, Recipe

NAMES = [summary.name for summary in list_recipes() if summary.name.startswith("miniature/")]
STUDENTS = [f"student-{rank}{end}" for rank in (384, 156) for end in ("", "-no-adapters")] + ["student-64"]


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return str(path)


def changes(name: str, base: str = "miniature/student-64") -> dict[str, object]:
    """Return what a recipe has otherwise than another, by dotted key."""
    one, other = load_recipe(name).model_dump(), load_recipe(base).model_dump()
    return {
        f"{section}.{key}": value
        for section in ("teacher", "student", "data", "distill", "training")
        for key, value in one[section].items()
        if value != other[section][key]
    }


def test_every_row_has_the_same_text_and_the_same_budget():
    assert len(NAMES) == 25
    for name in NAMES:
        recipe = load_recipe(name)
        training = recipe.training
        assert training.max_steps is not None
        tokens = training.max_steps * training.batch_size * recipe.data.window_length
        assert tokens == (19_998_720 if name.endswith("-20m") else 2_000_896), name
        assert training.warmup_steps == round(training.max_steps / 10)
        rate = 2e-3 if name.endswith("/muon") else 7e-4
        assert (training.learning_rate, training.seed, training.precision) == (rate, 42, "bf16")
        assert recipe.data == load_recipe("miniature/student-64").data
        assert recipe.teacher.model is None


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_names_itself_and_its_commands(name, tmp_path):
    recipe = load_recipe(name)
    assert f"miniature/{recipe.name}" == name
    text = (SHIPPED / f"{name}.yaml").read_text(encoding="utf-8")
    assert recipe.command.startswith(f"minialbert distill --recipe {name} ")
    # The windows of student-64 serve all: their data are equal, as the test above says.
    assert ("minialbert prepare --recipe miniature/student-64 " in text) == (recipe.name == "student-64")
    assert ('\npaper: "Table ' if recipe.paper else "\npaper: null\n") in text
    assert load_recipe(write(tmp_path, "dumped.yaml", dump_recipe(recipe))) == recipe
    copied = load_recipe(str(copy_recipe(name, tmp_path)))
    assert copied == recipe


def test_the_five_students_are_the_papers_halved():
    for name in STUDENTS:
        recipe, paper = load_recipe(f"miniature/{name}"), recipe_of_the_paper(name)
        rank = paper.student.embedding_size
        assert recipe.student.embedding_size == (None if rank is None else rank // 2)
        assert recipe.student.adapter_reduction_factor == paper.student.adapter_reduction_factor
        assert recipe.student.num_hidden_layers == paper.student.num_hidden_layers // 2
        assert (recipe.student.init, recipe.student.init_layer) == ("teacher", 2)
        assert recipe.distill.preset == "default"


def recipe_of_the_paper(name: str) -> Recipe:
    double = {
        "student-384": "minialbert-768",
        "student-156": "minialbert-312",
        "student-64": "minialbert-128",
    }
    for ours, theirs in double.items():
        if name.startswith(ours):
            return load_recipe(name.replace(ours, theirs))
    raise AssertionError(name)


MASKED_LM = {"distill.attention_weight": 0.0, "distill.hidden_weight": 0.0, "distill.output_weight": 0.0}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hidden-only", {"distill.attention_weight": 0.0}),
        ("attention-only", {"distill.hidden_weight": 0.0}),
        ("no-alignment", {"distill.attention_weight": 0.0, "distill.hidden_weight": 0.0}),
        ("release-attention", {"distill.attention_reduction": "elements"}),
        (
            "attention-only-release-attention",
            {"distill.hidden_weight": 0.0, "distill.attention_reduction": "elements"},
        ),
        ("factorised-embedding-loss", {"distill.embedding_weight": 3.0}),
        ("full-rank-embedding-loss", {"distill.embedding_weight": 3.0, "student.embedding_size": None}),
        ("kl-student-teacher", {"distill.kl_direction": "student-teacher"}),
        ("adapter-random-start", {"student.adapter_init": "as-published"}),
        (
            "adapter-layer-norm",
            {"student.adapter_init": "as-published", "student.adapter_layer_norm": True},
        ),
        ("mean-start", {"student.init_layer": None}),
        ("noise-start", {"student.init": "random", "student.init_layer": None}),
        ("elastic", {"distill.elastic": True}),
        ("relations", {"distill.attention_weight": 0.0, "distill.relation_weight": 3.0}),
        (
            "muon",
            {"distill.attention_weight": 0.0, "training.optimizer": "muon", "training.learning_rate": 2e-3},
        ),
        ("masked-lm-64", MASKED_LM),
        ("albert-3", MASKED_LM | {"student.adapter_reduction_factor": None}),
        ("albert-6", MASKED_LM | {"student.adapter_reduction_factor": None, "student.num_hidden_layers": 6}),
    ],
)
def test_a_row_differs_by_what_it_is_about_and_nothing_else(name, expected):
    assert changes(f"miniature/{name}") == expected


def test_the_reach_has_more_text_and_nothing_else():
    schedule = {"max_steps": 9765, "warmup_steps": 976, "eval_steps": 1220, "save_steps": 488}
    expected = {f"training.{key}": value for key, value in schedule.items()}
    assert changes("miniature/hidden-only-20m", "miniature/hidden-only") == expected


def test_the_baseline_of_sanh_et_al_has_the_loss_of_the_full_size_one():
    small, full = load_recipe("miniature/distilbert-like"), load_recipe("distilbert-base")
    differs = {"layer_map"}
    assert small.distill.model_dump(exclude=differs) == full.distill.model_dump(exclude=differs)
    assert (small.distill.layer_map, full.distill.layer_map) == ([0, 0, 6], [0, 0, 0, 0, 0, 12])
    assert (small.student.arch, small.student.init) == ("bert", "alternate-layers")


# base:


def test_a_file_holds_what_differs_from_its_base(tmp_path):
    path = write(tmp_path, "mine.yaml", "base: miniature/student-156\nstudent: {num_hidden_layers: 2}\n")
    recipe, base = load_recipe(path), load_recipe("miniature/student-156")
    assert (recipe.name, recipe.description, recipe.paper, recipe.command) == ("mine", "", None, None)
    assert recipe.student == base.student.model_copy(update={"num_hidden_layers": 2})
    assert (recipe.data, recipe.distill, recipe.training) == (base.data, base.distill, base.training)


def test_a_base_may_be_a_file_beside_it(tmp_path, monkeypatch):
    write(tmp_path, "first.yaml", "training: {max_steps: 7, seed: 3}\n")
    second = write(tmp_path, "second.yaml", "base: first.yaml\ntraining: {epochs: 2.0}\n")
    monkeypatch.chdir(tmp_path.parent)
    training = load_recipe(second).training
    assert (training.epochs, training.max_steps, training.seed) == (2.0, None, 3)


def test_a_fine_tuning_recipe_has_a_base_too(tmp_path):
    path = write(tmp_path, "mine.yaml", "base: adapters\ntuning: {epochs: 1.0}\n")
    recipe = load_recipe(path, FinetuneRecipe)
    assert (recipe.tuning.mode, recipe.tuning.learning_rate, recipe.tuning.epochs) == ("adapters", None, 1.0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("base: nothing\n", "no recipe is called 'nothing'"),
        ("base: miniature/student-46\n", "did you mean miniature/student-64?"),
        ("base: [small]\n", r"mine.yaml: base \(line 1\): should name a recipe, got \['small'\]"),
        ("base: mine.yaml\n", "the 8th recipe of a chain of bases; does it come back to itself?"),
        ("base: small\nstudent: {rank: 3}\n", r"mine.yaml: student.rank \(line 2\): unknown key"),
    ],
)
def test_a_wrong_base_is_told_in_one_line(text, message, tmp_path):
    with pytest.raises(UserError, match=message):
        load_recipe(write(tmp_path, "mine.yaml", text))
