"""The verbs about labelled tasks: finetune, evaluate, predict, report."""

from __future__ import annotations

import json
import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from minialbert.cli.shared import (
    JsonFlag,
    OverwriteFlag,
    interruptible,
    out,
    print_json,
    quiet_transformers,
    say,
)
from minialbert.errors import UserError
from minialbert.runs.files import check_file, whole_file, writing

if TYPE_CHECKING:
    from minialbert.recipes.schema import FinetuneRecipe, TaskRecipe


TASK_HELP = "A GLUE task, ner, classification, multi-label, regression, or a name of your own."
_Iterations = Annotated[
    int | None, typer.Option(help="How often a MiniALBERT applies its block. Default: as trained.")
]
_ExitThreshold = Annotated[
    float | None,
    typer.Option(
        help="Confidence (0 to 1) at which an input leaves early. Default: as calibrated, if it is."
    ),
]
_SET = typer.Option("--set", help="Override, as in tuning.learning_rate=3e-5.")


class KeepModels(StrEnum):
    """Which models of a grid stay on disk."""

    selected = "selected"
    all = "all"
    none = "none"


def finetune(
    output: Annotated[Path, typer.Option(help="Run directory.")],
    model: Annotated[str | None, typer.Option(help="Directory or hub id of the encoder to tune.")] = None,
    task: Annotated[str | None, typer.Option(help=TASK_HELP)] = None,
    data: Annotated[
        str | None, typer.Option(help="Directory, file or hub:OWNER/NAME; GLUE comes from the hub without.")
    ] = None,
    adapters: Annotated[
        bool, typer.Option("--adapters", help="Train adapters and head alone; all else is frozen.")
    ] = False,
    teacher: Annotated[
        str | None, typer.Option(help="A model tuned for the task, to learn from while tuning.")
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="Name of a fine-tuning recipe, or a YAML file.")] = None,
    set_: Annotated[list[str] | None, _SET] = None,
    grid: Annotated[
        bool, typer.Option("--grid", help="Run every combination in the recipe's grid, and select the best.")
    ] = False,
    jobs: Annotated[int, typer.Option(min=1, help="With --grid: runs at a time on this machine.")] = 1,
    ray: Annotated[str | None, typer.Option(help="With --grid: address of a Ray cluster.")] = None,
    keep_models: Annotated[
        KeepModels, typer.Option(help="With --grid: which models stay on disk. Without: none, or the one.")
    ] = KeepModels.selected,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with the run in the directory.")] = False,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Tune an encoder, or its adapters alone, on a labelled task."""
    quiet_transformers()
    resolved = finetune_recipe(recipe, adapters, set_, model=model, task=task, data=data, teacher=teacher)
    if grid:
        _run_grid(resolved, output, jobs, ray, keep_models, overwrite=overwrite, as_json=as_json)
        return
    if jobs != 1 or ray is not None or keep_models is KeepModels.all:
        raise UserError("--jobs, --ray and --keep-models are for grids: give --grid too")
    from minialbert.tasks.finetune import finetune as run_finetune

    kept = keep_models is not KeepModels.none
    with interruptible("the same command with --resume goes on from the last checkpoint"):
        record = run_finetune(
            resolved, output=output, resume=resume, overwrite=overwrite, progress=not as_json, keep_model=kept
        )
    if not record:  # another process of the same job writes the record
        return
    if as_json:
        print_json(record)
        return
    _print_scores(record)
    say(
        (f"model and tokenizer in {output / 'model'}; " if kept else "")
        + f"record in {output / 'result.json'}"
    )


