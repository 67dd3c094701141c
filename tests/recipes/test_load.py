from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError

from minialbert.errors import UserError
from minialbert.recipes import load as recipe_module
from minialbert.recipes.load import (
    apply_overrides,
    copy_recipe,
    dump_recipe,
    list_recipes,
    load_recipe,
)
from minialbert.recipes.schema import FinetuneRecipe, Recipe

ALL_NAMES = [summary.name for summary in list_recipes() if summary.kind is Recipe]
MINIATURE = [name for name in ALL_NAMES if name.startswith("miniature/")]
NAMES = [name for name in ALL_NAMES if name not in MINIATURE]
MINIALBERT = [name for name in NAMES if name.startswith(("minialbert-", "bio-minialbert-"))]
ALBERT = [name for name in NAMES if name.startswith(("albert-", "bio-albert-"))]
ABLATIONS = [name for name in NAMES if name.startswith("table")]
PUBLISHED = [*MINIALBERT, *ALBERT, *ABLATIONS, "distilbert-base"]
GENERAL = [name for name in PUBLISHED if not name.startswith("bio-")]
BIOMEDICAL = [name for name in PUBLISHED if name.startswith("bio-")]


def write(tmp_path: Path, text: str, name: str = "mine.yaml") -> str:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return str(path)


# The shipped recipes: those of the paper in miniature are in test_miniature_recipes.py


