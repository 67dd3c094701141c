"""Records, the paper's figures, tables and the report page."""

from __future__ import annotations

import csv
import io
import json
from decimal import Decimal

import pytest

from minialbert.errors import UserError
from minialbert.report import report as write_report
from minialbert.report.paper import GLUE_COLUMNS, NER_COLUMNS, average, glue_rows, ner_rows
from minialbert.report.sections import without_paths
from minialbert.report.tables import (
    Table,
    class_table,
    distillation_table,
    entity_table,
    escape,
    glue_table,
    ner_table,
    other_table,
    show,
)
from minialbert.runs.records import Cell, cell, find_records, group, known_task


def finetuned(task="cola", score=0.41, seed=1, **changes):
    metric = changes.pop("metric", "matthews_correlation")
    split = changes.pop("split", "validation")
    figures = {metric: score, **changes.pop("figures", {})}
    model = {
        "name": "distilled",
        "model_type": "minialbert",
        "parameters": 4_610_000,
        "encoder_parameters": 4_550_000,
        "trainable_parameters": 4_610_000,
        **changes.pop("model", {}),
    }
    return {
        "format_version": 1,
        "kind": "finetune",
        "name": "student-full",
        "task": task,
        "problem": "single-label",
        "metric": metric,
        "split": split,
        "metrics": {split: figures, **changes.pop("metrics", {})},
        "score": score,
        "seed": seed,
        "mode": "full",
        "adapter_init": None,
        "model": model,
        "teacher": None,
        "recipe": recipe(seed=seed),
        "notes": [],
        "wall_seconds": 12.3,
        "command": f"minialbert finetune distilled --task {task} --seed {seed} --output runs/{task}-{seed}",
        "versions": {"python": "3.12.1", "torch": "2.13.0"},
        "commit": "0123456789abcdef",
        "machine": {"processor": "A Processor", "device": "cpu"},
        **changes,
    }


def recipe(seed=1, learning_rate=5e-5, **tuning):
    return {
        "model": {"name": "distilled"},
        "tuning": {
            "epochs": 3.0,
            "batch_size": 32,
            "learning_rate": learning_rate,
            "seed": seed,
            **tuning,
        },
        "grid": {"learning_rate": []},
    }


def entities(task, score, seed=1, **changes):
    return finetuned(task, score, seed, metric="entity_f1", split="test", problem="token", **changes)


@pytest.fixture
def runs(tmp_path):
    """Write records as run directories below one tree; return the tree."""

    def write(*records):
        for number, record in enumerate(records):
            save(tmp_path / "runs" / f"{number:02d}", record)
        return [tmp_path / "runs"]

    return write


def save(directory, record):
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "result.json").write_text(json.dumps(record))
    return directory / "result.json"


def rows_of(table):
    return [dict(zip(table.columns, row, strict=True)) for row in table.rows]


def test_the_papers_averages_follow_from_its_rows():
    assert (len(glue_rows()), len(ner_rows())) == (17, 17)
    for rows, columns in ((glue_rows(), GLUE_COLUMNS), (ner_rows(), NER_COLUMNS)):
        for row in rows:
            assert len(row.scores) == len(columns)
            assert abs(average(row.scores) - row.average) <= Decimal("0.01"), row
        assert len({row.label for row in rows}) == len(rows)


def test_the_papers_figures_stand_as_printed():
    rows = {row.label: row for row in glue_rows() + ner_rows()}
    fresh = rows["MiniALBERT_312, no adapters †∗"]
    assert [str(score) for score in fresh.scores[:2]] == ["74.48", "75.70"]
    assert fresh.scores[5] is None
    assert (fresh.rank, fresh.params, str(fresh.average), fresh.source) == (312, "0.9M", "68.01", "Table 1")
    assert str(rows["BioALBERT_12"].scores[3]) == "84.33"


def test_an_average_is_truncated_and_counts_missing_values_as_zero():
    assert average([Decimal("88.67"), Decimal("85.38"), Decimal("94.31"), Decimal("86.71")]) == Decimal(
        "88.76"
    )
    assert average([Decimal("80"), None]) == Decimal("40.00")