def evaluate(
    model: Annotated[str, typer.Option(help="Directory or hub id of a tuned model.")],
    data: Annotated[
        str | None, typer.Option(help="Directory, file or hub:OWNER/NAME; GLUE comes from the hub without.")
    ] = None,
    task: Annotated[str | None, typer.Option(help=f"{TASK_HELP} Default: what it was tuned for.")] = None,
    split: Annotated[
        str | None, typer.Option(help="Default: test where it has labels, else validation.")
    ] = None,
    output: Annotated[Path | None, typer.Option(help="Directory for record and predictions.")] = None,
    submission: Annotated[
        Path | None, typer.Option(help="Directory for the files that the GLUE benchmark takes.")
    ] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override, as in task.text=sentence.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Inputs per forward pass.")] = 64,
    num_iterations: _Iterations = None,
    exit_threshold: _ExitThreshold = None,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Score a tuned model on a split of a task."""
    quiet_transformers()
    from minialbert.tasks.evaluate import evaluate as run_evaluate

    recipe = finetune_recipe(None, False, set_, task=task, data=data)
    with interruptible("the same command starts it again"):
        record = run_evaluate(
            model,
            as_given(recipe.task, set_, "name", "data"),
            split=split,
            output=output,
            submission=submission,
            overwrite=overwrite,
            batch_size=batch_size,
            precision=recipe.tuning.precision,
            num_iterations=num_iterations,
            exit_threshold=exit_threshold,
            progress=not as_json,
        )
    if as_json:
        print_json(record)
        return
    for note in record["notes"]:
        say(note)
    _print_scores(record)
    for name, mean in record.get("mean_iterations", {}).items():
        say(f"{name}: {mean:.2f} iterations per input on average, at threshold {record['exit_threshold']:g}")
    for name in record["submission"]:
        say(f"{submission}/{name}")
    if output is not None:
        say(f"record and predictions in {output}")


def predict(
    model: Annotated[str, typer.Option(help="Directory or hub id of a tuned model, or an exported folder.")],
    texts: Annotated[list[str] | None, typer.Argument(help="Texts; or give --input.")] = None,
    input_: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            help="A file (txt: one text a line; csv, tsv, jsonl, parquet), or - for standard input.",
        ),
    ] = None,
    column: Annotated[str | None, typer.Option(help="Column of the text in tables.")] = None,
    pair_column: Annotated[str | None, typer.Option(help="Column of the second text of a pair.")] = None,
    output: Annotated[
        Path | None, typer.Option(help="File for the results; standard output without.")
    ] = None,
    threshold: Annotated[
        float, typer.Option(help="Probability over which a label of several applies.")
    ] = 0.5,
    batch_size: Annotated[int, typer.Option(min=1, help="Inputs per forward pass.")] = 32,
    num_iterations: _Iterations = None,
    exit_threshold: _ExitThreshold = None,
    overwrite: OverwriteFlag = False,
) -> None:
    """Label texts: one JSON object a line, entities with character offsets."""
    quiet_transformers()
    from minialbert.tasks.predict import load_predictor, read_inputs, to_json_line

    if bool(texts) == bool(input_):
        raise UserError("give either texts or --input (a file, or - for standard input)")
    if texts and (column is not None or pair_column is not None):
        raise UserError("--column and --pair-column are for tables: give --input too")
    if output is not None:
        check_file(output, overwrite=overwrite)
    inputs = iter(texts) if texts else read_inputs(input_ or [], column=column, pair_column=pair_column)
    predictor = load_predictor(
        model,
        precision="auto",
        batch_size=batch_size,
        threshold=threshold,
        num_iterations=num_iterations,
        exit_threshold=exit_threshold,
    )
    with interruptible("the same command starts it again"):
        lines = (to_json_line(result) for result in predictor.predict(inputs))
        if output is None:
            for line in lines:
                sys.stdout.write(f"{line}\n")
                sys.stdout.flush()
            return
        with writing(output, advice=None), whole_file(output) as file:
            file.writelines(f"{line}\n" for line in lines)


def report(
    paths: Annotated[
        list[Path] | None, typer.Argument(help="Records, run directories, or trees of them.")
    ] = None,
    compare: Annotated[
        tuple[Path, Path] | None,
        typer.Option(metavar="A B", help="Put two runs of one kind side by side instead."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(
            help="Directory for report.md, report.html, the tables as CSV and the charts as SVG (or compare.*)."
        ),
    ] = None,
) -> None:
    """Put the records of runs into tables beside the paper's rows, or two runs side by side."""
    if (compare is None) == (not paths):
        raise UserError("give either records and run directories, or --compare and two of them")
    if compare is not None:
        _compare(*compare, output)
        return
    from minialbert.report import write_report

    page = write_report(paths or [], output)
    if output is None:
        sys.stdout.write(page)
    else:
        say(f"report in {output / 'report.md'}, as a page in {output / 'report.html'}")


def _compare(a: Path, b: Path, output: Path | None) -> None:
    from minialbert.report.compare import write_comparison

    page = write_comparison(a, b, output)
    if output is None:
        sys.stdout.write(page)
    else:
        say(f"comparison in {output / 'compare.md'} and {output / 'compare.html'}")


def _run_grid(
    recipe: FinetuneRecipe,
    output: Path,
    jobs: int,
    ray: str | None,
    keep_models: KeepModels,
    *,
    overwrite: bool,
    as_json: bool,
) -> None:
    from minialbert.experiments.grid import grid_rows, run_grid

    with interruptible("the same command goes on; finished cells are not run again"):
        record = run_grid(
            recipe,
            output=output,
            jobs=jobs,
            ray_address=ray,
            keep_models=keep_models.value,
            overwrite=overwrite,
            progress=not as_json,
        )
    if as_json:
        print_json(record)
        return
    header, *rows = grid_rows(record)
    table = Table(*header)
    for row in rows:
        table.add_row(*row)
    out.print(table)
    chosen = record["selected"]
    spread = f" ± {chosen['sd']:.4f}" if chosen["sd"] is not None else ""
    out.print(
        f"selected on validation: learning rate {chosen['learning_rate']:g}, batch {chosen['batch_size']}, "
        f"{chosen['epochs']:g} epochs; {record['metric'].replace('_', ' ')} on {record['split']} "
        f"{chosen['score']:.4f}{spread} over {chosen['n']} seeds"
    )


def finetune_recipe(
    recipe: str | None,
    adapters: bool,
    overrides: list[str] | None,
    **named: str | None,
) -> FinetuneRecipe:
    """Return a fine-tuning recipe with what the options say in its place.

    Args:
        recipe: name or file; None for the default.
        adapters: train adapters and head alone.
        overrides: what `--set` gave.
        **named: values of options by name.

    Returns:
        The recipe.
    """
    from minialbert.recipes.load import apply_overrides, load_recipe
    from minialbert.recipes.schema import FinetuneRecipe

    places = {"model": "model.name", "task": "task.name", "data": "task.data", "teacher": "teacher.model"}
    given = [
        f"{places[name]}={json.dumps(value, ensure_ascii=False)}"
        for name, value in named.items()
        if value is not None
    ]
    if adapters:
        given.append("tuning.mode=adapters")
    loaded = load_recipe(recipe or ("adapters" if adapters else "default"), FinetuneRecipe)
    return apply_overrides(loaded, [*given, *(overrides or [])])


def as_given(task: TaskRecipe, overrides: list[str] | None, *fields: str) -> TaskRecipe:
    """Return a task recipe in which only what was given counts as set; all else is as in tuning.

    Args:
        task: the recipe as resolved.
        overrides: what `--set` gave.
        *fields: fields that options of their own gave.

    Returns:
        The recipe.
    """
    keys = [override.partition("=")[0].strip() for override in overrides or []]
    given = {*fields, *(key.removeprefix("task.") for key in keys if key.startswith("task."))}
    return type(task)(**task.model_dump(include=given))


def _print_scores(record: dict[str, Any]) -> None:
    """Print the figures of each labelled split, then entities by type where there are such."""
    for split, metrics in record["metrics"].items():
        table = Table(f"{record['task']}, {split}", "")
        for name, value in metrics.items():
            if isinstance(value, float):
                mark = " (over word pieces, as the release)" if name == "entity_f1_subword" else ""
                style = "bold" if name == record["metric"] else None
                table.add_row(f"{name.replace('_', ' ')}{mark}", f"{value:.4f}", style=style)
        out.print(table)
        if metrics.get("per_type"):
            types = Table("type", "precision", "recall", "F1", "entities")
            for name, values in metrics["per_type"].items():
                figures = (f"{values[key]:.4f}" for key in ("precision", "recall", "f1"))
                types.add_row(name, *figures, str(values["support"]))
            out.print(types)


_SHOWN = 12


class CalibrationSplit(StrEnum):
    """Which rows choose the threshold."""

    train = "train"
    validation = "validation"


def calibrate(
    model: Annotated[str, typer.Option(help="Directory of a tuned MiniALBERT; its config is changed.")],
    data: Annotated[
        str | None, typer.Option(help="Directory, file or hub:OWNER/NAME; GLUE comes from the hub without.")
    ] = None,
    task: Annotated[str | None, typer.Option(help=f"{TASK_HELP} Default: what it was tuned for.")] = None,
    max_drop: Annotated[float, typer.Option(help="How far the metric may fall, in points.")] = 0.5,
    split: Annotated[CalibrationSplit, typer.Option(help="Whose rows choose.")] = CalibrationSplit.train,
    fraction: Annotated[float, typer.Option(help="Share of the training rows that is drawn.")] = 0.1,
    rows: Annotated[int | None, typer.Option(help="Draw that many rows instead.")] = None,
    seed: Annotated[int, typer.Option(help="Of the draw.")] = 0,
    output: Annotated[Path | None, typer.Option(help="Directory for the record.")] = None,
    set_: Annotated[
        list[str] | None, typer.Option("--set", help="Override, as in task.text=sentence.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Inputs per forward pass.")] = 64,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Leave the model's config as it is.")] = False,
    overwrite: OverwriteFlag = False,
    as_json: JsonFlag = False,
) -> None:
    """Find the confidence at which inputs may leave a tuned model early."""
    quiet_transformers()
    from minialbert.tasks.calibrate import calibrate_exit

    recipe = finetune_recipe(None, False, set_, task=task, data=data)
    with interruptible("the same command starts it again"):
        record = calibrate_exit(
            model,
            as_given(recipe.task, set_, "name", "data"),
            max_drop=max_drop,
            split=split.value,
            fraction=fraction,
            rows=rows,
            seed=seed,
            output=output,
            overwrite=overwrite,
            dry_run=dry_run,
            batch_size=batch_size,
            precision=recipe.tuning.precision,
            progress=not as_json,
        )
    if as_json:
        print_json(record)
        return
    for note in record["notes"]:
        say(note)
    _print_thresholds(record)
    chosen = record["exit_threshold"]
    said = f"exit_threshold {chosen:g}" if chosen is not None else "no exit_threshold"
    say(f"{said} in {Path(model) / 'config.json'}" if record["written"] else f"{said} (nothing is written)")
    if output is not None:
        say(f"record in {output / 'result.json'}")


def _print_thresholds(record: dict[str, Any]) -> None:
    """Print some thresholds of all that were tried, the chosen one among them, and the full depth."""
    rows = record["thresholds"]
    chosen = [row["threshold"] for row in rows].index(record["exit_threshold"] or 1.0)
    step = max(1, -(-len(rows) // _SHOWN))
    table = Table("threshold", record["metric"].replace("_", " "), "mean iterations", "share of iterations")
    for index, row in enumerate(rows):
        if index % step and index not in (chosen, len(rows) - 1):
            continue
        style = "bold" if row["threshold"] == record["exit_threshold"] else None
        table.add_row(
            f"{row['threshold']:g}",
            f"{row['score']:.4f}",
            f"{row['mean_iterations']:.2f}",
            f"{row['compute_share']:.0%}",
            style=style,
        )
    depth = max(map(int, record["score_by_depth"]))
    table.add_row("full depth", f"{record['full_depth_score']:.4f}", f"{depth:.2f}", "100%")
    out.print(table)