def test_one_recipe_per_model_of_the_paper() -> None:
    sizes = ("768-no-adapters", "312-no-adapters", "768", "312", "128")
    assert set(NAMES) == {
        *(f"{prefix}minialbert-{size}" for prefix in ("", "bio-") for size in sizes),
        *(f"{prefix}albert-{layers}" for prefix in ("", "bio-") for layers in (6, 12)),
        *(f"table3-{row}" for row in ("full", "hidden-only", "attention-only", "no-alignment")),
        *(f"table4-{rank}{loss}" for rank in ("full-rank", "factorised") for loss in ("", "-embedding-loss")),
        *("distilbert-base", "default", "paper-like", "small", "demo", "tiny", "embeddings"),
    }


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_survives_being_dumped(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    text = dump_recipe(recipe)
    assert recipe.name == name
    assert load_recipe(write(tmp_path, text)) == recipe
    assert dump_recipe(load_recipe(write(tmp_path, text))) == text


def shipped(name: str) -> str:
    """The text of a recipe that comes with the package."""
    path = recipe_module.SHIPPED / ("" if "/" in name else "distil") / f"{name}.yaml"
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_is_a_subset_of_the_schema(name: str) -> None:
    values = yaml.safe_load(shipped(name))
    bases = ["default"] if name == "paper-like" else PUBLISHED
    assert values.pop("base", bases[0]) in bases
    assert list(values) == [key for key in Recipe.model_fields if key in values]
    for section, model in Recipe.sections().items():
        assert set(values.get(section, {})) <= set(model.model_fields)


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_recipe_opens_with_the_commands_that_run_it(name: str) -> None:
    text, recipe = shipped(name), load_recipe(name)
    head = text.split("\n\n")[0] if "\nbase: " not in text else text
    assert recipe.command in head
    assert f"minialbert {'demo' if name == 'demo' else f'distill --recipe {name}'} " in recipe.command
    # One folder of windows serves all recipes that differ from one another in the model alone.
    prepared = {"minialbert-128": GENERAL, "bio-minialbert-128": BIOMEDICAL}
    others = prepared.get(name, [name])
    if name not in {*GENERAL, *BIOMEDICAL} - set(prepared):
        assert f"minialbert prepare --recipe {name} " in text
    assert all(load_recipe(other).data == recipe.data for other in others)
    assert text.startswith(("base: ", "# Table" if name in PUBLISHED else "# No table of the paper"))
    assert ('\npaper: "Table ' in text) == (recipe.paper is not None) == (name in PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_hyper_parameters_of_tables_5_and_6(name: str) -> None:
    training = load_recipe(name).training
    assert training.learning_rate == 5e-4
    assert training.lr_scheduler == "linear"
    assert training.weight_decay == 1e-4
    assert training.warmup_steps == 5000
    assert training.batch_size == 192
    assert training.micro_batch_size == 48
    assert training.seed == 42
    if name in ABLATIONS:
        assert (training.max_steps, training.epochs) == (20_000, None)
    elif name in BIOMEDICAL:
        assert (training.max_steps, training.epochs) == (100_000, None)
    else:
        assert (training.max_steps, training.epochs) == (None, 1.0)


@pytest.mark.parametrize("name", GENERAL)
def test_general_models_read_wikipedia(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.data.corpus == ["hub:wikimedia/wikipedia:20231101.en:train"]
    assert recipe.data.tokenizer == "bert-base-uncased"
    assert recipe.teacher.model == (None if name in ALBERT else "bert-base-uncased")
    assert (recipe.data.window_length, recipe.data.overlap) == (256, 128)
    assert recipe.data.max_windows_per_document == 10
    assert not recipe.data.truncate
    assert recipe.data.mask_probability == 0.15


@pytest.mark.parametrize("name", BIOMEDICAL)
def test_biomedical_models_read_abstracts(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.data.corpus is None
    assert recipe.data.tokenizer == "bert-base-cased"
    assert recipe.teacher.model == (None if name in ALBERT else "dmis-lab/biobert-base-cased-v1.2")
    assert recipe.data.window_length == 256
    assert recipe.data.truncate
    assert recipe.data.mask_probability == 0.15


@pytest.mark.parametrize("name", MINIALBERT)
def test_the_released_students(name: str) -> None:
    recipe = load_recipe(name)
    student, distill = recipe.student, recipe.distill
    rank = next(rank for rank in (768, 312, 128) if f"-{rank}" in name)
    assert (student.arch, student.num_hidden_layers) == ("minialbert", 6)
    assert student.embedding_size == (None if rank == 768 else rank)
    assert student.adapter_reduction_factor == (None if name.endswith("no-adapters") else 16)
    assert (student.adapter_layer_norm, student.adapter_init) == (True, "as-published")
    assert student.mlm_head == "untied"
    donor = "nlpie/tiny-biobert" if name in BIOMEDICAL else "huawei-noah/TinyBERT_General_4L_312D"
    assert (student.init, student.init_from) == (("donor", donor) if rank == 312 else ("random", None))
    assert (distill.preset, distill.layer_map) == ("as-published", "uniform")
    assert (distill.mlm_weight, distill.attention_weight, distill.hidden_weight) == (1.0, 3.0, 3.0)
    assert (distill.output_weight, distill.embedding_weight) == (5.0, None)


@pytest.mark.parametrize("name", ALBERT)
def test_the_albert_baselines_learn_from_masked_tokens_alone(name: str) -> None:
    recipe = load_recipe(name)
    student, distill = recipe.student, recipe.distill
    assert student.num_hidden_layers == int(name.rpartition("-")[2])
    assert (student.arch, student.embedding_size, student.adapter_reduction_factor) == (
        "minialbert",
        128,
        None,
    )
    assert student.init == "random"
    assert distill.mlm_weight == 1.0
    assert (distill.attention_weight, distill.hidden_weight, distill.output_weight) == (0.0, 0.0, 0.0)


def test_the_distilbert_baseline_has_the_loss_of_sanh_et_al() -> None:
    recipe = load_recipe("distilbert-base")
    student, distill = recipe.student, recipe.distill
    assert (student.arch, student.num_hidden_layers, student.init) == ("bert", 6, "alternate-layers")
    assert (student.embedding_size, student.adapter_reduction_factor, student.mlm_head) == (
        None,
        None,
        "tied",
    )
    assert (distill.output_weight, distill.mlm_weight, distill.hidden_weight) == (5.0, 2.0, 1.0)
    assert (distill.attention_weight, distill.temperature, distill.output_positions) == (0.0, 2.0, "all")
    assert distill.layer_map == [0, 0, 0, 0, 0, 12]


@pytest.mark.parametrize(
    ("row", "attention", "hidden"),
    [("full", 3.0, 3.0), ("hidden-only", 0.0, 3.0), ("attention-only", 3.0, 0.0), ("no-alignment", 0.0, 0.0)],
)
def test_table_3_varies_the_alignment_of_the_best_model(row: str, attention: float, hidden: float) -> None:
    recipe, best = load_recipe(f"table3-{row}"), load_recipe("minialbert-128")
    assert (recipe.distill.attention_weight, recipe.distill.hidden_weight) == (attention, hidden)
    restored = recipe.distill.model_copy(update={"attention_weight": 3.0, "hidden_weight": 3.0})
    assert (recipe.student, recipe.data, recipe.teacher, restored) == (
        best.student,
        best.data,
        best.teacher,
        best.distill,
    )


@pytest.mark.parametrize(
    ("rank", "like"), [("full-rank", "minialbert-768"), ("factorised", "minialbert-128")]
)
@pytest.mark.parametrize(("suffix", "weight"), [("", 0.0), ("-embedding-loss", 3.0)])
def test_table_4_varies_rank_and_embedding_loss(rank: str, like: str, suffix: str, weight: float) -> None:
    recipe, best = load_recipe(f"table4-{rank}{suffix}"), load_recipe(like)
    assert recipe.student == best.student
    assert recipe.distill == best.distill.model_copy(update={"embedding_weight": weight})


def test_the_demo_has_no_output_loss_because_its_teacher_has_no_mlm_head() -> None:
    recipe = load_recipe("demo")
    assert recipe.distill.output_weight == 0.0
    assert recipe.student.init == "teacher"


# Reading


def test_a_file_may_leave_out_what_has_a_default(tmp_path: Path) -> None:
    recipe = load_recipe(
        write(tmp_path, "data:\n  # corpus: later\ntraining:\n  max_steps: 10\n  learning_rate: 5e-4\n")
    )
    assert recipe.name == "mine"
    assert recipe.training.learning_rate == 5e-4
    assert recipe.data == type(recipe.data)()
    with pytest.raises(ValidationError, match="frozen"):
        recipe.training.max_steps = 3  # type: ignore[misc]


def test_one_corpus_needs_no_list(tmp_path: Path) -> None:
    recipe = load_recipe(write(tmp_path, "data: {corpus: texts/}\ntraining: {max_steps: 1}\n"))
    assert recipe.data.corpus == ["texts/"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "distill: {ouput_weight: 4}",
            "distill.ouput_weight (line 1): unknown key; did you mean output_weight?",
        ),
        ("seed: 1", "seed (line 1): unknown key; did you mean training.seed?"),
        ("qqqq: 1", "qqqq (line 1): unknown key"),
        (
            "student:\n  num_hidden_layers: six",
            "student.num_hidden_layers (line 2): should be a valid integer, got 'six'",
        ),
        (
            "student: {num_hidden_layers: 0}",
            "student.num_hidden_layers (line 1): should be greater than or equal to 1",
        ),
        (
            "student: {adapter_layer_norm: 1}",
            "student.adapter_layer_norm (line 1): should be a valid boolean, got 1",
        ),
        ("student: {init: donor}", "student (line 1): init 'donor' needs init_from"),
        ("student: {init_from: x}", "student (line 1): init 'teacher' takes no init_from"),
        ("student: {init: alternate-layers}", "init 'alternate-layers' needs arch 'bert'"),
        ("student: {adapter_init: identity}", "cannot start as the identity with a LayerNorm after it"),
        (
            "student: {hidden_size: 10, num_attention_heads: 3, embedding_size: 4}",
            "hidden_size 10 is not a multiple",
        ),
        ("student: {hidden_size: 64}", "embedding_size 128 exceeds hidden_size 64"),
        ("data: {window_length: 64, overlap: 62}", "overlap 62 leaves nothing new in a window of 64 tokens"),
        ("data: {mask_probability: 1.5}", "data.mask_probability (line 1): should be less than 1, got 1.5"),
        (
            "data: {mask_probability: .nan}",
            "data.mask_probability (line 1): should be a finite number, got nan",
        ),
        (
            "distill: {layer_map: unifrom}",
            "distill.layer_map (line 1): should be 'uniform', 'last' or 'alternate' or",
        ),
        (
            "distill: {layer_map: [2, -4]}",
            "distill.layer_map.1 (line 1): should be greater than or equal to 0, got -4",
        ),
        ("distill: {layer_map: [2, 4]}", "distill.layer_map has 2 entries but the student has 6 iterations"),
        (
            "distill: {mlm_weight: 0, attention_weight: 0, hidden_weight: 0, output_weight: 0}",
            "every weight is 0, so there is nothing to learn",
        ),
        ("teacher: [a]", "teacher (line 1): should be a valid dictionary"),
    ],
)
def test_a_fault_is_told_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, f"{text}\ntraining: {{max_steps: 1}}\n")
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_all_faults_are_told_at_once(tmp_path: Path) -> None:
    path = write(tmp_path, "student:\n  arch: gpt\ntraining:\n  max_steps: 1\n  sed: 3\n  precision: fp8\n")
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    assert str(caught.value) == (
        f"{path}: student.arch (line 2): should be 'minialbert' or 'bert', got 'gpt'; "
        "training.precision (line 6): should be 'auto', 'fp32', 'bf16' or 'fp16', got 'fp8'; "
        "training.sed (line 5): unknown key; did you mean seed?"
    )


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ("{seed: 1}", "give max_steps or epochs, or both for the shorter; got neither"),
        (
            "{max_steps: 1, batch_size: 8, micro_batch_size: 3}",
            "batch_size 8 is not a multiple of micro_batch_size 3",
        ),
        ("", "training (line 2): required, but missing"),
    ],
)
def test_the_length_and_the_batch_must_be_clear(training: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe(write(tmp_path, f"name: x\ntraining: {training}\n"))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("# nothing\n", "is empty"),
        ("- a\n", "should hold a mapping (key: value), got a list"),
        ("a: [1\n", "line 2: expected ',' or ']'"),
        ("a: 1\n---\nb: 2\n", "but found another document"),
        ("name: x\nname: y\n", "line 2: the key 'name' appears twice"),
        (
            "name: !!python/object/apply:os.system ['true']\n",
            "line 1: the tag 'tag:yaml.org,2002:python/object/apply:os.system' is not allowed",
        ),
        (
            "name: !!python/name:os.system\n",
            "the tag 'tag:yaml.org,2002:python/name:os.system' is not allowed",
        ),
        ("a: \x00\n", "is not YAML"),
        ("a: 2024-99-99\n", "is not YAML"),
        ("[" * 20_000, "is nested too deeply"),
    ],
)
def test_what_is_no_recipe_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(path)
    assert message in str(caught.value)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    latin = tmp_path / "latin.yaml"
    latin.write_bytes("name: caf\xe9\n".encode("latin-1"))
    large = tmp_path / "large.yaml"
    large.write_bytes(b"# " + b"x" * 1_000_000)
    for path, message in (
        (latin, "is not UTF-8 text (byte 9)"),
        (large, "is larger than"),
        (tmp_path, "is a directory"),
        (tmp_path / "none.yaml", "no such file"),
        (Path("/dev/null"), "is not a regular file"),
    ):
        with pytest.raises(UserError) as caught:
            load_recipe(str(path))
        assert str(caught.value).startswith(f"{path}: {message}")


