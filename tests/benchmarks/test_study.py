"""docs/study.md: its intervals are those worked out by hand, and its table takes whatever rows the records hold."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

from minialbert.recipes.load import apply_overrides, load_recipe
from minialbert.recipes.schema import SHARING_DEFAULTS, FinetuneRecipe, Recipe

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
BLOCKS = dict(re.findall(r"<!-- (\w+):begin -->\n(.*?)<!-- \1:end -->", PAGE, re.DOTALL))


@pytest.fixture
def study(monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "pages")
    return importlib.import_module("study")


def test_an_interval_has_the_spread_of_all_rows_that_have_several_values(study):
    # Variance 2 with one degree of freedom in a and in c, so 2 with two: t is 4.3027.
    gain, (low, high) = study.contrast([("a", "b")], {"a": [1, 3], "b": [2.5], "c": [5, 7]})
    assert gain == -0.5
    assert high - low == pytest.approx(2 * 4.302653 * (2 * (1 / 2 + 1)) ** 0.5)
    # Of two pairs the mean of the differences, and half the root of what both add.
    gain, (low, high) = study.contrast(
        [("a", "b"), ("c", "d")], {"a": [1, 3], "b": [2.5], "c": [5, 7], "d": [1]}
    )
    assert gain == 2.25
    assert high - low == pytest.approx(4.302653 * (2 * (1 / 2 + 1 + 1 / 2 + 1)) ** 0.5)
    assert study.contrast([("a", "b")], {"a": [1], "b": [2]}) == (-1, None)


@pytest.mark.parametrize(
    ("gain", "ends", "bound", "within", "said"),
    [
        (2, (1, 3), 0, "", "better"),
        (2, (1, 3), 0, "one student", "better (one student)"),
        (-2, (-3, -1), 0, "", "worse"),
        (1, (-1, 3), 0, "one student", "undecided"),
        (-0.3, (-0.8, 0.3), -1, "", "costs less than 1"),
        (-2, (-3, -1.1), -1, "", "worse"),
        (9, None, 0, "", "undecided"),
        (11, None, 0, "", "better (one run)"),
        (None, None, 0, "", "not measured"),
    ],
)
def test_verdicts(study, gain, ends, bound, within, said):
    row = study.Row("a", "b", "2 tasks", "2.0 M", "1, 1", "1", gain, ends, "`k`", "", bound, within)
    assert row.verdict(luck=10) == said


def test_new_rows_of_the_suite_and_their_second_seeds_get_into_table_and_figure(study, monkeypatch):
    rows = study.tuned()
    new = {name: rows["one-none"]._replace(scores=[80.0, 70.0]) for name in ("runs-none", "runs-none-2")}
    (before,) = (row for row in study.sharing() if row.choice.startswith("two blocks, in runs"))
    assert (before.measure, before.within) == ("masked tokens", "first steps alone")
    monkeypatch.setattr(study, "tuned", lambda: rows | new)
    (row,) = (row for row in study.sharing() if row.choice.startswith("two blocks, in runs"))
    assert (row.measure, row.distilled) == ("2 tasks", "2, 2")
    assert row.gain == pytest.approx(75 - sum(study.sharing_values()["one-none"]) / 2)
    (student,) = (one for one in study.numbers()["students"] if one["name"] == "runs-none")
    assert (student["score"], student["of"]) == (75, 2)


def test_the_front_has_no_student_that_a_smaller_one_equals(study):
    shown = study.numbers()
    alike = [one for one in shown["students"] if one["kind"] != "taught"]
    beaten = {
        one["name"]
        for one in alike
        if any(
            other["MB"] <= one["MB"] and other["score"] >= one["score"] and other is not one
            for other in alike
        )
    }
    assert {one["name"] for one in alike} - beaten == set(shown["front"])


def test_recipes_know_the_keys_of_both_tables():
    recipes = {
        Recipe: ("student", "distill", "training"),
        FinetuneRecipe: ("tuning", "teacher"),
    }
    named = re.findall(r"`((\w+)\.\w+)(?:: ([^`]+))?`", PAGE)
    named = [one for one in named if one[1] in sum(recipes.values(), ())]
    assert len(named) > 40
    for key, section, value in named:
        kind = next(kind for kind, sections in recipes.items() if section in sections)
        recipe = load_recipe(
            "small" if "layer_map" in key else "default", kind
        )  # of three iterations, of six
        getattr(getattr(recipe, section), key.rpartition(".")[2])
        if value:
            apply_overrides(recipe, [f"{key}={value.replace(' ', '')}"])
    options = {key for key, *_ in named if f"| `{key}" in PAGE or f", `{key}" in PAGE}
    assert {f"student.{key}" for key in SHARING_DEFAULTS} <= options


def test_every_choice_has_its_cells_and_its_record(study):
    lines = [
        line.strip("| ").split(" | ") for line in BLOCKS["choices"].splitlines()[2:] if "|  |" not in line
    ]
    assert len(lines) == sum(len(made()) for made in study.PARTS.values())
    for choice, *_, gain, verdict, _ in lines:
        assert (verdict == "not measured") == (gain == "-") == (not choice.startswith("["))