@pytest.mark.parametrize(
    ("name", "known"),
    [("STS-B", "stsb"), ("sst2", "sst2"), ("bc5cdr_chem", "bc5cdr-chem"), ("my_task", "my_task")],
)
def test_tasks_are_known_by_their_usual_spellings(name, known):
    assert known_task(name) == known


def test_mean_and_sample_deviation_over_seeds(runs):
    paths = runs(finetuned(score=0.40, seed=1), finetuned(score=0.44, seed=2), finetuned(score=0.45, seed=3))
    (members,) = group(find_records(paths)).values()
    measured = cell(members)
    # mean 0.43; deviations -0.03, 0.01, 0.02; sum of squares 0.0014; / 2; root 0.026458
    assert measured.mean == pytest.approx(0.43)
    assert measured.sd == pytest.approx(0.0264575)
    assert (measured.n, measured.seeds) == (3, (1, 2, 3))
    assert show(measured) == "43.0 ± 2.6 (3)"


def test_one_seed_has_no_deviation(runs):
    (members,) = group(find_records(runs(finetuned()))).values()
    assert cell(members) == Cell(0.41, None, 1, (1,))
    assert show(cell(members)) == "41.0 (1)"


def test_records_are_found_once_sorted_and_by_kind(runs, tmp_path):
    (tree,) = runs(finetuned(seed=2), finetuned(seed=1))
    save(tree / "pretraining", {"kind": "distillation", "metrics": {}})
    records = find_records([tree, tree / "00", tree / "01" / "result.json"])
    assert [record.file.parent.name for record in records] == ["00", "01"]


@pytest.mark.parametrize(
    "field", ["score", "seed", "task", "metric", "mode", "recipe", "model.encoder_parameters"]
)
def test_a_missing_field_is_told_with_its_file(runs, field):
    record = finetuned()
    holder, _, key = field.rpartition(".")
    del (record[holder] if holder else record)[key]
    with pytest.raises(UserError, match=f"00/result.json lacks the field {field} "):
        find_records(runs(record))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": float("nan")}, "score should be a finite number"),
        ({"seed": "1"}, 'seed should be a whole number, but is "1"'),
        ({"seed": True}, "seed should be a whole number"),
        ({"mode": "lora"}, "mode should be full or adapters"),
        ({"mode": "adapters"}, "adapter_init should be one of"),
        ({"format_version": 99}, "update minialbert"),
        ({"metrics": {"validation": {}}}, "lacks the field metrics.validation.matthews_correlation"),
    ],
)
def test_a_wrong_field_is_told_with_its_file(runs, changes, message):
    with pytest.raises(UserError, match=message) as error:
        find_records(runs({**finetuned(), **changes}))
    assert "00/result.json" in str(error.value)


def test_a_score_must_be_the_recorded_metric(runs):
    with pytest.raises(UserError, match="score is 0.5, but metrics.validation.matthews_correlation is 0.41"):
        find_records(runs({**finetuned(score=0.41), "score": 0.5}))


@pytest.mark.parametrize("text", ["{", "[1]", "\ufeff{}"])
def test_a_file_that_is_no_record_is_named(tmp_path, text):
    (tmp_path / "result.json").write_text(text)
    with pytest.raises(UserError, match="result.json"):
        find_records([tmp_path])


def test_paths_without_records_are_told(tmp_path):
    with pytest.raises(UserError, match="nowhere does not exist"):
        find_records([tmp_path / "nowhere"])
    with pytest.raises(UserError, match="has no result.json below it"):
        find_records([tmp_path])
    save(tmp_path, {"kind": "conversion"})
    with pytest.raises(UserError, match="no record of fine-tuning or distillation below"):
        write_report([tmp_path], None)


def test_the_same_run_twice_is_refused(runs):
    with pytest.raises(UserError, match=r"00/result.json and \S+/01/result.json are two results of seed 1"):
        group(find_records(runs(finetuned(), finetuned(score=0.5))))


def test_other_hyper_parameters_are_not_averaged(runs):
    other = finetuned(seed=2, recipe=recipe(seed=2, learning_rate=1e-4, epochs=5.0))
    with pytest.raises(UserError, match=r"differ in tuning\.epochs, tuning\.learning_rate, so") as error:
        group(find_records(runs(finetuned(), other)))
    assert "00/result.json" in str(error.value) and "01/result.json" in str(error.value)