def test_an_unknown_name_suggests_the_nearest_and_lists_all() -> None:
    with pytest.raises(
        UserError, match=r"'minialbret-128'; did you mean minialbert-128\?; there are: albert-12, "
    ):
        load_recipe("minialbret-128")


# Overrides


def test_overrides_are_yaml_values() -> None:
    recipe = apply_overrides(
        load_recipe("minialbert-128"),
        [
            "training.learning_rate=5e-5",
            "student.adapter_reduction_factor=null",
            "distill.layer_map=[1, 2, 3, 4, 5, 6]",
            "data.corpus=hub:wikimedia/wikipedia:20231101.de:train",
            "distill.output_weight=4",
            "student.adapter_layer_norm=false",
            "name=mine",
        ],
    )
    assert recipe.training.learning_rate == 5e-5
    assert recipe.student.adapter_reduction_factor is None
    assert recipe.distill.layer_map == [1, 2, 3, 4, 5, 6]
    assert recipe.data.corpus == ["hub:wikimedia/wikipedia:20231101.de:train"]
    assert recipe.distill.output_weight == 4.0
    assert recipe.name == "mine"
    assert load_recipe("minialbert-128").training.learning_rate == 5e-4


def test_numbers_are_names_of_labels_and_columns() -> None:
    default = load_recipe("default", FinetuneRecipe)
    overrides = ["task.labels=[0, 1]", "teacher.labels=[10]", "task.label=3", "task.positive=1"]
    for given in (
        overrides,
        {"task.labels": [0, 1], "teacher.labels": ["10"], "task.label": "3", "task.positive": 1},
    ):
        recipe = apply_overrides(default, given)
        assert (recipe.task.labels, recipe.teacher.labels) == (["0", "1"], ["10"])
        assert (recipe.task.label, recipe.task.positive) == ("3", "1")
    with pytest.raises(
        UserError, match=r'task.labels.0: .* got True; what is in quotes \("\) is text; task.labels.1'
    ):
        apply_overrides(default, ["task.labels=[yes, no]"])


