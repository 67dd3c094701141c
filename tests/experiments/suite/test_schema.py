"""The definition of a suite, the order of its cells, and the suites that come with the package."""

from __future__ import annotations

from pathlib import Path

import pytest
from suite_records import DEFINITION, make_suite, write_suite

from minialbert.errors import UserError
from minialbert.experiments.suite.cells import Places, expand, recipe_of, select
from minialbert.experiments.suite.page import find_paper_row
from minialbert.experiments.suite.schema import list_suites, load_suite, split_side
from minialbert.recipes.schema import FinetuneRecipe, Recipe


def test_cells_come_group_by_group_and_seed_by_seed_each_once():
    names = [cell.name for cell in expand(make_suite())]
    assert names == [
        "small/distill", "small/full/king-1", "plain/distill", "plain/full/king-1", "small/adapters/king-1",
        "small/full/king-2", "plain/full/king-2", "small/adapters/king-2",
        "small/full/king-3", "plain/full/king-3", "small/adapters/king-3",
        "teacher/full/king-1", "teacher/full/river-1", "small/full/river-1",
        "start/distill", "start/full/king-1", "start/full/river-1",
        "teacher/full/king-2", "teacher/full/river-2", "small/full/river-2", "start/full/king-2", "start/full/river-2",
        "foreign/distill", "foreign/full/river-1",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["miniature", "paper", "sharing"])
def test_words_are_tagged_alone_as_in_the_paper(name):
    suite = load_suite(name)
    tasks = [recipe_of(suite, cell, None).task for cell in expand(suite) if cell.task is not None]
    assert {task.decoding for task in tasks} == {"alone"}


def test_cells_are_chosen_by_group_row_or_glob():
    cells = expand(make_suite())
    assert [cell.name for cell in select(cells, ["far"])] == ["foreign/distill", "foreign/full/river-1"]
    assert {cell.row for cell in select(cells, ["plain, start"])} == {"plain", "start"}
    assert [cell.name for cell in select(cells, ["*/adapters/*-2", "plain/distill"])] == [
        "plain/distill",
        "small/adapters/king-2",
    ]
    assert select(cells, []) == cells
    with pytest.raises(
        UserError, match=r"--only nothing: names no cell; groups: core, more, far; rows: small, "
    ):
        select(cells, ["small", "nothing"])


def test_the_recipe_of_a_cell_has_its_places(tmp_path):
    suite = make_suite()
    places = Places(tmp_path / "data", {"main": "/teachers/main", "other": "x/y"}, tmp_path / "models")
    cells = {cell.name: cell for cell in expand(suite)}
    distilled = recipe_of(suite, cells["plain/distill"], places)
    assert isinstance(distilled, Recipe)
    assert (distilled.name, distilled.teacher.model) == ("plain", "/teachers/main")
    assert distilled.data.corpus == [str(tmp_path / "data" / "corpus.txt")]
    assert distilled.student.adapter_reduction_factor is None
    tuned = recipe_of(suite, cells["small/adapters/king-2"], places)
    assert isinstance(tuned, FinetuneRecipe)
    assert (tuned.model.name, tuned.task.data) == (
        str(tmp_path / "models" / "small"),
        str(tmp_path / "data" / "king"),
    )
    assert (tuned.tuning.mode, tuned.tuning.seed, tuned.task.name) == ("adapters", 2, "classification")
    teacher = recipe_of(suite, cells["teacher/full/king-1"], places)
    assert isinstance(teacher, FinetuneRecipe)
    assert (teacher.model.name, teacher.tuning.epochs, teacher.tuning.batch_size) == (
        "/teachers/main",
        1.0,
        32,
    )
    assert recipe_of(suite, cells["foreign/distill"], places).teacher.model == "x/y"