def test_what_changes_no_result_may_differ(runs):
    one = finetuned(recipe=recipe(eval_batch_size=64, logging_steps=1) | {"name": "a", "command": "x"})
    two = finetuned(seed=2, recipe=recipe(seed=2, eval_batch_size=8, logging_steps=9) | {"name": "b"})
    assert [len(members) for members in group(find_records(runs(one, two))).values()] == [2]


def test_other_splits_and_metrics_are_not_averaged(runs):
    other = finetuned(seed=2, metric="accuracy", split="test")
    with pytest.raises(UserError, match="differ in split, metric, so"):
        group(find_records(runs(finetuned(), other)))


def test_two_models_of_one_name_do_not_share_a_row(runs):
    other = finetuned("rte", model={"encoder_parameters": 9})
    with pytest.raises(UserError, match="both tune a model called distilled, but model.encoder_parameters"):
        group(find_records(runs(finetuned(), other)))
    elsewhere = finetuned("mrpc", recipe=recipe() | {"model": {"name": "/a/masked/model"}})
    with pytest.raises(UserError, match="model.name of the recipe is distilled and masked/model"):
        group(find_records(runs(finetuned(), elsewhere, finetuned("rte"))))


def test_a_models_place_on_a_machine_does_not_matter(runs):
    here = finetuned(recipe=recipe() | {"model": {"name": "/a/results/distilled/model"}})
    there = finetuned(seed=2, recipe=recipe(seed=2) | {"model": {"name": "/b/distilled/model"}})
    assert len(group(find_records(runs(here, there)))) == 1


def grid_of(directory, cells, *, inline=False, folders=True, **selected):
    """Write a grid of cells; the first two are the selected ones."""
    chosen = cells[:2]
    scores = [record["score"] for record in chosen]
    if folders:
        for number, record in enumerate(cells):
            save(directory / "cells" / f"{number}", record)
    summary = {**chosen[0], "score": sum(scores) / 2, "sd": abs(scores[0] - scores[1]) / 2**0.5, "n": 2}
    names = [f"cells/{number}" for number in range(len(cells))]
    return save(
        directory,
        {"format_version": 1, "kind": "grid", "cells": cells if inline else names}
        | {"selected": {**summary, **selected}},
    )


def grid_cells():
    return [
        finetuned(score=score, seed=seed, recipe=recipe(seed=seed, learning_rate=rate))
        for rate, seed, score in ((1e-5, 1, 0.5), (1e-5, 2, 0.6), (3e-5, 1, 0.2), (3e-5, 2, 0.3))
    ]


@pytest.mark.parametrize(
    "form", [{}, {"inline": True}, {"inline": True, "folders": False}, {"folders": False}]
)
def test_a_grid_counts_by_its_selected_runs(tmp_path, form):
    file = grid_of(tmp_path / "grid", grid_cells(), **form)
    for path in (file, tmp_path):
        (members,) = group(find_records([path])).values()
        measured = cell(members)
        assert (measured.mean, measured.n) == (pytest.approx(0.55), 2)
        assert measured.sd == pytest.approx(0.0707107)
        assert all(record.grid == file.resolve() for record in members)


def test_a_grid_shows_figures_that_only_its_runs_have(tmp_path):
    cells = grid_cells()
    for record in cells:
        record["metrics"]["validation"]["accuracy"] = record["score"] + 0.1
    known = grid_of(tmp_path / "known", cells)
    (members,) = group(find_records([known])).values()
    assert cell(members, ("accuracy",)).mean == pytest.approx(0.65)
    summary = grid_of(tmp_path / "summary", cells, folders=False)
    (members,) = group(find_records([summary])).values()
    assert cell(members, ("accuracy",)) is None  # the summary's figures are those of its first run


def test_a_grid_that_does_not_match_its_cells_is_refused(tmp_path):
    grid_of(tmp_path, grid_cells(), score=0.9)
    with pytest.raises(UserError, match=r"selected\.score is 0\.9, but the 2 cells"):
        find_records([tmp_path])