def test_the_default_recipe_reads_a_small_corpus_a_few_times_and_a_large_one_in_part() -> None:
    default = load_recipe("default")
    assert (default.training.max_steps, default.training.epochs) == (20_000, 10.0)
    training = apply_overrides(default, {"training.max_steps": 300}).training
    assert (training.max_steps, training.epochs) == (300, None)


def test_paper_like_has_the_papers_losses_and_optimiser_and_the_rest_of_default() -> None:
    one, other = load_recipe("paper-like"), load_recipe("default")
    differs = {
        f"{section}.{key}": (value, getattr(getattr(other, section), key))
        for section in Recipe.sections()
        for key, value in getattr(one, section)
        if value != getattr(getattr(other, section), key)
    }
    assert differs == {
        "student.init_layer": (None, "third"),
        "distill.attention_weight": (None, 0.0),  # None: that of the preset
        "training.optimizer": ("adamw", "muon"),
        "training.learning_rate": (5e-4, 1e-3),
    }


@pytest.mark.parametrize("name", ["default", "paper-like", "small", "embeddings", "demo"])
def test_a_recipe_for_any_machine_leaves_the_precision_to_it(name: str) -> None:
    assert load_recipe(name).training.precision == "auto"


def test_overriding_one_length_clears_the_other() -> None:
    recipe = load_recipe("minialbert-128")
    training = apply_overrides(recipe, ["training.max_steps=7"]).training
    assert (training.max_steps, training.epochs) == (7, None)
    training = apply_overrides(load_recipe("tiny"), ["training.epochs=2"]).training
    assert (training.max_steps, training.epochs) == (None, 2.0)
    assert apply_overrides(recipe, []) == recipe