def test_a_set_of_tasks_stands_for_them_wherever_tasks_are_named():
    suite = make_suite(sets={"both": ["river", "king"]})
    assert suite.tasks.keys() >= {"river", "king"}
    groups = [{"name": "core", "cells": ["small"], "tasks": ["both"], "seeds": [1]}]
    compared = {"a": "small", "b": "small/adapters", "tasks": ["both", "nothing"]}
    told = r"claims.one: there is no 'nothing'"
    only = make_suite(sets={"both": ["river", "king"]}, groups=groups, tables=[], claims=[], reach=None)
    assert [cell.task for cell in expand(only)] == [None, "river", "king"]
    with pytest.raises(ValueError, match=told):
        make_suite(sets={"both": ["river"]}, claims=[{"name": "one", "text": "x", "comparisons": [compared]}])


def test_a_product_has_a_row_for_every_choice_and_gives_way_to_rows_of_the_same_name():
    parts = [
        {"one": {}, "two": {"student.num_hidden_groups": 2}},
        {"plain": {}, "wide": {"student.lora_rank": 4}},
    ]
    product = {"recipe": "tiny", "teacher": "main", "settings": {"training.max_steps": 3}, "parts": parts}
    suite = make_suite(products=[product], rows=DEFINITION["rows"] | {"one-plain": {"model": "x/y"}})
    assert {*suite.rows} - {*DEFINITION["rows"]} == {"one-plain", "one-wide", "two-plain", "two-wide"}
    wide = suite.rows["two-wide"]
    assert wide.settings == {"training.max_steps": 3, "student.num_hidden_groups": 2, "student.lora_rank": 4}
    assert (wide.recipe, wide.teacher, suite.rows["one-plain"].model) == ("tiny", "main", "x/y")


def test_a_setting_that_does_not_fit_names_its_row():
    rows = {
        **DEFINITION["rows"],
        "small": {"recipe": "tiny", "settings": {"student.rank": 3}, "teacher": "main"},
    }
    suite = make_suite(rows=rows)
    with pytest.raises(UserError, match=r"^suite trial, row small: student.rank: unknown key"):
        recipe_of(suite, expand(suite)[0], None)


def test_a_way_of_tuning_may_differ_by_task():
    own = {
        "settings": {"tuning.epochs": 1, "tuning.batch_size": 32},
        "tasks": {"river": {"tuning.epochs": 4}},
    }
    suite = make_suite(modes={**DEFINITION["modes"], "full": {"label": "full", **own}})
    recipes = {cell.name: recipe_of(suite, cell, None) for cell in expand(suite)}
    epochs = {name: recipes[name].tuning.epochs for name in ("teacher/full/king-1", "teacher/full/river-1")}
    assert epochs == {"teacher/full/king-1": 1, "teacher/full/river-1": 4}
    assert {recipes[name].tuning.batch_size for name in epochs} == {32}


def row(values):
    return {"rows": {**DEFINITION["rows"], "odd": values}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (row({}), r"rows.odd \(line \d+\): .*needs a recipe, or a model, or a teacher"),
        (row({"recipe": "tiny", "model": "x"}), "needs a recipe, or a model"),
        (row({"teacher": "main", "distilled": False}), "belong to a row with a recipe"),
        (row({"recipe": "tiny", "teacher": "best"}), "there is no 'best'; known are main"),
        ({"rows": {**DEFINITION["rows"], "../odd": {"recipe": "tiny"}}}, "rows.*should match pattern"),
        ({"modes": {**DEFINITION["modes"], "odd": {"label": "odd", "tasks": {"queen": {}}}}},
         "modes.odd.tasks: there is no 'queen'; known are king, river"),
        ({"corpora": {"text": "../corpus.txt"}}, "corpora.text.*leads out of --data"),
        ({"corpora": {"text": "/etc/passwd"}}, "corpora.text.*leads out of --data"),
        ({"teachers": []}, "there is no 'other'; known are none"),
        ({"groups": [{"name": "g", "cells": ["small/fast"], "tasks": ["king"], "seeds": [1]}]}, "there is no 'fast'"),
        ({"groups": [{"name": "g", "cells": ["small"], "tasks": ["queen"], "seeds": [1]}]}, "there is no 'queen'"),
        ({"claims": [{"name": "c", "text": "t", "comparisons": [{"a": "plain", "b": "small", "tasks": ["river"]}]}]},
         "claims.c: no group runs plain on river"),
        ({"speed": 3}, r"speed \(line \d+\): Extra inputs are not permitted"),
    ],
)  # fmt: skip
def test_a_fault_is_told_in_one_line(changes, message, tmp_path):
    path = write_suite(tmp_path / "mine.yaml", **changes)
    with pytest.raises(UserError, match=message) as caught:
        load_suite(str(path))
    assert str(caught.value).startswith(f"{path}: ")