def test_a_run_beside_a_grid_is_refused(tmp_path):
    grid_of(tmp_path / "grid", grid_cells(), folders=False)
    save(tmp_path / "run", finetuned(seed=7, recipe=recipe(seed=7, learning_rate=1e-5)))
    with pytest.raises(UserError, match="are two results"):
        group(find_records([tmp_path]))


def full_glue(**changes):
    return [
        finetuned(column.task, round(0.501 + index / 100, 3), metric="accuracy", metrics=metrics, **changes)
        for index, column in enumerate(GLUE_COLUMNS)
        if not column.mismatched
        for metrics in ([{"validation_mismatched": {"accuracy": 0.5555}}] if column.task == "mnli" else [{}])
    ]


def test_all_nine_columns_give_the_papers_average(runs):
    table = glue_table(find_records(runs(*full_glue())))
    row = rows_of(table)[0]
    assert [show(row[column.label]) for column in GLUE_COLUMNS[:3]] == ["50.1 (1)", "55.5 (1)", "52.1 (1)"]
    # 50.1 + 55.55 + 52.1 + 53.1 + 54.1 + 55.1 + 56.1 + 57.1 + 58.1 = 491.35; / 9 = 54.5944
    assert row["Avg"] == Decimal("54.59")
    assert "mean of shown" not in table.columns


def test_an_incomplete_row_has_a_mean_of_the_shared_columns_only(runs):
    adapters = {"mode": "adapters", "adapter_init": "pre-trained"}
    table = glue_table(
        find_records(
            runs(
                finetuned("cola", 0.4),
                finetuned("rte", 0.7),
                finetuned("mrpc", 0.8),
                finetuned("cola", 0.3, **adapters),
                finetuned("rte", 0.6, **adapters),
            )  # fmt: skip
        )
    )
    full, adapted = rows_of(table)[:2]
    assert (full["Avg"], full["mean of shown"], adapted["mean of shown"]) == (
        None,
        Decimal("55.00"),
        Decimal("45.00"),
    )
    assert any("over CoLA, RTE, which" in note for note in table.notes)
    paper = {row["model"]: row for row in rows_of(table)}
    assert paper["BERT-base"]["mean of shown"] == Decimal("65.95")  # (57.19 + 74.72) / 2
    assert paper["MiniALBERT_768, no adapters †∗"]["mean of shown"] is None  # no CoLA
    assert paper["BERT-base"]["Avg"] == Decimal("83.81")


def test_rows_carry_the_papers_marks_in_a_stable_order(runs):
    def record(name, mode, init=None, trained=28_200):
        model = {"name": name, "trainable_parameters": trained}
        return finetuned(
            mode=mode, adapter_init=init, model=model, recipe=recipe() | {"model": {"name": name}}
        )

    records = find_records(
        runs(
            record("plain", "adapters", "as-published"),
            record("distilled", "adapters", "pre-trained"),
            record("plain", "adapters", "identity"),
            record("distilled", "full", trained=4_610_000),
        )
    )
    table = glue_table(records)
    assert [row[0] for row in table.rows if row[1] == "measured"] == [
        "distilled, full",
        "distilled, adapters (pre-trained) †",
        "plain, adapters (random) †∗",
        "plain, adapters (fresh, start as identity) †∗",
    ]
    assert table == glue_table(reversed(records))
    assert [show(value) for value in table.rows[1][2:4]] == ["4.5M", "28.2K"]
    assert any(note.startswith("†") for note in table.notes)


def test_the_paper_prints_trained_parameters_of_adapter_tuned_rows(runs):
    rows = {row["model"]: row for row in rows_of(glue_table(find_records(runs(finetuned()))))}
    assert (rows["BERT-base"]["#params"], rows["BERT-base"]["trainable"]) == ("110M", None)
    adapted = rows["MiniALBERT_128, adapters †"]
    assert (adapted["#params"], adapted["trainable"]) == (None, "0.9M")