@pytest.mark.parametrize(
    ("overrides", "layer"),
    [
        (["student.init=random"], None),
        (["student.init=donor", "student.init_from=bert-base-uncased"], None),
        (["student.init=random", "student.init_layer=null"], None),
        (["student.num_hidden_groups=2"], "third"),
        (["student.init_layer=3"], 3),
        (["student.init=teacher"], "third"),
    ],
)
def test_another_start_clears_the_layer_that_a_recipe_starts_from(overrides, layer) -> None:
    assert apply_overrides(load_recipe("small"), overrides).student.init_layer == layer


def test_a_file_with_another_start_clears_the_layer_of_its_base(tmp_path: Path) -> None:
    text = "base: small\nstudent:\n  init: random\n"
    assert load_recipe(write(tmp_path, text)).student.init_layer is None


def test_values_that_belong_together_can_change_together() -> None:
    changes = ["student.init=random", "student.init_from=null"]
    assert apply_overrides(load_recipe("minialbert-312"), changes).student.init == "random"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("distill.ouput_weight=4", "--set: distill.ouput_weight: unknown key; did you mean output_weight?"),
        ("distil.output_weight=4", "--set distil.output_weight: unknown section; did you mean distill?"),
        ("training=4", "--set training: is a section; name one of its keys, as in training.max_steps"),
        ("seed=4", "--set: seed: unknown key; did you mean training.seed?"),
        ("distill.output_weight", "--set takes key=value"),
        ("=4", "--set takes key=value"),
        ("distill.output_weight=", "takes one value or a list (null clears it), got ''"),
        ("distill.output_weight={a: 1}", "takes one value or a list"),
        ("distill.output_weight=[1", "--set distill.output_weight, line 1: expected"),
        (
            "distill.output_weight=-1",
            "--set: distill.output_weight: should be greater than or equal to 0, got -1",
        ),
        ("distill.output_weight=!!python/name:os.system", "is not allowed here: write a plain value"),
        ("distill.layer_map=[2, 4]", "distill.layer_map has 2 entries but the student has 6 iterations"),
        ("training.epochs=null", "got neither"),
        ("training.seed.deep=1", "--set: training.seed.deep: unknown key"),
    ],
)
def test_a_faulty_override_is_told_in_one_line(override: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        apply_overrides(load_recipe("minialbert-128"), [override])
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


# Copies and documentation


def test_copies_keep_comments_and_do_not_overwrite(tmp_path: Path) -> None:
    path = copy_recipe("minialbert-128", tmp_path)
    assert path == tmp_path / "minialbert-128.yaml"
    assert path.read_bytes() == (recipe_module.SHIPPED / "distil" / "minialbert-128.yaml").read_bytes()
    with pytest.raises(UserError, match="exists"):
        copy_recipe("tiny", path)
    assert load_recipe(str(copy_recipe("tiny", path, overwrite=True))) == load_recipe("tiny")
    with pytest.raises(UserError, match="there is no directory"):
        copy_recipe("tiny", tmp_path / "none" / "x.yaml")
    with pytest.raises(UserError, match=r"no recipe is called '\.\./x'"):
        copy_recipe("../x", tmp_path)


def test_every_key_has_a_one_line_description() -> None:
    for model in Recipe.sections().values():
        for key, field in model.model_fields.items():
            assert field.description, key
            assert "\n" not in field.description


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [x]\nname: [*a, *a]\n", "line 2: the alias '*a' is not allowed: write the value out"),
        ("name: !!timestamp x\n", "the tag 'tag:yaml.org,2002:timestamp' is not allowed"),
        ("name: !!bool x\n", "the tag 'tag:yaml.org,2002:bool' is not allowed"),
        ("name: !!int ''\n", "the tag 'tag:yaml.org,2002:int' is not allowed"),
        ("name: 0x" + "f" * 5_000, "a number of 5002 characters"),
        ("? [x]\n: 1\n", "a key is a list or mapping"),
        ("name: x\n" * 20_000, "is larger than 100000 bytes"),
    ],
)
def test_yaml_that_no_recipe_needs(text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="mine.yaml") as caught:
        load_recipe(write(tmp_path, text))
    assert message in str(caught.value)
    assert len(str(caught.value)) < 600


def test_the_length_of_a_distillation_is_no_override_of_a_fine_tuning() -> None:
    recipe = load_recipe("default", FinetuneRecipe)
    with pytest.raises(UserError, match="--set training.max_steps: unknown section"):
        apply_overrides(recipe, ["training.max_steps=5"])


def test_many_faults_are_not_all_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="; and more$"):
        load_recipe(write(tmp_path, "".join(f"key{number}: 1\n" for number in range(50))))


def test_marks_alone_are_text():
    for mark in (",", ";", "|", ":", "-"):
        recipe = apply_overrides(load_recipe("default", FinetuneRecipe), [f"task.label_separator={mark}"])
        assert recipe.task.label_separator == mark
    recipe = apply_overrides(load_recipe("default", FinetuneRecipe), ["task.label=[A, B]"])
    assert recipe.task.label == ["A", "B"]