def test_an_unknown_suite_is_told(tmp_path):
    with pytest.raises(
        UserError,
        match="no suite is called 'minature'; there are: miniature, paper, sharing; or name a YAML file",
    ):
        load_suite("minature")


def test_a_users_own_suite_has_recipes_beside_it(tmp_path, monkeypatch):
    (tmp_path / "my-student.yaml").write_text("base: tiny\nstudent: {num_hidden_layers: 1}\n")
    rows = {**DEFINITION["rows"], "small": {"recipe": "my-student.yaml", "teacher": "main", "corpus": "text"}}
    path = write_suite(tmp_path / "mine.yaml", rows=rows, name="mine")
    monkeypatch.chdir(Path("/"))
    suite = load_suite(str(path))
    recipe = recipe_of(suite, expand(suite)[0], None)
    assert isinstance(recipe, Recipe)
    assert (suite.name, recipe.student.num_hidden_layers) == ("mine", 1)


# The suites that come with the package


@pytest.mark.parametrize("name", list_suites())
def test_every_cell_of_a_shipped_suite_has_a_recipe(name):
    suite = load_suite(name)
    assert suite.name == name
    cells = expand(suite)
    for cell in cells:
        recipe_of(suite, cell, None)
    assert {cell.row for cell in cells} == set(suite.rows)
    assert {cell.task for cell in cells} - {None} == set(suite.tasks)
    assert {cell.mode for cell in cells} - {"distill"} == set(suite.modes)


@pytest.mark.parametrize("name", list_suites())
def test_the_tables_of_a_shipped_suite_name_rows_of_the_paper(name):
    suite = load_suite(name)
    for table in suite.tables:
        for row in table.rows:
            if row.paper is not None:
                _, mode = split_side(row.of)
                assert find_paper_row(table, row, suite.modes[mode].marks).marks == suite.modes[mode].marks


def test_the_miniature_has_what_the_claims_need_first():
    suite = load_suite("miniature")
    assert [group.name for group in suite.groups] == [
        "core", "baselines", "ranks", "ablations", "reach", "biomedical", "biomedical-ranks", "biomedical-bc2gm",
    ]  # fmt: skip
    core = {(cell.row, cell.mode) for cell in expand(suite) if cell.group == "core"}
    for claim in suite.claims[:5]:  # claims 1 to 5
        for one in claim.comparisons:
            if one.counts:
                assert {split_side(one.a), split_side(one.b)} <= core, claim.name
    assert [claim.name.removeprefix("claim-") for claim in suite.claims] == [
        "1", "2", "3", "4", "5", "5-eq7", "6", "7", "8", "9",
    ]  # fmt: skip
    biomedical = {(cell.row, cell.mode, cell.task) for cell in expand(suite) if cell.group == "biomedical"}
    for one in suite.claims[-1].comparisons:
        if one.counts:
            assert {(*split_side(side), task) for side in (one.a, one.b) for task in one.tasks} <= biomedical
    reach = suite.groups[4]
    assert (len(reach.tasks), reach.seeds, suite.reach.share) == (9, [1, 2, 3], 93)


def test_every_miniature_recipe_is_run_by_a_suite():
    from minialbert.recipes.load import list_recipes

    recipes = {summary.name for summary in list_recipes() if summary.name.startswith("miniature/")}
    rows = [row for name in ("miniature", "sharing") for row in load_suite(name).rows.values()]
    assert {row.recipe for row in rows if row.recipe} == recipes