def test_notes_tell_split_metric_hyper_parameters_and_what_was_left_out(runs):
    records = find_records(
        runs(
            finetuned(notes=["train: the first 20,000 of 67,349 rows"]),
            finetuned(seed=2),
            finetuned("rte", metric="accuracy", recipe=recipe(epochs=10.0)),
        )
    )
    notes = "\n".join(glue_table(records).notes)
    assert "Seeds: 1, 2." in notes
    assert "Split: validation (CoLA; RTE)." in notes
    assert "Metric: matthews_correlation (CoLA)." in notes
    assert "epochs 3.0, learning rate 5e-05, batch 32 — distilled, full (CoLA)." in notes
    assert "epochs 10.0, learning rate 5e-05, batch 32 — distilled, full (RTE)." in notes
    assert "train: the first 20,000 of 67,349 rows — distilled, full (CoLA)." in notes
    alone = glue_table([record for record in records if record.task == "rte"]).notes
    assert "Hyper-parameters: epochs 10.0, learning rate 5e-05, batch 32." in alone


def test_named_entities(runs):
    types = {
        "Disease": {"precision": 0.7, "recall": 0.9, "f1": 0.7875, "support": 5},
        "Chemical": {"precision": 1, "recall": 0.5, "f1": 0.667, "support": 4},
    }
    figures = {"entity_precision": 0.75, "entity_recall": 0.85, "entity_f1_subword": 0.9, "types": types}
    figures["span_per_type"] = types  # the same entities, by characters, which have no rows of their own
    records = find_records(
        runs(
            entities("NCBI-disease", 0.8, figures=figures),
            entities("ncbi-disease", 0.9, seed=2, figures=figures),
            entities("mine", 0.5),
        )
    )
    row = rows_of(ner_table(records))[0]
    assert show(row["NCBI-disease"]) == "85.0 ± 7.1 (2)"
    assert (row["Avg"], row["mean of shown"]) == (None, Decimal("85.00"))
    detail = {(row["task"], row["entities"]): row for row in rows_of(entity_table(records))}
    assert list(detail) == [
        ("mine", "all"),
        ("NCBI-disease", "all"),
        ("NCBI-disease", "Chemical"),
        ("NCBI-disease", "Disease"),
    ]
    total = detail["NCBI-disease", "all"]
    assert [show(total[name]) for name in ("precision", "recall", "sub-word F1")] == [
        "75.0 ± 0.0 (2)",
        "85.0 ± 0.0 (2)",
        "90.0 ± 0.0 (2)",
    ]
    assert detail["NCBI-disease", "Chemical"]["precision"].mean == 1
    assert detail["mine", "all"]["precision"] is None
    assert [row[0] for row in other_table(records).rows] == ["distilled, full"]
    assert other_table(records).columns[-1] == "mine" and other_table(records).title == "Other tasks"
    assert other_table(record for record in records if record.task == "mine").title == "Tasks"


def test_classes_have_figures_of_their_own(runs):
    def figures(f1: float) -> dict[str, object]:
        return {
            "per_class": {"case": {"precision": 0.5, "recall": 1.0, "f1": f1, "support": 4, "predicted": 8}}
        }

    many = {"per_class": {f"c{number}": {"precision": 1.0, "recall": 1.0, "f1": 1.0} for number in range(31)}}
    records = find_records(
        runs(
            finetuned("mine", 0.9, figures=figures(0.6)),
            finetuned("mine", 0.9, seed=2, figures=figures(0.7)),
            finetuned("topics", 0.9, figures=many),
            finetuned("old", 0.9),
        )
    )
    (row,) = rows_of(class_table(records))
    assert (row["task"], row["class"], show(row["F1"])) == ("mine", "case", "65.0 ± 7.1 (2)")


def test_an_error_measure_is_not_shown_in_percent(runs):
    table = other_table(find_records(runs(finetuned("price", 1.25, metric="rmse", problem="regression"))))
    assert show(table.rows[0][-1]) == "1.250 (1)"
    assert "Not in percent: price." in table.notes


def test_task_specific_distillation_stands_apart(runs):
    records = find_records(runs(finetuned(), finetuned(score=0.6, teacher="bert-base-cola")))
    assert [row[-1].mean for row in distillation_table(records).rows] == [0.6]
    assert distillation_table(records).rows[0][0] == "distilled, full, teacher bert-base-cola"
    measured = [row[0] for row in glue_table(records).rows if row[1] == "measured"]
    assert measured == ["distilled, full"]


