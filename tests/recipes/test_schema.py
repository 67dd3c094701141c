"""Fine-tuning recipes: defaults, consistency, and messages that name the key."""

from __future__ import annotations

import pytest

from minialbert.errors import UserError
from minialbert.recipes.load import apply_overrides, dump_recipe, list_recipes, load_recipe
from minialbert.recipes.schema import FinetuneRecipe, Mark, flat_settings, learned_settings, marked


@pytest.fixture
def recipe() -> FinetuneRecipe:
    return load_recipe("default", FinetuneRecipe)


def test_shipped_recipes_and_their_modes(recipe):
    assert (recipe.tuning.mode, recipe.tuning.learning_rate) == ("full", None)
    adapters = load_recipe("finetune/adapters", FinetuneRecipe)
    assert (adapters.tuning.mode, adapters.tuning.learning_rate) == ("adapters", None)
    names = {summary.name for summary in list_recipes() if summary.kind is FinetuneRecipe}
    assert {"finetune/default", "finetune/adapters"} <= names


def test_a_dumped_recipe_reads_back(recipe, tmp_path):
    changed = apply_overrides(
        recipe, ["tuning.class_weights=[1, 2.5]", "grid.seed=[1, 2]", "task.labels=[a, 'no']"]
    )
    (tmp_path / "default.yaml").write_text(dump_recipe(changed))
    assert load_recipe(str(tmp_path / "default.yaml"), FinetuneRecipe) == changed


def test_empty_sections_are_the_defaults(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("description: mine\nmodel:\ntask:\ntuning:\nteacher:\ngrid:\n")
    assert load_recipe(str(path), FinetuneRecipe) == FinetuneRecipe(name="mine", description="mine")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["tuning.learning_rat=1e-4"], "tuning.learning_rat: unknown key; did you mean learning_rate?"),
        (["tuning.max_length=64"], "unknown key; did you mean task.max_length?"),
        (["tunning.seed=1"], "unknown section; did you mean tuning?"),
        (["tuning=1"], "is a section; name one of its keys, as in tuning.mode"),
        (["tuning.batch_size=10", "tuning.micro_batch_size=4"], "batch_size 10 is not a multiple of .* 4"),
        (["tuning.learning_rate=0"], "greater than 0, got 0"),
        (["tuning.learning_rate=-1"], "greater than 0, got -1"),
        (["tuning.learning_rate=fast"], "tuning.learning_rate: should be a valid number, got 'fast'"),
        (["tuning.learning_rate=.nan"], "tuning.learning_rate: .*finite"),
        (["tuning.mode=half"], "'full' or 'adapters', got 'half'"),
        (["tuning.dropout=1"], "less than 1, got 1"),
        (["tuning.class_weights=[1, 0]"], "class_weights"),
        (["tuning.seed=-1"], "greater than or equal to 0"),
        (["task.max_length=4"], "greater than or equal to 8"),
        (["task.max_length=16", "task.overlap=9"], "overlap 9 leaves too little new in 16 tokens: give at most 8"),
        (["task.validation_fraction=1"], "less than 1"),
        (["task.labels=[]"], "at least 1 item"),
        (["task.max_train_rows=0"], "greater than or equal to 1"),
        (["teacher.model=x", "teacher.logit_weight=0"], "so the teacher is unused"),
        (["grid.seed=[1, 2, 1]"], r"grid.seed: has a value twice: \[1, 2, 1\]"),
        (["teacher.labels=[a, a]"], r"teacher.labels: has a value twice: \['a', 'a'\]"),
        (["task.labels=[a, b, a]"], "task.labels: has a value twice"),
        (["model.lora_layers=[ffn, ffn]"], "model.lora_layers: has a value twice"),
        (["grid.batch_size=[16, 0]"], "greater than or equal to 1"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_told_by_key(overrides, message, recipe):
    with pytest.raises(UserError, match=message) as caught:
        apply_overrides(recipe, overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ["tuning.batch_size=12", "tuning.micro_batch_size=4"],
        ["task.max_length=16", "task.overlap=8"],
        ["teacher.logit_weight=0"],  # no teacher, nothing unused
        ["teacher.model=x", "teacher.logit_weight=0", "teacher.hidden_weight=1"],
        ["tuning.class_weights=balanced", "tuning.precision=bf16"],
    ],
)
def test_what_fits(overrides, recipe):
    assert apply_overrides(recipe, overrides) != recipe


def test_a_distillation_recipe_is_not_for_tuning(tmp_path):
    path = tmp_path / "distil.yaml"
    path.write_text("student:\n  num_hidden_layers: 2\ntraining:\n  max_steps: 2\n")
    with pytest.raises(UserError, match="recipe for `minialbert distill`, not for finetune"):
        load_recipe(str(path), FinetuneRecipe)


def test_faults_of_a_file_name_their_line(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("tuning:\n  mode: adapters\n  epoch: 3\n")
    with pytest.raises(UserError, match=r"tuning.epoch \(line 3\): unknown key; did you mean epochs\?"):
        load_recipe(str(path), FinetuneRecipe)


def test_marks_say_what_a_setting_means():
    assert marked(Mark.NAME) == {"name", "description", "paper", "command"}
    assert marked(Mark.PLACE) == {
        "data.corpus", "data.tokenizer", "model.name", "student.init_from", "task.data", "teacher.model",
        "teacher.unlabelled",
    }  # fmt: skip
    assert marked(Mark.DATA) == {"data.corpus", "task.data", "teacher.unlabelled"}
    assert marked(Mark.SEED) == {"training.seed", "tuning.seed"}
    assert marked(Mark.LOG) == {"training.report_to", "tuning.report_to"}
    assert marked(Mark.OPTION) == {
        "model.name", "task.name", "task.data", "tuning.mode", "teacher.model", "teacher.unlabelled",
    }  # fmt: skip
    both = {"micro_batch_size", "logging_steps", "report_to"}
    distilling = {"eval_steps", "save_steps", "keep_checkpoints", "eval_windows", "num_workers"}
    assert marked(Mark.PACE) == {f"training.{name}" for name in both | distilling} | {
        f"tuning.{name}" for name in both | {"eval_batch_size"}
    }
    assert marked(Mark.SEED, Mark.LOG) == marked(Mark.SEED) | marked(Mark.LOG)


def test_where_a_log_goes_is_no_part_of_what_a_run_learns(recipe):
    assert learned_settings(recipe) == learned_settings(apply_overrides(recipe, ["tuning.report_to=wandb"]))
    assert learned_settings(recipe).keys() == flat_settings(recipe.model_dump()).keys() - {"tuning.report_to"}


def test_what_an_older_version_wrote_out_as_a_default_is_no_other_setting() -> None:
    """A run of the time when labels were always divided by | goes on, and its record counts beside newer ones."""
    new = FinetuneRecipe(name="x")
    old = FinetuneRecipe.model_validate({"name": "x", "task": {"label_separator": "|"}})
    assert new.task.label_separator is None
    assert learned_settings(old) == learned_settings(new)
    other = FinetuneRecipe.model_validate({"name": "x", "task": {"label_separator": ";"}})
    assert learned_settings(other) != learned_settings(new)