def test_markup_in_data_is_shown_as_text():
    assert escape("a|b*c_d\n# <img src=x>") == r"a\|b\*c\_d \# &lt;img src=x&gt;"
    assert escape("[x](https://y)") == "\\[x\\](https:\\//y)"
    assert escape("a\x1b[31m\u202eb&amp;") == r"a \[31m b&amp;amp;"
    table = Table("t", ("a|b",), (("x|y\\",),), ("n_1",))
    assert table.to_markdown() == "| a\\|b |\n| --- |\n| x\\|y\\\\ |\n\n- n\\_1\n"


def test_csv_parses_back_and_holds_no_formula():
    rows = (
        ("=1+1", Cell(-0.031, None, 1, (1,)), Decimal("-5.25"), 4_550_000),
        (" @a, b\n", Decimal("57.19"), None, None),
    )
    text = Table("t", ("model", "-x", "Avg", "#params"), rows).to_csv()
    assert list(csv.reader(io.StringIO(text))) == [
        ["model", "'-x", "'-x sd", "'-x n", "Avg", "#params"],
        ["'=1+1", "-3.1000", "", "1", "-5.25", "4550000"],
        ["' @a, b\n", "57.19", "", "", "", ""],
    ]


@pytest.mark.parametrize(
    ("command", "shown", "seeds"),
    [
        (
            "/opt/tools/bin/minialbert finetune runs/a/model --task cola --seed 3 --output runs/x",
            "minialbert finetune PATH --task cola --seed SEED --output OUTPUT",
            ["3"],
        ),
        (
            "minialbert finetune --model nlpie/tiny-biobert --data hub:a/b --set tuning.epochs=3 tuning.seed=5",
            "minialbert finetune --model nlpie/tiny-biobert --data hub:a/b --set tuning.epochs=3 tuning.seed=SEED",
            ["5"],
        ),
        ("minialbert finetune --data=/srv/glue 'it s", "minialbert finetune --data=DATA ''\"'\"'it' s", []),
        ("minialbert finetune --data glue/CoLA", "minialbert finetune --data DATA", []),
    ],
)
def test_commands_name_no_paths(command, shown, seeds):
    assert without_paths(command) == (shown, seeds)


def test_a_report_has_the_tables_that_were_measured(runs, tmp_path):
    others = [finetuned(model={"name": name}) for name in ("second", "third")]
    paths = runs(
        finetuned(), finetuned(score=0.45, seed=2), finetuned("my|task", 0.5, metric="accuracy"), *others
    )
    output = tmp_path / "report"
    output.mkdir()
    (output / "ner.csv").write_text("of an earlier report")
    (output / "figures").mkdir()
    for name in ("report-old.svg", "mine.svg"):
        (output / "figures" / name).write_text("of an earlier report, and another's")
    page = write_report(paths, output)
    assert (output / "report.md").read_text() == page
    assert sorted(file.relative_to(output).as_posix() for file in output.rglob("*.*")) == [
        "figures/mine.svg",
        "figures/report-size-against-score-texts.svg",
        "glue.csv",
        "other.csv",
        "report.html",
        "report.md",
    ]
    headings = [line for line in page.splitlines() if line.startswith("#")]
    assert headings == ["# Results", "## GLUE", "## Other tasks", "## Commands", "## Versions"]
    html = (output / "report.html").read_text(encoding="utf-8")
    assert "<h1>Results</h1>" in html
    assert "Size against score, texts" in html
    assert "43.0 ± 2.8 (2)" in page
    assert r"my\|task" in page
    assert "minialbert finetune distilled --task cola --seed SEED --output OUTPUT  # SEED: 1, 2\n" in page
    assert "\ntorch 2.13.0\n" in page
    assert str(tmp_path) not in page
    widths = {len(row) for row in csv.reader(io.StringIO((output / "glue.csv").read_text()))}
    assert len(widths) == 1
    assert write_report(list(reversed(paths))) == page


def test_a_report_that_cannot_be_written_is_told(runs, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file cannot be written"):
        write_report(runs(finetuned()), tmp_path / "file")
